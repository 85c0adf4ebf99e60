"""A sweep from its first look at the settings to its report."""

import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.study import Study
from optuna.trial import Trial, TrialState

from hydra_plugins.grokbit_sweeper import _space, _study, _workers
from hydra_plugins.grokbit_sweeper._compose import Composer
from hydra_plugins.grokbit_sweeper._objective import Outcome, constrain, outcome, reduced
from hydra_plugins.grokbit_sweeper._queue import Queue
from hydra_plugins.grokbit_sweeper._settings import Settings, settled
from hydra_plugins.grokbit_sweeper._space import Space, written
from hydra_plugins.grokbit_sweeper._stop import Ending
from research.folder import read_json, write_json
from research.trial import PRUNED, VARIABLE

log = logging.getLogger(__name__)
NOTE = "study.json"  # in the folder of a sweep: what it is for, and whether it is over
GRID_AT_MOST = 100_000


@dataclass
class Plan:
    """What all processes of a sweep agree on."""

    settings: Settings
    space: Space
    config: DictConfig
    ways: list[str]  # the directions
    grid: list[dict[str, Any]] | None  # the combinations, where they are simply run in their order
    total: int
    asked: dict[str, Any] = field(default_factory=dict)  # what must be the same where the study goes on
    folder: Path = Path()
    name: str = ""
    storage: Any = None

    @property
    def digest(self) -> str:
        return sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()[:12]


def sweep(given: dict[str, Any], arguments: list[str], config: DictConfig, context: HydraContext, task: TaskFunction) -> None:
    """Run the study or the grid. Raises ValueError before the first trial where something is wrong."""
    settings = settled(given)
    plan = planned(settings, arguments, config, context)
    if settings.dry_run:
        print("\n".join(told(plan)))
        return
    worker = _workers.mine()
    place(plan, worker)
    study = opened(plan)
    if worker is None:
        begin(plan, study)
    with open_dict(config):
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={written(str(plan.folder))}")
        config.hydra.sweep.dir = str(plan.folder)
    quick = HydraContext(config_loader=cast(ConfigLoader, Composer(context.config_loader)), callbacks=context.callbacks)
    launcher = Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task)
    work = Work(plan, study, launcher)
    try:
        if worker is None and settings.workers > 1:
            _workers.supervise(settings, plan.folder, plan.name, work.over)
        else:
            work.all()
    finally:
        work.queue.close()
        if worker is None:
            finish(plan, study)
    work.judge()


