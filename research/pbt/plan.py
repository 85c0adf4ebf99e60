"""Plan a population: its space, its generations, its folder; read and write population.json, which holds its members."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from research.composition.recorded import CHANGEABLE_KEYS
from research.contracts import contract
from research.files.locks import is_locked
from research.options.trigger import read_directions
from research.pbt.evolve import Member, create_first_generation
from research.pbt.settings import EXAMPLES, PopulationSettings
from research.run_dir import OUTER_KEYS, read_json, write_record
from research.signals import get_launched_ranks
from research.sweep.plan import describe_space, format_row, hash_record
from research.sweep.settings import convert
from research.sweep.space import Space, parse_space
from research.sweep.study import parse_directions

NOT_COMPARED = ("params", "n_jobs", "study_name", "home", "dry_run")  # they do not change the result
POPULATION_FILE = "population.json"  # in the folder of the sweep
VERSION = 2  # of that file
FIXED_BY_CHECKPOINT = ("model", "data", "steps", "monitor", "name", *OUTER_KEYS)


@dataclass
class Plan:
    """What a population is for, and its folder."""

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
    def generations(self) -> int:
        return -(-self.steps // self.settings.interval)

    @contract
    def get_last_step(self, generation: int) -> int:
        """Return the step at which a generation ends."""
        return min((generation + 1) * self.settings.interval, self.steps)


@contract
def make_plan(raw_settings: dict[str, Any], arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """Return the plan of a command. Raise ValueError with the setting that is wrong and the fix."""
    settings = convert(PopulationSettings, raw_settings, EXAMPLES)
    if config.get("epochs"):
        raise ValueError(f"epochs={config.epochs}: generations are counted in steps; give epochs=null and steps=N")
    space = parse_space(settings.params, arguments, {}, context.config_loader)
    steps = OmegaConf.select(config, "trainer.steps")
    for conflict in find_conflicts(settings, space, config, steps):
        raise ValueError(conflict)
    (direction,) = parse_directions(settings.direction, (config.monitor,), read_directions(config))
    return Plan(settings, space, config, steps, config.monitor, direction == "maximize")


@contract
def find_conflicts(s: PopulationSettings, space: Space, config: DictConfig, steps: int) -> Iterator[str]:
    """Yield what is wrong with the settings beside the run's own, each with its fix."""
    if not s.factors:
        yield f"hydra.sweeper.factors=[]: give numbers above 0, as {EXAMPLES['factors']}"
    if not space.parameters:
        yield "hydra/sweeper=pbt: there is nothing to evolve; give parameters, as 'lr=tag(log,interval(1e-4,1e-2))'"
    for key in (key.lstrip("+") for key in space.parameters):
        if key == "seed":
            yield "seed: all members need the same seed, so that only their settings differ; give it one value"
        if key in ("optim", "trainer.steps") or (key.split(".")[0] in FIXED_BY_CHECKPOINT and key not in CHANGEABLE_KEYS):
            yield f"{key}: a checkpoint of another {key} cannot be resumed by a member; give it one value"
    if s.interval >= steps:
        fix = f"give fewer, as {max(1, steps // 10)}"
        yield f"hydra.sweeper.interval={s.interval}: a run has {steps} steps, so no member would be copied; {fix}"
    if (processes := get_launched_ranks()[1]) > 1:
        yield f"hydra/sweeper=pbt: {processes} processes were started, a member runs in one; leave out torchrun"
    if OmegaConf.select(config, "callbacks.checkpoint") is None:
        yield "callbacks.checkpoint: a population needs checkpoints; give callbacks=default"
    if (seconds := OmegaConf.select(config, "callbacks.time_limit.seconds")) is not None:
        fix = "give null; after Ctrl-C the same command resumes the population"
        yield f"callbacks.time_limit.seconds={seconds}: members would end before their generation does; {fix}"


@contract
def can_resume(plan: Plan, folder: Path) -> bool:
    """Return True for a population of this very command that is not finished and that no process runs."""
    try:
        record = read_population(folder)
    except (ValueError, TypeError):  # a later Grokbit wrote it, or it is damaged: not this command's
        return False
    return record.digest == hash_record(plan.spec) and not record.finished and not is_locked(folder)


@dataclass(frozen=True)
class PopulationRecord:
    """A population so far. The file of version 1 has the same keys without `version`."""

    digest: str = ""  # of `requested`
    finished: bool = False  # "over" in the file
    requested: dict[str, Any] = field(default_factory=dict)  # "asked" in the file: must be the same where it is resumed
    members: Sequence[Member] = ()
    version: int = VERSION

    @contract
    def write(self, folder: Path) -> None:
        """Write population.json, complete or not at all."""
        content = {"version": self.version, "digest": self.digest, "over": self.finished, "asked": self.requested}
        write_record(folder / POPULATION_FILE, content | {"members": [asdict(member) for member in self.members]})


def read_population(folder: Path) -> PopulationRecord:
    """Return the record in a sweep's folder; an empty one where there is none. Raise ValueError for a newer version."""
    record = read_json(folder / POPULATION_FILE)
    if not isinstance(version := record.get("version", 1), int) or version > VERSION:
        raise ValueError(f"{folder / POPULATION_FILE} has version {version}, this code reads up to {VERSION}: update grokbit")
    try:
        members = [Member(**member) for member in record.get("members", ())]
    except TypeError as error:
        raise ValueError(f"{folder / POPULATION_FILE} is damaged: {error}") from error
    return PopulationRecord(record.get("digest", ""), bool(record.get("over")), record.get("asked") or {}, members)


@contract
def describe_plan(plan: Plan) -> list[str]:
    """Return the lines of a dry run."""
    s, rest = plan.settings, plan.steps % plan.settings.interval
    example = create_first_generation(plan.space.parameters, s)[0]
    rows = [
        *describe_space(plan.space),
        ("objective", f"{plan.monitor} {'maximize' if plan.maximize else 'minimize'}"),
        ("members", f"{s.population}: {s.exploit}, {s.explore}"),
        ("generations", f"{plan.generations} of {s.interval} steps" + (f", the last one of {rest}" if rest else "")),
        ("steps", f"{plan.steps} each, {s.population * plan.steps:,} in all"),
        ("for example", " ".join(plan.space.to_overrides(example.params))),
    ]
    return [format_row(name, value) for name, value in rows]
