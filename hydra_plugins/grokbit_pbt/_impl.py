"""A population from its first look at the settings to its report."""

import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.grokbit_pbt import _lineage
from hydra_plugins.grokbit_pbt._evolve import Member, begun, evolved, ranked
from hydra_plugins.grokbit_pbt.config import PopulationConf
from hydra_plugins.grokbit_sweeper._compose import Composer
from hydra_plugins.grokbit_sweeper._plan import home
from hydra_plugins.grokbit_sweeper._space import Space, read
from hydra_plugins.grokbit_sweeper._study import ANEW, differences, directions
from research.folder import alive, checkpoints, lock, read_json, write_json
from research.preflight.overrides import written
from research.preflight.resume import FREE
from research.processes import launched
from research.trial import VARIABLE

log = logging.getLogger(__name__)
NOTE = "population.json"  # in the folder of the sweep: what it is for, and each member that has ended
ELSEWHERE = ("_target_", "params", "n_jobs", "study_name", "home")  # settings that do not change what comes out
BOUND = ("model", "data", "steps", "monitor", "name", "out", "resume", "tracker")  # what a checkpoint is bound to


@dataclass
class Plan:
    """What is to be run, and where."""

    settings: PopulationConf
    space: Space
    config: DictConfig
    steps: int
    monitor: str
    maximize: bool
    folder: Path = Path()

    @property
    def asked(self) -> dict[str, Any]:
        """What must be the same where a population goes on."""
        settings = {key: value for key, value in asdict(self.settings).items() if key not in ELSEWHERE}
        told = {"space": {key: each.told() for key, each in self.space.parameters.items()}}
        return settings | told | {"fixed": sorted(self.space.fixed.values()), "steps": self.steps, "maximize": self.maximize}

    @property
    def digest(self) -> str:
        return sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def generations(self) -> int:
        return -(-self.steps // self.settings.interval)

    def end(self, generation: int) -> int:
        """The step that is a generation's last."""
        return min((generation + 1) * self.settings.interval, self.steps)


def sweep(given: dict[str, Any], arguments: list[str], config: DictConfig, context: HydraContext, task: TaskFunction) -> None:
    """Train the population. Raises ValueError before the first member where something is wrong."""
    plan = planned(given, arguments, config, context)
    plan.folder = place(plan)
    with lock(plan.folder):
        with read_write(config.hydra), open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={written(str(plan.folder))}")
            config.hydra.sweep.dir = str(plan.folder)
        quick = HydraContext(config_loader=cast(ConfigLoader, Composer(context.config_loader)), callbacks=context.callbacks)
        launcher = Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task)
        population = Population(plan, launcher)
        population.all()
        best = _lineage.report(plan.folder, population.members, list(plan.space.parameters), plan.monitor, plan.maximize)
        _lineage.attach(OmegaConf.select(config, "tracker.uri"), plan.folder)
        population.save(over=True)
    print(f"{'best':<16} {best.name}: {plan.monitor} {best.value:.4g}; it and its ancestors: {plan.folder / 'lineage.png'}")