def planned(settings: Settings, arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """What is to be run. Raises ValueError for a space that cannot be."""
    space = _space.read(settings.params, arguments, settings.when, context.config_loader)
    node = settings.sampler
    grid_asked = node is not None and str(node["_target_"]).endswith("GridSampler")
    if grid_asked and not space.discrete:
        loose = [key for key, each in space.parameters.items() if not each.texts]
        raise ValueError(f"hydra/sweeper/sampler=grid: {', '.join(loose)} has no values to go through; give choices or ranges")
    grid = None
    if space.discrete and (node is None or grid_asked) and not settings.custom_search_space:
        if space.size() > GRID_AT_MOST:
            raise ValueError(f"-m: a grid of {space.size():,} runs; name a sampler, as hydra/sweeper/sampler=tpe, for a study")
        grid = list(space.grid())
    total = min(settings.n_trials or len(grid), len(grid)) if grid is not None else settings.n_trials or 20
    monitor = OmegaConf.select(config, "monitor", throw_on_missing=False) if "monitor" in config else None
    ways = _study.directions(
        settings.direction, settings.metrics[0] if settings.metrics else monitor, len(settings.metrics) or 1
    )
    asked = {
        "space": {key: each.told() for key, each in space.parameters.items()},
        "fixed": sorted(space.fixed.values()),
        "directions": ways,
        "metrics": list(settings.metrics),
        "repeats": settings.repeats,
        "kind": "grid" if grid is not None else "study",
    }
    return Plan(settings, space, config, ways, grid, total, asked)


def place(plan: Plan, worker: dict[str, Any] | None) -> None:
    """Which folder and which study: those of the same command that are not finished, where there are such."""
    s, fresh = plan.settings, Path(plan.config.hydra.sweep.dir).absolute()
    if worker:
        plan.folder, plan.name = Path(worker["folder"]), worker["study"]
    elif s.study_name and s.home:
        plan.folder, plan.name = Path(s.home).absolute() / s.study_name.replace("/", "_"), s.study_name
    else:
        begun = unfinished(plan) if s.home and not s.study_name else None
        plan.folder = begun or fresh
        plan.name = s.study_name or read_json(plan.folder / NOTE).get("study") or plan.folder.name
    plan.storage = s.storage or _study.journal(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)


def unfinished(plan: Plan) -> Path | None:
    """The newest sweep of this very command in the home that has trials left to run."""
    home = Path(str(plan.settings.home))
    for note in sorted(home.glob(f"*/{NOTE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        held = read_json(note)
        if held.get("digest") == plan.digest and not (held.get("over") and held.get("total", 0) >= plan.total):
            return note.parent.absolute()
    return None


def opened(plan: Plan) -> Study:
    """The plan's study."""
    s = plan.settings
    choose = _study.InOrder(plan.grid) if plan.grid is not None else _study.sampler(s.sampler)
    prune = _study.built(s.pruner, "hydra.sweeper.pruner") if s.prunes else optuna.pruners.NopPruner()
    study = _study.opened(plan.name, plan.storage, choose, prune, plan.ways, plan.asked)
    if s.metrics:
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


def finish(plan: Plan, study: Study) -> None:
    """The note and the report; also after Ctrl-C."""
    from research.report import report

    ended = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
    over = ended >= plan.total or bool(study.user_attrs.get("over"))
    write_json(plan.folder / NOTE, read_json(plan.folder / NOTE) | {"over": over, "reason": study.user_attrs.get("over", "")})
    report(plan.folder, study, plots=plan.settings.plots)


class Work:
    """One process of a sweep: takes trials until there are no more."""

    def __init__(self, plan: Plan, study: Study, launcher: Any) -> None:
        self.plan, self.study, self.launcher, self.settings = plan, study, launcher, plan.settings
        self.queue = Queue(study, plan.folder, plan.total, self.settings.lease, self.settings.max_retries)
        self.ending = Ending(self.settings)
        basic = type(launcher).__name__ == "BasicLauncher"
        self.batch = self.settings.n_jobs or (1 if basic else len(plan.grid) if plan.grid is not None else 2)
        self.last: BaseException | None = None
        custom = self.settings.custom_search_space
        self.more = get_method(custom) if custom else None

    def all(self) -> None:
        """Trial after trial; where others still run, wait: they may die, and somebody has to go on with theirs."""
        while not self.over():
            trials, later = self.taken()
            if trials:
                self.run(trials)
            elif not later:
                return
            else:
                time.sleep(0.5)

    def over(self) -> bool:
        """Whether no other trial begins; whoever finds that first leaves word."""
        if reason := self.ending.reason(self.study):
            if not reason.startswith("timeout"):  # that is this process's own
                self.study.set_user_attr("over", reason)
            print(f"{'stopped':<16} {reason}")
            return True
        return self.failures() > self.allowed() or _workers.orphaned()

    def taken(self) -> tuple[list[Trial], bool]:
        """As many trials as the launcher gets at once, each with its values; those that need not run are told at once."""
        trials: list[Trial] = []
        later = True
        while later and len(trials) < self.batch:
            trial, later = self.queue.next()
            if trial is None:
                break
            if self.suggested(trial):
                trials.append(trial)
        return trials, later

    def suggested(self, trial: Trial) -> bool:
        """Whether the trial, which has its values now, has to be run."""
        self.plan.space.suggest(trial)
        if self.more is not None:
            for key, override in self.plan.space.fixed.items():
                trial.set_user_attr(key, override.partition("=")[2])
            self.more(self.plan.config, trial)
        if self.settings.dedup == "allow" or self.plan.grid is not None:
            return True
        same = [t for t in self.study.get_trials(deepcopy=False)
                if t.number < trial.number and t.params == trial.params and t.state == TrialState.COMPLETE]  # fmt: skip
        if not same:
            return True
        if self.settings.dedup == "reuse":
            trial.set_user_attr("reused", same[0].number)
            self.queue.done(trial)
            self.study.tell(trial, same[0].values)
            log.info("#%d is #%d again: its result is used", trial.number, same[0].number)
            return False
        again = sum("again" in t.user_attrs for t in self.study.get_trials(deepcopy=False))
        if again >= 10 * self.plan.total:
            return True  # the space has no more to give
        trial.set_user_attr("again", same[0].number)
        self.queue.put_aside(trial, f"the same as {same[0].number}")
        return False

    def run(self, trials: list[Trial]) -> None:
        """Launch and judge them. Where a signal ends this process, they stay to be gone on with."""
        if self.settings.repeats["n"] > 1:
            for trial in trials:
                self.told(trial, self.repeated(trial))
            return
        returns = self.launched([(trial, self.overrides(trial), str(trial.number)) for trial in trials])
        for trial, result in zip(trials, returns, strict=True):
            self.told(trial, self.outcome(trial, result))

    def repeated(self, trial: Trial) -> Outcome:
        """One configuration over several seeds: the pruner sees the value so far after each."""
        repeats, found = self.settings.repeats, list[Outcome]()
        key = repeats["over"]
        given = self.plan.space.fixed.get(key, "").partition("=")[2] or OmegaConf.select(self.plan.config, key)
        for index in range(repeats["n"]):
            overrides = [o for o in self.overrides(trial) if o.partition("=")[0] != key]
            jobs = [(trial, [*overrides, f"{key}={int(given) + index}"], f"{trial.number}/{index}")]
            found.append(self.outcome(trial, self.launched(jobs)[0]))
            if found[-1].error:
                return found[-1]
            so_far = reduced(found, repeats["reduce"])
            trial.set_user_attr("repeats", [each.values[0] for each in found])
            if self.settings.prunes:
                self.study._storage.set_trial_intermediate_value(trial._trial_id, index, so_far.values[0])
                if self.study.pruner.prune(self.study, self.study._storage.get_trial(trial._trial_id)):
                    trial.set_user_attr(PRUNED, index)
                    break
        return so_far

    def launched(self, jobs: list[tuple[Trial, list[str], str]]) -> Sequence[JobReturn]:
        """The launcher's answers; each job runs in its trial's folder."""
        first = jobs[0][0].number
        for trial, _, place in jobs:
            params = trial.params
            swept = {key: each.text(params[key]) for key, each in self.plan.space.parameters.items() if key in params}
            print(f"{'trial':<16} #{place} " + " ".join(f"{key}={text}" for key, text in swept.items()), flush=True)
        plain = all(place == str(first + i) for i, (_, _, place) in enumerate(jobs))
        lines = [overrides if plain else [*overrides, f"hydra.sweep.subdir={place}"] for _, overrides, place in jobs]
        result: Sequence[JobReturn] = self.launcher.launch(lines, initial_job_idx=first)
        return result

    def overrides(self, trial: Trial) -> list[str]:
        """What the job of a trial is started with."""
        lines = self.plan.space.overrides(trial.params)
        tries = self.study._storage.get_trial_user_attrs(trial._trial_id).get("tries", 1)
        if tries > 1 and OmegaConf.select(self.plan.config, "resume") is not None:
            lines.append("resume.path=auto")
        handle = {"storage": self.plan.storage, "study": self.study.study_name, "id": trial._trial_id, "number": trial.number}
        if self.settings.prunes and self.settings.repeats["n"] == 1:
            handle["pruner"] = self.settings.pruner
        return [*lines, f"++hydra.job.env_set.{VARIABLE}={written(json.dumps(handle))}"]

    def outcome(self, trial: Trial, result: JobReturn) -> Outcome:
        """What came of a job."""
        found = outcome(result, self.settings.metrics, len(self.plan.ways), tuple(self.settings.constraints))
        self.last = found.cause or self.last
        trial.set_user_attr("folder", str(found.folder or ""))
        return found

    def told(self, trial: Trial, found: Outcome) -> None:
        """The study hears of it, unless somebody else has taken the trial over."""
        self.queue.done(trial)
        if not self.queue.owns(trial):
            log.warning("#%d was taken over by another process, after a pause longer than hydra.sweeper.lease", trial.number)
            return
        attrs = self.study._storage.get_trial_user_attrs(trial._trial_id)
        constrain(trial, found, self.settings.constraints)
        if found.error:
            trial.set_user_attr("error", found.error[:500])
            self.study.tell(trial, state=TrialState.FAIL)
            log.warning("#%d failed: %s", trial.number, found.error)
        elif PRUNED in attrs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, found.values)
        self.progress(trial.number)

    def progress(self, number: int) -> None:
        """One line after each trial: how it went, the best so far, the time left."""
        trials = self.study.get_trials(deepcopy=False)
        this, done = trials[number], [t for t in trials if t.state.is_finished() and t.duration]
        complete = this.state == TrialState.COMPLETE
        value = ", ".join(f"{v:.4g}" for v in this.values) if complete else this.state.name.lower()
        line = f"{'trial':<16} #{number} {value}"
        if len(self.plan.ways) == 1 and any(t.state == TrialState.COMPLETE for t in trials):
            try:
                line += f", best {self.study.best_value:.4g} (#{self.study.best_trial.number})"
            except ValueError:  # none that keeps to the constraints
                line += ", none keeps to the constraints"
        took = statistics.mean(t.duration.total_seconds() for t in done if t.duration) if done else 0.0
        left = max(0, self.plan.total - len(done))
        print(
            f"{line}, {len(done)} of {self.plan.total} done, about {clock(left * took / self.settings.workers)} left",
            flush=True,
        )

    def failures(self) -> int:
        return sum(t.state == TrialState.FAIL and "aside" not in t.user_attrs for t in self.study.get_trials(deepcopy=False))

    def allowed(self) -> int:
        return int(self.settings.max_failure_rate * self.plan.total + 1e-9)

    def judge(self) -> None:
        """Raises ValueError where more trials failed than may, or one of a grid did."""
        failed = self.failures()
        if failed > self.allowed() or (failed and self.plan.grid is not None):
            errors = [t.user_attrs["error"] for t in self.study.get_trials(deepcopy=False) if "error" in t.user_attrs]
            rate = f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate:g}"
            told = f"{failed} of {self.plan.total} trials failed, the last with: {errors[-1] if errors else ''}"
            raise ValueError(f"{rate}: {told}") from self.last


def clock(seconds: float) -> str:
    """A time for people."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"


def told(plan: Plan) -> list[str]:
    """What a sweep would run."""
    s = plan.settings
    rows = [("space", f"{key}: {each.told()}") for key, each in plan.space.parameters.items()]
    rows += [("fixed", line) for line in plan.space.fixed.values()]
    rows.append(
        ("objective", ", ".join(f"{name} {way}" for name, way in zip(s.metrics or ("returned",), plan.ways, strict=False)))
    )
    rows.append(("runs" if plan.grid is not None else "trials", str(plan.total * s.repeats["n"])))
    study = optuna.create_study(
        sampler=_study.InOrder(plan.grid) if plan.grid else _study.sampler(s.sampler), directions=plan.ways
    )
    rows.append(("for example", " ".join(plan.space.overrides(plan.space.suggest(study.ask())))))
    known = [float(t) for p in Path(s.home).glob("**/summary.json") if (t := read_json(p).get("wall_s"))] if s.home else []
    if known:
        each = statistics.median(known)
        rows.append(
            ("time", f"about {clock(each * plan.total * s.repeats['n'] / s.workers)}: runs in {s.home} took {clock(each)}")
        )
    else:
        rows.append(("time", "unknown: no run of this name has finished yet"))
    return [f"{name:<16} {value}" for name, value in rows]
