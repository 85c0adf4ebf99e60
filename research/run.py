"""The composition root: config becomes objects here and only here."""

import copy
import gc
import logging
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from research import run_dir
from research.cli import describe_error, redact_output
from research.composition.pretrained import use_own_files
from research.composition.recorded import FREE_SETTINGS, OUTER_SETTINGS, Difference, list_differences, list_moved, load_config
from research.contracts import contract
from research.data.spec import Dataset
from research.files import locks
from research.load import check_targets, instantiate
from research.losses import Loss, Objective
from research.metrics import Metric
from research.models.hub import Hub
from research.options.signature import list_plain_settings
from research.preflight.program import name_own_lines, redact_config
from research.preflight.run_config import build_run_config, complete_config
from research.run_dir import RunConfig, Summary
from research.seeding import seed_all
from research.signals import Stopped, get_exit_code, get_launched_ranks, watch
from research.tracking import history
from research.tracking.environment import describe_environment, find_changes
from research.tracking.jsonl import FAILED, FINISHED, KILLED, PRUNED, STOPPED, Tracker
from research.tracking.run_folder import begin_run_folder, discard_run_folder
from research.training import distributed
from research.training.files import check_kinds, separate_files
from research.training.outcome import describe_outcome, is_finished
from research.training.state import PRUNED_REASON, RunObjective, State
from research.training.task import check_task
from research.training.trainer import Trainer

Task = tuple[Dataset[Any], Loss, dict[str, Metric], Objective | None]
log = logging.getLogger(__name__)


@name_own_lines()
def run(cfg: DictConfig) -> float:
    """Train as `cfg` says; return the best value of cfg.monitor. The run folder and the tracker tell how it went.

    Raise SystemExit where a signal ended the run early, its state saved: 130 after Ctrl-C, 129 after SIGHUP, else 143.
    """
    if not gc.isenabled():  # since the preflight: nothing that is imported is garbage, looking for some took a second a run
        gc.freeze()
        gc.enable()
    torch.set_flush_denormal(True)  # below 1e-38 is 0: in long runs Adam's squares come to that, at ten times the price
    redact_output()
    redact_hydra_files()
    cfg = complete_config(cfg)
    check_targets(cfg)  # before anything is built or written
    cfg = drop_plain_settings(cfg)
    cfg, task = count_epochs(cfg) if cfg.epochs else (cfg, None)
    run_config = build_run_config(cfg)
    trainer: Trainer = instantiate(cfg.trainer)  # from here on the processes of the run talk to each other
    value, writes = distributed.broadcast(get_finished_value(run_config)), get_launched_ranks()[0] == 0
    tracker = instantiate(cfg.tracker) if writes else Tracker()
    with watch() as signals:
        if value is not None:
            tracker.send_rest(run_config)
        else:
            with locks.lock(run_config.folder) if writes else nullcontext():
                state = train(cfg, run_config, trainer, tracker, task)
            signals.signum = signals.signum or state.signum  # another process's
            value = state.progress.best.get(cfg.monitor, math.nan)
    if signals.signum:
        raise SystemExit(get_exit_code(signals.signum)) from Stopped(signals.signum)
    return float(value)


def drop_plain_settings(cfg: DictConfig) -> DictConfig:
    """Return a copy without the loss settings that a `_target_` of one's own does not take, where they change nothing."""
    copied = copy.deepcopy(cfg)
    with open_dict(copied):
        for name in list_plain_settings(copied.loss):
            del copied.loss[name]
    return copied


def count_epochs(cfg: DictConfig) -> tuple[DictConfig, Task]:
    """Build the task; return the configuration with the steps that `epochs` passes over its data take, and the task."""
    try:
        task = build_task(cfg)
    except BaseException:
        discard_run_folder(Path(HydraConfig.get().runtime.output_dir))
        raise
    counted, num_samples = copy.deepcopy(cfg), min(cfg.trainer.overfit or math.inf, len(task[0].train))
    counted.steps = math.ceil(cfg.epochs * num_samples / cfg.trainer.batch_size)
    return counted, task


def redact_hydra_files() -> None:
    """Take the passwords out of what Hydra has written before this job: a launcher's process does not begin in train.py."""
    hydra = HydraConfig.get()
    for file in Path(hydra.runtime.output_dir, hydra.output_subdir).glob("*.yaml") if hydra.output_subdir else ():
        run_dir.replace_text(file, OmegaConf.to_yaml(redact_config(OmegaConf.load(file))))


def train(cfg: DictConfig, run_config: RunConfig, trainer: Trainer, tracker: Tracker, task: Task | None = None) -> State:
    """Begin the run folder and the tracker, build every part by its `_target_`, fit, and write down how it ended."""
    started, status, error, folder, writes = time.perf_counter(), FAILED, "", None, distributed.rank() == 0
    try:
        task = task or build_task(cfg)  # a wrong input leaves nothing behind
        if writes and not run_config.resumed:
            folder = begin(run_config, tracker)  # before anything else can go wrong
        state = setup(cfg, run_config, trainer, tracker, *task)
        if writes and run_config.resumed:
            folder = begin(run_config, tracker)  # only now: until its checkpoint fits, the folder is as it was
        tracker.state = trainer.fit(state)
        status = STOPPED if state.signum else PRUNED if state.stop == PRUNED_REASON else FINISHED
        return state
    except BaseException as failure:
        error = describe_error(failure)
        status = KILLED if isinstance(failure, KeyboardInterrupt | Stopped) else FAILED
        log.info("the run failed", exc_info=True)  # to train.log; the terminal gets one line
        if tracker.state:
            tracker.state.error = error
        raise
    finally:
        outcome: dict[str, Any] = describe_outcome(tracker.state) | {"mlflow_run_id": tracker.run_id}
        wall_s = time.perf_counter() - started
        summary = Summary(status=status, error=error, wall_s=wall_s, config=run_config.digest, **outcome)
        try:
            if folder and not (tracker.state and tracker.state.has_lost_folder):
                summary.write(folder)
        finally:
            tracker.finish(status, asdict(summary))  # also where the disk is full
        if task is None and writes and not run_config.resumed:
            discard_run_folder(run_config.folder)


