"""The composition root: config becomes objects here and only here."""

import logging
import os
import time
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from research import folder
from research.callback import State
from research.checkpoint import weights_digest
from research.folder import Run
from research.seeding import seed_all
from research.tracking import FAILED, FINISHED, KILLED, Tracker
from research.trainer import Trainer

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float:
    """Train as `cfg` says; return the best value of cfg.monitor. The run folder and the tracker tell how it went."""
    asked = describe(cfg)
    with folder.lock(asked.folder):
        folder.begin(asked, OmegaConf.to_yaml(cfg, resolve=True))
        tracker: Tracker = build(cfg.tracker)
        started, status, error = time.perf_counter(), FAILED, ""
        try:
            tracker.start(asked)
            state = train(cfg, asked, tracker)
            status = FINISHED
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
            status = KILLED if isinstance(failure, KeyboardInterrupt) else FAILED
            log.info("the run failed", exc_info=True)  # to train.log; the terminal gets one line
            raise
        finally:
            outcome = {"status": status, "error": error, "wall_s": time.perf_counter() - started}
            outcome |= summary(cfg.monitor, tracker.state)
            folder.write_json(asked.folder / "summary.json", outcome | {"mlflow_run_id": tracker.run_id})
            tracker.finish(status, outcome)
    return float(state.best[cfg.monitor])


def train(cfg: DictConfig, asked: Run, tracker: Tracker) -> State:
    """Build every part by its `_target_` and fit."""
    seed_all(cfg.seed)
    data = build(cfg.data)
    model = build(cfg.model, data.shape)
    optimizer = build(cfg.optim, model)
    callbacks = [build(node) for node in cfg.callbacks.values()]
    trainer: Trainer = build(cfg.trainer)
    return trainer.fit(
        model,
        optimizer,
        build(cfg.schedule),
        build(cfg.loss),
        data,
        [*callbacks, tracker],
        monitor=cfg.monitor,
        name=asked.name,
        folder=asked.folder,
        resume=Path(cfg.resume) if cfg.resume else None,
    )


def build(node: DictConfig, *arguments: Any) -> Any:
    """What the node's `_target_` makes; a user's mistake in it comes out as it was raised, not in Hydra's wrapping."""
    try:
        return instantiate(node, *arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__)) from error
        raise


def describe(cfg: DictConfig) -> Run:
    """What was asked, in plain types, with a name that tells this run from its neighbours."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if "hydra/" not in k}
    given = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    swept = {key: given[key] for key in os.environ.get("GROKBIT_SWEPT", "").split(",") if key in given}
    in_sweep = hydra.mode == RunMode.MULTIRUN
    name = " ".join(f"{k}={v}" for k, v in swept.items()) or f"{choices['model']} {choices['optim']} seed={cfg.seed}"
    return Run(
        name=name,
        study=cfg.name,
        folder=Path(hydra.runtime.output_dir).resolve(),
        config=cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)),
        overrides=overrides,
        choices=choices,
        sweep=Path(hydra.sweep.dir).resolve() if in_sweep else None,
        swept=swept,
    )


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
        "train_s": state.seconds,
        "samples_per_s": rate / (state.data.shape.length if state.data.unit == "token" else 1),
        "tokens_per_s": rate if state.data.unit == "token" else None,
        "peak_rss_mb": folder.peak_rss_mb(),
        "params": sum(p.numel() for p in state.model.parameters()),
        "weights_sha256": weights_digest(state.model),
    }
