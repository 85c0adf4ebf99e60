"""Run a sweep: check its settings, prepare its study, run its trials, write its report."""

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import optuna
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from optuna.study import Study

from research.cli import first_line, redact, redact_output
from research.contracts import contract
from research.signals import get_signum
from research.sweep.compose import Composer
from research.sweep.objective import find_lack
from research.sweep.plan import Plan, describe_plan, make_plan, set_folder
from research.sweep.ranks import END_MESSAGE, Ranks
from research.sweep.settings import parse_settings
from research.sweep.study import MISMATCH_HINT, InOrderSampler, check_same_spec, instantiate_setting, make_sampler
from research.sweep.supervisor import supervise
from research.sweep.worker import Worker, get_worker_spec
from research.tracking.optuna_storage import STOP_REASON_ATTR, TEXTS_ATTR, get_storage, is_storage_unreachable, silence_optuna
from research.tracking.study_spec import read_study_spec, write_study_spec

log = logging.getLogger(__name__)
SPEC_ATTR = "grokbit"  # the study's attribute with what it is for


def run_sweep(
    raw_settings: dict[str, Any], arguments: list[str], config: DictConfig, context: HydraContext, task: TaskFunction
) -> None:
    """Run the study or the grid. Raise ValueError before the first trial where something is wrong."""
    redact_output()
    settings = parse_settings(raw_settings)
    plan = make_plan(settings, arguments, config, context)
    if settings.dry_run:
        print(redact("\n".join(describe_plan(plan))))
        return
    ranks, worker_spec = Ranks(), get_worker_spec()
    if ranks.world_size > 1 and settings.workers > 1:
        raise ValueError(f"hydra.sweeper.workers={settings.workers}: each worker is one process; leave out torchrun or workers")
    composer = Composer(context.config_loader)
    if ranks.rank > 0:
        ranks.follow(composer.make_launcher(config, context, None, task))
        return
    set_folder(plan, worker_spec)
    study = prepare_study(plan)
    worker = Worker(plan, study, composer.make_launcher(config, context, plan.folder, task), ranks, composer)
    is_main_process = worker_spec is None
    with finalize(worker, is_main_process):
        if is_main_process:
            begin(worker)
        if not is_main_process or not (settings.workers > 1 or settings.devices):
            worker.run_all()
        elif worker.has_trials_left():  # workers would need seconds to find a study finished
            gc.enable()  # train.py disables it, and research.run, which enables it, never runs in this process
            supervise(worker)
    if is_main_process:
        worker.check_failures()


@contextmanager
def finalize(worker: Worker, is_main_process: bool) -> Iterator[None]:
    """Give up held trials and write the report, however the sweep ends.

    Raise ValueError where the storage is gone: nothing is lost, but the report needs it too.
    """
    try:
        with explain_lost_storage(worker.plan.storage):
            yield
    except BaseException as error:
        with suppress(ValueError):  # what ended the sweep is told, not that the storage is gone too
            close(worker, is_main_process, get_signum(error))
        raise
    close(worker, is_main_process)


@contract
def close(worker: Worker, is_main_process: bool, signum: int = 0) -> None:
    """Give up held trials and write the report; `signum` ended the sweep. Raise ValueError where the storage is gone."""
    with explain_lost_storage(worker.plan.storage):
        worker.ranks.send(END_MESSAGE)
        worker.progress.close()
        worker.queue.close()
        if is_main_process:
            finish(worker)
            if signum and worker.has_trials_left():
                size = worker.ranks.world_size
                launcher = ["torchrun", "--nproc-per-node", str(size)] if size > 1 else ["python"]
                worker.progress.print_stop(signum, [*launcher, *sys.argv])