@contract
def begin(run_config: RunConfig, tracker: Tracker) -> Path:
    """Write down what was requested, and start the tracker; return the run folder."""
    check_kinds(run_config.folder)
    config_yaml = OmegaConf.to_yaml(OmegaConf.create(run_config.config))
    separate_files(run_config.folder)
    begin_run_folder(run_config, config_yaml, describe_environment(), find_changes())
    tracker.start(run_config)
    return run_config.folder


@contract
def build_task(cfg: DictConfig) -> Task:
    """Return the data, the loss, the metrics of evaluations and the objective. Raise ValueError where they do not fit."""
    data = instantiate(cfg.data, key="data")
    metrics = {name: instantiate(node, key=f"metrics.{name}") for name, node in (cfg.get("metrics") or {}).items()}
    loss = instantiate(cfg.loss, key="loss")
    check_task(data, loss, metrics, cfg.monitor)
    objective = instantiate(cfg.objective, loss, key="objective") if cfg.get("objective") else None
    if isinstance(objective, RunObjective):
        objective.check(data)
    return data, loss, metrics, objective


@contract
def setup(
    cfg: DictConfig,
    run_config: RunConfig,
    trainer: Trainer,
    tracker: Tracker,
    data: Dataset[Any],
    loss: Loss,
    metrics: Mapping[str, Metric],
    objective: Objective | None,
) -> State:
    """Build every part, and load the checkpoint that the run is resumed from."""
    folder, resume, resumed = distributed.broadcast((run_config.folder, run_config.resume, run_config.resumed))
    seed_all(cfg.seed)
    node = OmegaConf.create(use_own_files(run_config.config, resume)) if resume else cfg.model
    own = instantiate(node, data.shape, key="model")
    model = instantiate(cfg.finetune, own, key="finetune") if cfg.get("finetune") else own
    model = trainer.to_device(model)
    optimizer = instantiate(cfg.optim, model, key="optim")
    callbacks = [instantiate(node, key=f"callbacks.{name}") for name, node in cfg.callbacks.items()]
    state = trainer.setup(
        model,
        optimizer,
        instantiate(cfg.schedule, key="schedule"),
        loss,
        data,
        [tracker, *callbacks],
        objective=objective,
        metrics=metrics,
        monitor=cfg.monitor,
        name=run_config.name,
        folder=folder,
        config=run_config.config,
        config_digest=run_config.digest,
        in_sweep=run_config.in_sweep,
        resume=resume,
        weights_only=cfg.resume.weights_only and not resumed,
    )
    if resume and (there := load_config(resume)[0]):
        forget_other_result(state, list_differences(run_config.config, there, (*FREE_SETTINGS, *list_moved(there))), resumed)
    if folder and distributed.rank() == 0:  # only now: until its checkpoint fits, the folder is as it was
        if data.tokenizer:
            data.tokenizer.save(folder / run_dir.TOKENIZER_FOLDER)
        if isinstance(own, Hub):
            own.save_config(folder / run_dir.MODEL_FOLDER)
    return state


def forget_other_result(state: State, differences: list[Difference], resumed: bool) -> None:
    """Let a new run report no number of the run that it branches off, which had other settings.

    Raise ValueError where no step is left: whatever it reported would be of those settings.
    """
    if not differences:
        return
    if (step := state.progress.step) >= state.info.steps:
        texts = "; ".join(map(str, differences[:3]))
        fix = f"give the settings that it was trained with, or more steps than {step}"
        raise ValueError(f"resume: step {step} of {state.info.steps} is done with other settings: {texts}\n{fix}")
    if not resumed:
        state.progress.best = {}


def get_finished_value(run_config: RunConfig) -> float | None:
    """Return the value that this very run has reached already; None where there is something left to do."""
    # A trial, or resume=auto, has a run of its own there also where that saves no checkpoints.
    continues = run_config.resumed or run_config.in_sweep or run_config.config["resume"]["path"] == "auto"
    summary = run_dir.read_summary(run_config.folder) if continues else None
    if run_config.resumed and summary is None and (run_config.folder / run_dir.SUMMARY_FILE).exists():
        log.warning("%s cannot be read; the run continues at its checkpoint", run_config.folder / run_dir.SUMMARY_FILE)
    if not (summary and is_finished(summary, run_config.in_sweep) and is_of(summary, run_config)):
        return None
    if contradiction := history.find_contradiction(run_config.folder, summary):
        log.warning("%s and its metrics.jsonl differ: %s; the checkpoint decides", run_config.folder, contradiction)
        return None
    print(f"finished already: {run_config.folder}, best {summary.monitor} {summary.value}")
    return math.nan if summary.value is None else float(summary.value)


def is_of(summary: Summary, run_config: RunConfig) -> bool:
    """Return whether a summary in the run's folder is of this very configuration, but for who watches."""
    if summary.config == run_config.digest:
        return True
    there = load_config(run_config.folder)[0]
    is_theirs = replace(run_config, config=there).digest == summary.config
    return is_theirs and not list_differences(run_config.config, there, OUTER_SETTINGS)
