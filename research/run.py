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

from research import run_dir
from research.load import instantiate
from research.nn.bitlinear import bitlinear_layers
from research.run_dir import RunConfig
from research.seeding import seed_all
from research.signals import get_exit_code, watch
from research.tracking.jsonl import FAILED, FINISHED, KILLED, PRUNED, STOPPED, Tracker
from research.training import checkpoint, distributed
from research.training.checkpoint import hash_weights
from research.training.state import PRUNED_REASON, Callback, State
from research.training.trainer import Trainer

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float:
    """Train as `cfg` says; return the best value of cfg.monitor. The run folder and the tracker tell how it went.

    Raises SystemExit with 143 (130 after Ctrl-C) where a signal ended the run early, its state saved.
    """
    if not gc.isenabled():  # since the preflight: nothing that is imported is garbage, looking for some took a second a run
        gc.freeze()
        gc.enable()
    torch.set_flush_denormal(True)  # below 1e-38 is 0: in long runs Adam's squares come to that, at ten times the price
    asked = build_run_config(cfg)
    trainer: Trainer = instantiate(cfg.trainer)  # from here on the processes of a run are one
    if (value := distributed.broadcast(get_finished_value(asked))) is not None:
        return float(value)
    writes = distributed.get_launched_ranks()[0] == 0
    with watch(), run_dir.lock(asked.folder) if writes else nullcontext():
        tracker: Tracker = instantiate(cfg.tracker) if writes else Tracker()
        opening = RunRecorder(asked, OmegaConf.to_yaml(cfg, resolve=True), tracker)
        started, status, error = time.perf_counter(), FAILED, ""
        try:
            if writes and not asked.resumed:
                opening.record()
            tracker.state = state = train(cfg, asked, trainer, [opening, tracker])
            status = STOPPED if state.signum else PRUNED if state.stop == PRUNED_REASON else FINISHED
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
            status = KILLED if isinstance(failure, KeyboardInterrupt) else FAILED
            log.info("the run failed", exc_info=True)  # to train.log; the terminal gets one line
            if tracker.state:
                tracker.state.error = error
            raise
        finally:
            outcome = {"status": status, "error": error, "wall_s": time.perf_counter() - started, "config": asked.digest}
            outcome |= build_summary(cfg.monitor, tracker.state)
            try:
                if opening.recorded:
                    run_dir.write_json(asked.folder / "summary.json", outcome | {"mlflow_run_id": tracker.run_id})
            finally:
                tracker.finish(status, outcome)  # also where the disk is full
    if state.signum:
        raise SystemExit(get_exit_code(state.signum))
    return float(state.best.get(cfg.monitor, math.nan))


class RunRecorder(Callback):
    """Writes down what was asked for: of a fresh run before anything can go wrong; of one that goes on, whose folder tells
    of what it was so far, once its checkpoint has been read and fits.
    """

    def __init__(self, run_config: RunConfig, config_yaml: str, tracker: Tracker) -> None:
        self.run_config, self.config_yaml, self.tracker, self.recorded = run_config, config_yaml, tracker, False

    def on_start(self, state: State) -> None:
        if not self.recorded:
            self.record()

    def record(self) -> None:
        run_dir.begin_run_folder(self.run_config, self.config_yaml)
        self.recorded = True
        self.tracker.start(self.run_config)


def train(cfg: DictConfig, run_config: RunConfig, trainer: Trainer, first_callbacks: list[Callback]) -> State:
    """Build every part by its `_target_` and fit."""
    place, resume = distributed.broadcast((run_config.folder, run_config.resume))
    seed_all(cfg.seed)
    data = instantiate(cfg.data)
    model = trainer.to_device(instantiate(cfg.model, data.shape))
    optimizer = instantiate(cfg.optim, model)
    callbacks = [instantiate(node) for node in cfg.callbacks.values()]
    return trainer.fit(
        model,
        optimizer,
        instantiate(cfg.schedule),
        instantiate(cfg.loss),
        data,
        [*first_callbacks, *callbacks],
        monitor=cfg.monitor,
        name=run_config.name,
        folder=place,
        config=run_config.digest,
        resume=resume,
        weights_only=cfg.resume.weights_only,
    )


def get_finished_value(run_config: RunConfig) -> float | None:
    """The value that this very run has reached already; None where there is something left to do."""
    told = run_dir.read_json(run_config.folder / "summary.json") if run_config.resumed else {}
    if told.get("status") != FINISHED or told.get("config") != run_config.digest:
        return None
    print(f"finished already: {run_config.folder}, best {told['monitor']} {told['value']}")
    return math.nan if told["value"] is None else float(told["value"])


def build_run_config(cfg: DictConfig) -> RunConfig:
    """What was asked, in plain types, with a name that tells this run from its neighbours."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if "hydra/" not in k}
    given = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    swept = {key: given[key] for key in os.environ.get("GROKBIT_SWEPT", "").split(",") if key in given}
    in_sweep = hydra.mode == RunMode.MULTIRUN
    name = " ".join(f"{k}={v}" for k, v in swept.items()) or f"{choices['model']} {choices['optim']} seed={cfg.seed}"
    place = Path(hydra.runtime.output_dir).resolve()
    resume = resolve_resume(cfg.resume.path, place)
    goes_on = resume is not None and place in (resume, *resume.parents) and not cfg.resume.weights_only
    if cfg.resume.path == "auto" and resume is None and distributed.get_launched_ranks()[0] == 0 and not in_sweep:
        print(f"resume=auto: no checkpoint of a run with this very configuration below {place.parent}: a fresh start")
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    return RunConfig(
        name=name,
        study=cfg.name,
        folder=place,
        config=config,
        overrides=overrides,
        choices=choices,
        sweep_folder=Path(hydra.sweep.dir).resolve() if in_sweep else None,
        swept_values=swept,
        resume=resume,
        resumed=goes_on,
    )


def resolve_resume(path: str | None, run_folder: Path) -> Path | None:
    """The run folder or checkpoint that `resume` means; None for a fresh start."""
    if path != "auto":
        return Path(path).expanduser().resolve() if path else None
    return run_folder if checkpoint.find(run_folder) else None


def build_summary(monitor: str, state: State | None) -> dict[str, Any]:
    """summary.json, but for how the run ended; empty where nothing could be built."""
    if state is None:
        return {}
    rate = state.compute_throughput()
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
        "samples_per_s": rate / (state.data.shape.seq_len if state.data.unit == "token" else 1),
        "tokens_per_s": rate if state.data.unit == "token" else None,
        "peak_rss_mb": run_dir.get_peak_rss_mb(),
        "shape": state.data.shape._asdict(),
        "params": sum(p.numel() for p in state.model.parameters()),
        "rounded": sum(layer.weight.numel() for layer in bitlinear_layers(state.model).values()),
        "weights_sha256": None if state.sharded and state.error else hash_weights(state.model),
    }