@contextmanager
def explain_lost_storage(storage: str) -> Iterator[None]:
    """Raise ValueError, with what to do, where the storage is gone or has no room."""
    try:
        yield
    except Exception as error:
        if not is_storage_unreachable(error) and find_lack(error) != "room":
            raise
        setting, reason = f"hydra.sweeper.storage={redact(str(storage))}", first_line(error.__cause__ or error)
        problem, fix = ("has no room", "there is room") if find_lack(error) == "room" else ("is gone", "it is back")
        raise ValueError(f"{setting} {problem}: {reason}\nonce {fix}, the same command resumes the sweep") from error


def prepare_study(plan: Plan) -> Study:
    """Return the plan's study, created where it is not there. Raise ValueError if it is for something else."""
    s, name, directions = plan.settings, plan.name, plan.directions
    sampler = InOrderSampler(plan.grid) if plan.grid is not None else make_sampler(s.sampler)
    pruner = instantiate_setting(s.pruner, "hydra.sweeper.pruner") if s.has_pruner else optuna.pruners.NopPruner()
    try:
        storage = get_storage(plan.storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, pruner=pruner, directions=directions, load_if_exists=True
        )
    except Exception as error:  # each kind of storage raises its own
        raise ValueError(f"hydra.sweeper.storage={redact(str(plan.storage))} cannot be used: {first_line(error)}") from error
    known = [direction.name.lower() for direction in study.directions]
    if known != directions:
        difference = f"the study {name} has {', '.join(known)}, not {', '.join(directions)}"
        raise ValueError(f"hydra.sweeper.direction: {difference}\n{MISMATCH_HINT}")
    if SPEC_ATTR in study.user_attrs:
        check_same_spec(name, study.user_attrs[SPEC_ATTR], plan.spec)
    else:
        study.set_user_attr(SPEC_ATTR, plan.spec)
    if texts := [key.lstrip("+") for key, parameter in plan.space.parameters.items() if parameter.stores_texts]:
        study.set_user_attr(TEXTS_ATTR, texts)
    if s.metrics:
        with silence_optuna():
            study.set_metric_names([*s.metrics])
    return study


@contract
def begin(worker: Worker) -> None:
    """Write study.json, and add the configurations to begin with to a new study."""
    plan, study = worker.plan, worker.study
    write_study_spec(plan.folder, plan.study_spec)
    with worker.queue.folder_lock:
        worker.queue.recall_postponed()
        trials = worker.queue.list_trials()
        if study.user_attrs.get(STOP_REASON_ATTR):
            study.set_user_attr(STOP_REASON_ATTR, "")  # an earlier command's reason to end: this command's settings decide anew
        for params in plan.settings.enqueue if not trials else ():
            study.enqueue_trial(params, skip_if_exists=True)
    done = worker.queue.count_used([t for t in trials if t.state.is_finished()])
    kind = "runs in their order" if plan.grid is not None else "trials"
    resumed = f": resumed after {done}" if done else ""
    worker.progress.print_row("sweep", f"{plan.total} {kind}, {', '.join(plan.directions)}{resumed}")
    worker.progress.print_row("folder", str(plan.folder))


@contract
def finish(worker: Worker) -> None:
    """Write the report and print where it is; also after Ctrl-C."""
    from research.report.report import report

    study, folder = worker.study, worker.plan.folder
    reason = str(study.user_attrs.get(STOP_REASON_ATTR, ""))
    spec = replace(read_study_spec(folder), reason=reason)
    write_study_spec(folder, spec)
    sweep = None
    try:
        sweep = report(folder, study, worker.settings.plots, OmegaConf.select(worker.plan.config, "tracker.uri"))
    except Exception as error:  # the trials are safe: their summary must still be printed
        log.warning("no report: %s: %s; python -m research.report %s", type(error).__name__, error, folder, exc_info=True)
    # Only after the report: a sweep that was killed before this line is resumed, and makes its report then.
    write_study_spec(folder, replace(spec, finished=bool(reason) or not worker.has_trials_left()))
    worker.progress.print_sweep_end(folder / "results.md", sweep)