def planned(given: dict[str, Any], arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """What is to be run. Raises ValueError, naming the setting that is wrong and what would be right."""
    plain: dict[str, Any] = {
        k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in given.items()
    }
    settings = PopulationConf(**plain)
    space = read(settings.params or {}, arguments, {}, context.config_loader)
    steps = OmegaConf.select(config, "trainer.steps")
    for wrong in [*mistakes(settings), *misfits(settings, space, config, steps)]:
        raise ValueError(wrong)
    (way,) = directions(settings.direction, config.monitor, 1)
    return Plan(settings, space, config, steps, config.monitor, way == "maximize")


def mistakes(s: PopulationConf) -> list[str]:
    """What is wrong with the settings by themselves."""
    options = {"exploit": ("truncation", "tournament"), "explore": ("perturb", "resample")}
    wrong = [f"{k}={getattr(s, k)}: give {' or '.join(o)}" for k, o in options.items() if getattr(s, k) not in o]
    least = {"population": 2, "interval": 1, "n_jobs": 1}
    wrong += [f"{k}={v}: give {n} or more" for k, n in least.items() if (v := getattr(s, k)) is not None and v < n]
    if not 0 < s.share <= 0.5:
        wrong.append(f"share={s.share}: give more than 0 and at most 0.5, as 0.25 for the worst quarter")
    if not s.factors or min(s.factors) <= 0:
        wrong.append(f"factors={s.factors}: give numbers above 0, as [0.8,1.2]")
    if not 0 <= s.resample_probability <= 1:
        wrong.append(f"resample_probability={s.resample_probability}: give a probability from 0 to 1")
    return [f"hydra.sweeper.{line}" for line in wrong]


def misfits(s: PopulationConf, space: Space, config: DictConfig, steps: int) -> list[str]:
    """What is wrong with the settings beside the run's own."""
    wrong = []
    if not space.parameters:
        wrong.append("hydra/sweeper=pbt: there is nothing to evolve; give parameters, as 'lr=tag(log,interval(1e-4,1e-2))'")
    for key in (key.lstrip("+") for key in space.parameters):
        if key in ("optim", "trainer.steps") or (key.split(".")[0] in BOUND and key not in FREE):
            wrong.append(f"{key}: a member cannot go on from another one's checkpoint with another {key}; give it one value")
    if s.interval >= steps:
        fix = f"give fewer, as {max(1, steps // 10)}"
        wrong.append(f"hydra.sweeper.interval={s.interval}: a run has {steps} steps, so nothing would be exploited; {fix}")
    if (processes := launched()[1]) > 1:
        wrong.append(f"hydra/sweeper=pbt: {processes} processes were started, its members run in one each; leave out torchrun")
    if OmegaConf.select(config, "callbacks.checkpoint") is None:
        wrong.append("callbacks.checkpoint: a population lives on checkpoints; give callbacks=default")
    return wrong


def place(plan: Plan) -> Path:
    """The folder: that of the study, or of the same command that was not finished, or a new one."""
    s, fresh = plan.settings, Path(plan.config.hydra.sweep.dir).absolute()
    root = home(s.home, plan.config)
    if root is None:
        return fresh
    if s.study_name:
        return root / s.study_name.replace("/", "_")
    for note in sorted(root.glob(f"*/{NOTE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        held = read_json(note)
        if held.get("digest") == plan.digest and not held.get("over") and not alive(note.parent):
            return note.parent
    return fresh


class Population:
    """Trains generation after generation; what has ended stands in population.json."""

    def __init__(self, plan: Plan, launcher: Any) -> None:
        self.plan, self.launcher, self.settings = plan, launcher, plan.settings
        basic = type(launcher).__name__ == "BasicLauncher"
        self.batch = self.settings.n_jobs or (1 if basic else self.settings.population)
        self.cause: BaseException | None = None
        held = read_json(plan.folder / NOTE)
        if held and (different := differences(held.get("asked"), plan.asked)):
            name = self.settings.study_name or plan.folder.name
            raise ValueError(f"hydra.sweeper.study_name={name} is for something else: {'; '.join(different)}\n{ANEW}")
        self.members = [Member(**each) for each in held.get("members", ())]
        self.save(over=bool(held.get("over")))  # from here on the same command finds it
        going_on = f": going on after {len(self.members)} runs" if self.members else ""
        told = f"{plan.generations} generations of {self.settings.interval} steps, {plan.monitor}"
        print(f"{'population':<16} {self.settings.population} members, {told}{going_on}")
        print(f"{'folder':<16} {plan.folder}", flush=True)

    def of(self, generation: int) -> list[Member]:
        """Those that have ended, in their order."""
        return sorted((m for m in self.members if m.generation == generation), key=lambda m: m.number)

    def save(self, over: bool = False) -> None:
        """Whole or not at all."""
        told = {"digest": self.plan.digest, "over": over, "asked": self.plan.asked}
        write_json(self.plan.folder / NOTE, told | {"members": [asdict(member) for member in self.members]})

    def all(self) -> None:
        """Raises ValueError where all members of a generation failed; the same command tries that generation again."""
        began, first = time.monotonic(), len(self.members)
        for generation in range(self.plan.generations):
            members = self.generation(generation)
            if all(member.value is None for member in members):
                self.members = [member for member in self.members if member.generation != generation]
                self.save()
                told = f"all {len(members)} members of generation {generation} failed, the last with: {members[-1].error}"
                raise ValueError(f"hydra/sweeper=pbt: {told}") from self.cause
            runs = self.settings.population * (self.plan.generations - generation - 1)
            if len(self.members) > first:
                self.progress(members, runs * (time.monotonic() - began) / (len(self.members) - first))

    def generation(self, generation: int) -> list[Member]:
        """Run who has not ended yet."""
        s, parameters = self.settings, self.plan.space.parameters
        before = self.of(generation - 1)
        planned = evolved(before, parameters, s, self.plan.maximize) if generation else begun(parameters, s)
        ended = {member.number for member in self.of(generation)}
        left = [member for member in planned if member.number not in ended]
        for start in range(0, len(left), self.batch):
            self.run(left[start : start + self.batch])
        return self.of(generation)

    def run(self, members: list[Member]) -> None:
        """Launch some, and write down what came of them. Where a signal ends this process, they stay to be gone on with."""
        first = members[0].generation * self.settings.population + members[0].number
        lines = [self.overrides(member) for member in members]
        returns: Sequence[JobReturn] = self.launcher.launch(lines, initial_job_idx=first)
        for member, result in zip(members, returns, strict=True):
            self.told(member, result)
        uri = OmegaConf.select(self.plan.config, "tracker.uri")
        _lineage.tag(uri, members, self.of(members[0].generation - 1))
        self.members += members
        self.save()

    def overrides(self, member: Member) -> list[str]:
        """What a member's run is started with: it goes on where it was killed, or from its parent's last checkpoint."""
        folder, end = self.plan.folder / member.name, self.plan.end(member.generation)
        lines = [*self.plan.space.overrides(member.params), f"hydra.sweep.subdir={member.name}"]
        lines.append(f"++hydra.job.env_set.{VARIABLE}='{{}}'")  # the screen is the sweep's
        if checkpoints(folder):
            lines.append("resume.path=auto")
        else:
            (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed before it could save
            if member.parent is not None:
                parent = self.plan.folder / f"g{member.generation - 1}m{member.parent}"
                lines.append(f"resume.path={written(str(parent))}")
        if end < self.plan.steps:
            lines += ["++callbacks.pause._target_=research.callbacks.pause.Pause", f"++callbacks.pause.step={end}"]
        return lines

    def told(self, member: Member, result: JobReturn) -> None:
        """How the member stands at the end of the generation, or why it failed."""
        summary = read_json(self.plan.folder / member.name / "summary.json")
        member.run_id, member.steps = summary.get("mlflow_run_id"), summary.get("steps") or 0
        try:
            _ = result.return_value
            member.value = summary["metrics"][self.plan.monitor]
            member.best = summary["best"][self.plan.monitor]
            member.error = "" if member.value is not None else f"{self.plan.monitor} is not a number"
        except Exception as error:  # whatever the run raised is this member's affair alone
            self.cause, member.error = error, f"{type(error).__name__}: {error}"[:500]
        params = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in member.params.items())
        told = member.error.partition("\n")[0] if member.error else f"{self.plan.monitor} {member.value:.4g}"
        copied = f" (from m{member.parent})" if member.parent not in (None, member.number) else ""
        print(f"{'member':<16} {member.name}{copied} {params}: {told}", flush=True)

    def progress(self, members: list[Member], left: float) -> None:
        """One line after each generation."""
        best = ranked(members, self.plan.maximize)[0]
        values = [member.value for member in members if member.value is not None]
        copies = sum(member.parent not in (None, member.number) for member in members)
        told = f"best {best.value:.4g} ({best.name}), median {statistics.median(values):.4g}, {copies} copies"
        print(f"{'generation':<16} {best.generation} at step {best.steps}: {told}, about {left:.0f} s left", flush=True)
