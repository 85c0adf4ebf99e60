"""A sweep from its first look at the settings to its report."""

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

from hydra_plugins.grokbit_sweeper import _study, _workers
from hydra_plugins.grokbit_sweeper._compose import Composer
from hydra_plugins.grokbit_sweeper._plan import NOTE, Plan, place, planned, told
from hydra_plugins.grokbit_sweeper._ranks import END, Ranks
from hydra_plugins.grokbit_sweeper._settings import settled
from hydra_plugins.grokbit_sweeper._work import Work
from research.folder import read_json, write_json
from research.preflight.overrides import written
from research.trial import gone

log = logging.getLogger(__name__)


def sweep(given: dict[str, Any], arguments: list[str], config: DictConfig, context: HydraContext, task: TaskFunction) -> None:
    """Run the study or the grid. Raises ValueError before the first trial where something is wrong."""
    settings = settled(given)
    plan = planned(settings, arguments, config, context)
    if settings.dry_run:
        print("\n".join(told(plan)))
        return
    ranks, worker = Ranks(), _workers.mine()
    if ranks.count > 1 and settings.workers > 1:
        raise ValueError(f"hydra.sweeper.workers={settings.workers}: each worker is one process; leave out torchrun or workers")
    composer = Composer(context.config_loader)
    quick = HydraContext(config_loader=cast(ConfigLoader, composer), callbacks=context.callbacks)
    if ranks.rank > 0:
        ranks.follow(Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task))
        return
    place(plan, worker)
    study = opened(plan)
    with read_write(config.hydra), open_dict(config):
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={written(str(plan.folder))}")
        config.hydra.sweep.dir = str(plan.folder)
    launcher = Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task)
    work = Work(plan, study, launcher, ranks, composer)
    with ending(plan, work, first=worker is None):
        if worker is None:
            begin(plan, work)
        if worker is None and (settings.workers > 1 or settings.devices):
            _workers.supervise(settings, plan.folder, plan.name, work)
        else:
            work.all()
    if worker is None:
        work.judge()


@contextmanager
def ending(plan: Plan, work: Work, first: bool) -> Iterator[None]:
    """However it ends: what is held is let go, and the process that the user started reports.

    A storage that is gone ends it in a line: nothing is lost, and all that follows needs the storage too.
    """
    try:
        yield
    except Exception as error:
        if not gone(error):
            raise
        why = f"hydra.sweeper.storage={_study.shown(plan.storage)} is gone: {str(error.__cause__ or error).splitlines()[0]}"
        raise ValueError(f"{why}\nthe same command goes on once it is back") from error
    finally:
        work.ranks.tell(END)
        work.screen.close()
        try:
            work.queue.close()
            if first:
                finish(plan, work)
        except Exception as error:
            if not gone(error):  # else it has been said
                raise


def opened(plan: Plan) -> Study:
    """The plan's study."""
    s = plan.settings
    choose = _study.InOrder(plan.grid) if plan.grid is not None else _study.sampler(s.sampler)
    prune = _study.built(s.pruner, "hydra.sweeper.pruner") if s.prunes else optuna.pruners.NopPruner()
    study = _study.opened(plan.name, plan.storage, choose, prune, plan.ways, plan.asked)
    if s.metrics:
        with _study.quietly():
            study.set_metric_names([*s.metrics])
    return study


def begin(plan: Plan, work: Work) -> None:
    """Leave word of the sweep in its folder, and the configurations to begin with in its study."""
    study = work.study
    note = {"study": study.study_name, "digest": plan.digest, "total": plan.total, "over": False, **plan.asked}
    write_json(plan.folder / NOTE, note | {"max_failure_rate": plan.settings.max_failure_rate})
    with work.queue.turn():
        trials = study.get_trials(deepcopy=False)
        if study.user_attrs.get("over"):
            study.set_user_attr("over", "")  # by the settings of an earlier command: these judge anew
        for params in plan.settings.enqueue if not trials else ():
            study.enqueue_trial(params, skip_if_exists=True)
    done = work.queue.counted([t for t in trials if t.state.is_finished()])
    kind = "runs in their order" if plan.grid is not None else "trials"
    work.screen.row("sweep", f"{plan.total} {kind}, {', '.join(plan.ways)}" + (f": going on after {done}" if done else ""))
    work.screen.row("folder", str(plan.folder))


def finish(plan: Plan, work: Work) -> None:
    """The note, the report and where it is; also after Ctrl-C."""
    from research.report import report

    study = work.study
    reason = study.user_attrs.get("over", "")
    over = work.queue.counted([t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]) >= plan.total
    write_json(plan.folder / NOTE, read_json(plan.folder / NOTE) | {"reason": reason})
    try:
        report(plan.folder, study, plots=plan.settings.plots)
    except Exception as error:  # the trials are kept: no reason to lose what the sweep itself has to say
        log.warning("no report: %s: %s; python -m research.report %s", type(error).__name__, error, plan.folder, exc_info=True)
    # Only now, after the report: a sweep that was killed before it is gone on with, and makes it then.
    write_json(plan.folder / NOTE, read_json(plan.folder / NOTE) | {"over": over or bool(reason)})
    work.screen.ends(plan.folder / "results.md")
