"""The composition root: config becomes objects here and only here."""

import gc
import logging
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from research import callback, checkpoint, folder, processes
from research.callback import Callback, State
from research.checkpoint import weights_digest
from research.folder import Run
from research.jsonl import FAILED, FINISHED, KILLED, PRUNED, STOPPED, Tracker
from research.nn.bitlinear import layers
from research.seeding import seed_all
from research.signals import exit_code, watch
from research.trained import build
from research.trainer import Trainer

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float:
    """Train as `cfg` says; return the best value of cfg.monitor. The run folder and the tracker tell how it went.

    Raises SystemExit with 143 (130 after Ctrl-C) where a signal ended the run early, its state saved.
    """
    if not gc.isenabled():  # since the preflight: nothing that is imported is garbage, looking for some took a second a run
        gc.freeze()
        gc.enable()
    torch.set_flush_denormal(True)  # below 1e-38 is 0: in long runs Adam's squares come to that, at ten times the price
    asked = describe(cfg)
    trainer: Trainer = build(cfg.trainer)  # from here on the processes of a run are one
    if (value := processes.everywhere(finished(asked))) is not None:
        return float(value)
    writes = processes.launched()[0] == 0
    with watch(), folder.lock(asked.folder) if writes else nullcontext():
        tracker: Tracker = build(cfg.tracker) if writes else Tracker()
        opening = Opening(asked, OmegaConf.to_yaml(cfg, resolve=True), tracker)
        started, status, error = time.perf_counter(), FAILED, ""
        try:
            if writes and not asked.goes_on:
                opening.open()
            tracker.state = state = train(cfg, asked, trainer, [opening, tracker])
            status = STOPPED if state.signum else PRUNED if state.stop == callback.PRUNED else FINISHED
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
            status = KILLED if isinstance(failure, KeyboardInterrupt) else FAILED
            log.info("the run failed", exc_info=True)  # to train.log; the terminal gets one line
            if tracker.state:
                tracker.state.error = error
            raise
        finally:
            outcome = {"status": status, "error": error, "wall_s": time.perf_counter() - started, "config": asked.digest}
            outcome |= summary(cfg.monitor, tracker.state)
            try:
                if opening.done:
                    folder.write_json(asked.folder / "summary.json", outcome | {"mlflow_run_id": tracker.run_id})
            finally:
                tracker.finish(status, outcome)  # also where the disk is full
    if state.signum:
        raise SystemExit(exit_code(state.signum))
    return float(state.best.get(cfg.monitor, math.nan))


class Opening(Callback):
    """Writes down what was asked for: of a fresh run before anything can go wrong; of one that goes on, whose folder tells
    of what it was so far, once its checkpoint has been read and fits.
    """

    def __init__(self, asked: Run, config_yaml: str, tracker: Tracker) -> None:
        self.asked, self.config_yaml, self.tracker, self.done = asked, config_yaml, tracker, False

    def on_start(self, state: State) -> None:
        if not self.done:
            self.open()

    def open(self) -> None:
        folder.begin(self.asked, self.config_yaml)
        self.done = True
        self.tracker.start(self.asked)


def train(cfg: DictConfig, asked: Run, trainer: Trainer, first: list[Callback]) -> State:
    """Build every part by its `_target_` and fit."""
    place, resume = processes.everywhere((asked.folder, asked.resume))
    seed_all(cfg.seed)
    data = build(cfg.data)
    model = trainer.place(build(cfg.model, data.shape))
    optimizer = build(cfg.optim, model)
    callbacks = [build(node) for node in cfg.callbacks.values()]
    return trainer.fit(
        model,
        optimizer,
        build(cfg.schedule),
        build(cfg.loss),
        data,
        [*first, *callbacks],
        monitor=cfg.monitor,
        name=asked.name,
        folder=place,
        config=asked.digest,
        resume=resume,
        weights_only=cfg.resume.weights_only,
    )


def finished(asked: Run) -> float | None:
    """The value that this very run has reached already; None where there is something left to do."""
    told = folder.read_json(asked.folder / "summary.json") if asked.goes_on else {}
    if told.get("status") != FINISHED or told.get("config") != asked.digest:
        return None
    print(f"finished already: {asked.folder}, best {told['monitor']} {told['value']}")
    return math.nan if told["value"] is None else float(told["value"])


def describe(cfg: DictConfig) -> Run:
    """What was asked, in plain types, with a name that tells this run from its neighbours."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if "hydra/" not in k}
    given = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    swept = {key: given[key] for key in os.environ.get("GROKBIT_SWEPT", "").split(",") if key in given}
    in_sweep = hydra.mode == RunMode.MULTIRUN
    name = " ".join(f"{k}={v}" for k, v in swept.items()) or f"{choices['model']} {choices['optim']} seed={cfg.seed}"
    place = Path(hydra.runtime.output_dir).resolve()
    resume = from_where(cfg.resume.path, place)
    goes_on = resume is not None and place in (resume, *resume.parents) and not cfg.resume.weights_only
    if cfg.resume.path == "auto" and resume is None and processes.launched()[0] == 0 and not in_sweep:
        print(f"resume=auto: no checkpoint of a run with this very configuration below {place.parent}: a fresh start")
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    return Run(
        name=name,
        study=cfg.name,
        folder=place,
        config=config,
        overrides=overrides,
        choices=choices,
        sweep=Path(hydra.sweep.dir).resolve() if in_sweep else None,
        swept=swept,
        resume=resume,
        goes_on=goes_on,
    )


def from_where(path: str | None, place: Path) -> Path | None:
    """The run folder or checkpoint that `resume` means; None for a fresh start."""
    if path != "auto":
        return Path(path).expanduser().resolve() if path else None
    return place if checkpoint.find(place) else None


def summary(monitor: str, state: State | None) -> dict[str, Any]:
    """summary.json, but for how the run ended; empty where nothing could be built."""
    if state is None:
        return {}
    rate = state.rate()
    return {
        "monitor": monitor,
        "value": state.best.get(monitor),
        "metrics": state.metrics,
        "best": state.best,
        "baseline": state.data.baseline,
        "steps": state.step,
        "stop": state.stop,
        "rollbacks": state.rollbacks,
        "train_s": state.seconds,
        "samples_per_s": rate / (state.data.shape.length if state.data.unit == "token" else 1),
        "tokens_per_s": rate if state.data.unit == "token" else None,
        "peak_rss_mb": folder.peak_rss_mb(),
        "shape": state.data.shape._asdict(),
        "params": sum(p.numel() for p in state.model.parameters()),
        "rounded": sum(layer.weight.numel() for layer in layers(state.model).values()),
        "weights_sha256": None if state.sharded and state.error else weights_digest(state.model),
    }
