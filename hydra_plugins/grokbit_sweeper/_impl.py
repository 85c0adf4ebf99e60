"""A sweep from its first look at the settings to its report."""

import logging
from typing import Any, cast

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from optuna.exceptions import StorageInternalError
from optuna.study import Study

from hydra_plugins.grokbit_sweeper import _study, _workers
from hydra_plugins.grokbit_sweeper._compose import Composer
from hydra_plugins.grokbit_sweeper._plan import NOTE, Plan, place, planned, told
from hydra_plugins.grokbit_sweeper._ranks import END, Ranks
from hydra_plugins.grokbit_sweeper._settings import settled
from hydra_plugins.grokbit_sweeper._work import Work
from research.folder import read_json, write_json
from research.preflight.overrides import written

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
    if worker is None:
        begin(plan, study)
    with read_write(config.hydra), open_dict(config):
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={written(str(plan.folder))}")
        config.hydra.sweep.dir = str(plan.folder)
    launcher = Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task)
    work = Work(plan, study, launcher, ranks, composer)
    try:
        if worker is None and settings.workers > 1:
            _workers.supervise(settings, plan.folder, plan.name, work)
        else:
            work.all()
    except StorageInternalError as error:
        why = f"hydra.sweeper.storage={_study.shown(plan.storage)} is gone: {str(error.__cause__ or error).splitlines()[0]}"
        raise ValueError(f"{why}\nthe same command goes on once it is back") from error
    finally:
        ranks.tell(END)
        work.screen.close()
        work.queue.close()
        if worker is None:
            finish(plan, work)
    if worker is None:
        work.judge()


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


def begin(plan: Plan, study: Study) -> None:
    """Leave word of the sweep in its folder, and the configurations to begin with in its study."""
    trials = study.get_trials(deepcopy=False)
    note = {"study": study.study_name, "digest": plan.digest, "total": plan.total, "over": False, **plan.asked}
    write_json(plan.folder / NOTE, note)
    for params in plan.settings.enqueue if not trials and plan.grid is None else ():
        if unknown := set(params) - set(plan.space.parameters):
            raise ValueError(f"hydra.sweeper.enqueue: the sweep has no parameter {', '.join(sorted(unknown))}")
        study.enqueue_trial(params, skip_if_exists=True)
    done = sum(t.state.is_finished() for t in trials)
    kind = "runs in their order" if plan.grid is not None else "trials"
    print(f"{'sweep':<16} {plan.total} {kind}, {', '.join(plan.ways)}" + (f": going on after {done}" if done else ""))
    print(f"{'folder':<16} {plan.folder}")


def finish(plan: Plan, work: Work) -> None:
    """The note, the report and where it is; also after Ctrl-C."""
    from research.report import report

    study = work.study
    reason = study.user_attrs.get("over", "")
    over = work.queue.counted([t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]) >= plan.total
    write_json(plan.folder / NOTE, read_json(plan.folder / NOTE) | {"over": over or bool(reason), "reason": reason})
    try:
        report(plan.folder, study, plots=plan.settings.plots)
    except Exception as error:  # the trials are kept: no reason to lose what the sweep itself has to say
        log.warning("no report: %s: %s; python -m research.report %s", type(error).__name__, error, plan.folder, exc_info=True)
    work.screen.ends(plan.folder / "results.md")
