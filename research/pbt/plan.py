"""What is to be run and where, before anything is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from research.pbt.evolve import create_first_generation
from research.pbt.record import read_population
from research.pbt.settings import PopulationSettings, parse_settings
from research.preflight.resume import CHANGEABLE_KEYS
from research.run_dir import is_locked
from research.sweep.plan import describe_space, format_row, hash_record
from research.sweep.ranks import get_launched_ranks
from research.sweep.space import Space, parse_space
from research.sweep.study import parse_directions

NOT_COMPARED = ("params", "n_jobs", "study_name", "home", "dry_run")  # they do not change the result
FIXED_BY_CHECKPOINT = ("model", "data", "steps", "monitor", "name", "out", "resume", "tracker")


@dataclass
class Plan:
    """What is to be run, and where."""

    settings: PopulationSettings
    space: Space
    config: DictConfig
    steps: int
    monitor: str
    maximize: bool
    folder: Path = Path()

    @property
    def spec(self) -> dict[str, Any]:
        """What must be the same where a population is resumed."""
        settings = {key: value for key, value in asdict(self.settings).items() if key not in NOT_COMPARED}
        space = {"space": self.space.describe(), "fixed": sorted(self.space.fixed.values())}
        return settings | space | {"steps": self.steps, "maximize": self.maximize}

    @property
    def digest(self) -> str:
        return hash_record(self.spec)

    @property
    def generations(self) -> int:
        return -(-self.steps // self.settings.interval)

    def get_last_step(self, generation: int) -> int:
        """Return the step at which a generation ends."""
        return min((generation + 1) * self.settings.interval, self.steps)


def make_plan(raw_settings: dict[str, Any], arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """Return the plan of a command. Raises ValueError with the setting that is wrong and the fix."""
    settings = parse_settings(raw_settings)
    space = parse_space(settings.params, arguments, {}, context.config_loader)
    steps = OmegaConf.select(config, "trainer.steps")
    for conflict in find_conflicts(settings, space, config, steps):
        raise ValueError(conflict)
    (direction,) = parse_directions(settings.direction, (config.monitor,))
    return Plan(settings, space, config, steps, config.monitor, direction == "maximize")


def find_conflicts(s: PopulationSettings, space: Space, config: DictConfig, steps: int) -> list[str]:
    """Return what is wrong with the settings beside the run's own, each with its fix."""
    conflicts = []
    if not space.parameters:
        conflicts.append("hydra/sweeper=pbt: there is nothing to evolve; give parameters, as 'lr=tag(log,interval(1e-4,1e-2))'")
    for key in (key.lstrip("+") for key in space.parameters):
        if key == "seed":
            conflicts.append("seed: all members need the same seed, so that only their settings differ; give it one value")
        if key in ("optim", "trainer.steps") or (key.split(".")[0] in FIXED_BY_CHECKPOINT and key not in CHANGEABLE_KEYS):
            conflicts.append(f"{key}: a checkpoint of another {key} cannot be resumed by a member; give it one value")
    if s.interval >= steps:
        fix = f"give fewer, as {max(1, steps // 10)}"
        conflicts.append(f"hydra.sweeper.interval={s.interval}: a run has {steps} steps, so no member would be copied; {fix}")
    if (processes := get_launched_ranks()[1]) > 1:
        conflicts.append(f"hydra/sweeper=pbt: {processes} processes were started, a member runs in one; leave out torchrun")
    if OmegaConf.select(config, "callbacks.checkpoint") is None:
        conflicts.append("callbacks.checkpoint: a population needs checkpoints; give callbacks=default")
    if (seconds := OmegaConf.select(config, "callbacks.time_limit.seconds")) is not None:
        fix = "give null; after Ctrl-C the same command resumes the population"
        conflicts.append(f"callbacks.time_limit.seconds={seconds}: members would end before their generation does; {fix}")
    return conflicts


def can_resume(plan: Plan, folder: Path) -> bool:
    """Return True for a population of this very command that is not finished and that no process runs."""
    try:
        record = read_population(folder)
    except (ValueError, TypeError):  # a later Grokbit wrote it, or it is damaged: not this command's
        return False
    return record.digest == plan.digest and not record.finished and not is_locked(folder)


def describe_plan(plan: Plan) -> list[str]:
    """Return the lines of a dry run."""
    s, rows = plan.settings, describe_space(plan.space)
    rows.append(("objective", f"{plan.monitor} {'maximize' if plan.maximize else 'minimize'}"))
    rows.append(("members", f"{s.population}: {s.exploit}, {s.explore}"))
    rest = plan.steps % s.interval
    rows.append(("generations", f"{plan.generations} of {s.interval} steps" + (f", the last one of {rest}" if rest else "")))
    rows.append(("steps", f"{plan.steps} each, {s.population * plan.steps:,} in all"))
    example = create_first_generation(plan.space.parameters, s)[0]
    rows.append(("for example", " ".join(plan.space.to_overrides(example.params))))
    return [format_row(name, value) for name, value in rows]
