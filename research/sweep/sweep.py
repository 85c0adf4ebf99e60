"""A sweep from its first look at the settings to its report."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from optuna.study import Study

from research.preflight.overrides import to_override
from research.run_dir import read_json, write_json
from research.sweep import supervisor
from research.sweep.compose import Composer
from research.sweep.plan import SWEEP_SPEC_FILE, Plan, describe_plan, make_plan, resolve_folder
from research.sweep.ranks import END_MESSAGE, Ranks
from research.sweep.settings import parse_settings
from research.sweep.study import (
    InOrderSampler,
    instantiate_setting,
    load_or_create_study,
    make_sampler,
    redact_url,
    silence_optuna_warnings,
)
from research.sweep.worker import Worker
from research.tracking.optuna_storage import is_storage_unreachable

log = logging.getLogger(__name__)


def run_sweep(
    raw_settings: dict[str, Any], arguments: list[str], config: DictConfig, context: HydraContext, task: TaskFunction
) -> None:
    """Run the study or the grid. Raises ValueError before the first trial where something is wrong."""
    settings = parse_settings(raw_settings)
    plan = make_plan(settings, arguments, config, context)
    if settings.dry_run:
        print("\n".join(describe_plan(plan)))
        return
    ranks, worker = Ranks(), supervisor.get_worker_spec()
    if ranks.world_size > 1 and settings.workers > 1:
        raise ValueError(f"hydra.sweeper.workers={settings.workers}: each worker is one process; leave out torchrun or workers")
    composer = Composer(context.config_loader)
    quick = HydraContext(config_loader=cast(ConfigLoader, composer), callbacks=context.callbacks)
    if ranks.rank > 0:
        ranks.follow(Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task))
        return
    resolve_folder(plan, worker)
    study = prepare_study(plan)
    with read_write(config.hydra), open_dict(config):
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={to_override(str(plan.folder))}")
        config.hydra.sweep.dir = str(plan.folder)
    launcher = Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task)
    work = Worker(plan, study, launcher, ranks, composer)
    with finalize(plan, work, is_main_process=worker is None):
        if worker is None:
            begin(plan, work)
        if worker is None and (settings.workers > 1 or settings.devices):
            gc.enable()  # train.py disables it, and research.run, which enables it, never runs in this process
            supervisor.supervise(settings, plan.folder, plan.name, work)
        else:
            work.run_all()
    if worker is None:
        work.check_failures()


@contextmanager
def finalize(plan: Plan, worker: Worker, is_main_process: bool) -> Iterator[None]:
    """However it ends: what is held is let go, and the process that the user started reports.

    A storage that is gone ends it in a line: nothing is lost, and all that follows needs the storage too.
    """
    try:
        yield
    except Exception as error:
        if not is_storage_unreachable(error):
            raise
        why = f"hydra.sweeper.storage={redact_url(plan.storage)} is gone: {str(error.__cause__ or error).splitlines()[0]}"
        raise ValueError(f"{why}\nthe same command goes on once it is back") from error
    finally:
        worker.ranks.send(END_MESSAGE)
        worker.progress.close()
        try:
            worker.queue.close()
            if is_main_process:
                finish(plan, worker)
        except Exception as error:
            if not is_storage_unreachable(error):  # else it has been said
                raise


def prepare_study(plan: Plan) -> Study:
    """The plan's study."""
    s = plan.settings
    choose = InOrderSampler(plan.grid) if plan.grid is not None else make_sampler(s.sampler)
    prune = instantiate_setting(s.pruner, "hydra.sweeper.pruner") if s.has_pruner else optuna.pruners.NopPruner()
    study = load_or_create_study(plan.name, plan.storage, choose, prune, plan.directions, plan.spec)
    if s.metrics:
        with silence_optuna_warnings():
            study.set_metric_names([*s.metrics])
    return study


def begin(plan: Plan, worker: Worker) -> None:
    """Leave word of the sweep in its folder, and the configurations to begin with in its study."""
    study = worker.study
    note = {"study": study.study_name, "digest": plan.digest, "total": plan.total, "over": False, **plan.spec}
    write_json(plan.folder / SWEEP_SPEC_FILE, note | {"max_failure_rate": plan.settings.max_failure_rate})
    with worker.queue.lock_folder():
        trials = study.get_trials(deepcopy=False)
        if study.user_attrs.get("over"):
            study.set_user_attr("over", "")  # by the settings of an earlier command: these judge anew
        for params in plan.settings.enqueue if not trials else ():
            study.enqueue_trial(params, skip_if_exists=True)
    done = worker.queue.count_used([t for t in trials if t.state.is_finished()])
    kind = "runs in their order" if plan.grid is not None else "trials"
    worker.progress.print_row(
        "sweep", f"{plan.total} {kind}, {', '.join(plan.directions)}" + (f": going on after {done}" if done else "")
    )
    worker.progress.print_row("folder", str(plan.folder))


def finish(plan: Plan, worker: Worker) -> None:
    """The note, the report and where it is; also after Ctrl-C."""
    from research.report.report import report

    study = worker.study
    reason = study.user_attrs.get("over", "")
    over = worker.queue.count_used([t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]) >= plan.total
    write_json(plan.folder / SWEEP_SPEC_FILE, read_json(plan.folder / SWEEP_SPEC_FILE) | {"reason": reason})
    try:
        report(plan.folder, study, plots=plan.settings.plots)
    except Exception as error:  # the trials are kept: no reason to lose what the sweep itself has to say
        log.warning("no report: %s: %s; python -m research.report %s", type(error).__name__, error, plan.folder, exc_info=True)
    # Only now, after the report: a sweep that was killed before it is gone on with, and makes it then.
    write_json(plan.folder / SWEEP_SPEC_FILE, read_json(plan.folder / SWEEP_SPEC_FILE) | {"over": over or bool(reason)})
    worker.progress.print_sweep_end(plan.folder / "results.md")
