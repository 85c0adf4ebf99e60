"""What is to be run and where, before anything is."""

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from research.cli import format_duration
from research.run_dir import read_json
from research.sweep.optuna_private import contains
from research.sweep.settings import SweepSettings
from research.sweep.space import Space, parse_space
from research.sweep.study import Direction, InOrderSampler, get_journal_url, make_absolute, make_sampler, parse_directions
from research.tracking.study_spec import SWEEP_SPEC_FILE, StudySpec, read_study_spec

MAX_GRID_SIZE = 100_000
NOT_COMPARED = ("out", "tracker", "resume")  # where a run goes and who watches: it is the same study


@dataclass
class Plan:
    """What all processes of a sweep agree on."""

    settings: SweepSettings
    space: Space
    config: DictConfig
    directions: list[Direction]
    grid: list[dict[str, Any]] | None  # the combinations, where they are simply run in their order
    total: int
    spec: dict[str, Any] = field(default_factory=dict)  # what must be the same where the study is resumed
    folder: Path = Path()
    name: str = ""
    storage: Any = None

    @property
    def home(self) -> Path | None:
        """The folder of the sweeps; in Grokbit that of the runs of this name."""
        return resolve_home(self.settings.home, self.config)

    @property
    def digest(self) -> str:
        """The digest of all that makes it the same command: what is run, and how trials are chosen and compared."""
        s = self.settings
        return hash_record(
            [self.spec, [s.sampler, s.pruner, s.constraints, s.custom_search_space, s.dedup, s.storage, s.enqueue]]
        )

    @property
    def study_spec(self) -> StudySpec:
        """The content of study.json as the sweep begins."""
        rate = self.settings.max_failure_rate
        return StudySpec(study=self.name, digest=self.digest, total=self.total, max_failure_rate=rate, **self.spec)


def make_plan(settings: SweepSettings, arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """Return the plan of a command. Raises ValueError for a space that cannot be, naming the key."""
    space = parse_space(settings.params, arguments, settings.when, context.config_loader, config)
    grid = make_grid(settings, space)
    total = min(settings.n_trials or len(grid), len(grid)) if grid is not None else settings.n_trials or 20
    monitor = OmegaConf.select(config, "monitor", throw_on_missing=False) if "monitor" in config else None
    directions = parse_directions(settings.direction, settings.metrics or (str(monitor),))
    check_enqueued(settings, space, grid)
    check_repeats(settings, space, config)
    compared = [line for key, line in space.fixed.items() if re.split(r"[./]", key.lstrip("+~"))[0] not in NOT_COMPARED]
    spec = {
        "space": space.describe(),
        "fixed": sorted(compared),
        "directions": directions,
        "metrics": list(settings.metrics),
        "repeats": settings.repeats,
        "kind": "grid" if grid is not None else "study",
    }
    return Plan(settings, space, config, directions, grid, total, spec)


def make_grid(settings: SweepSettings, space: Space) -> list[dict[str, Any]] | None:
    """Return the combinations in their order; None for a study, whose sampler chooses. Raises ValueError for too many."""
    sampler = settings.sampler
    is_grid = sampler is not None and str(sampler["_target_"]).endswith("GridSampler")
    if is_grid and not space.is_discrete:
        continuous = ", ".join(key for key, parameter in space.parameters.items() if not parameter.texts)
        raise ValueError(f"hydra/sweeper/sampler=grid: {continuous} has no list of values; give choices or ranges")
    if not space.is_discrete or not (sampler is None or is_grid) or settings.custom_search_space:
        return None
    if (count := space.count_combinations()) > MAX_GRID_SIZE:
        raise ValueError(f"-m: a grid of {count:,} runs; name a sampler, as hydra/sweeper/sampler=tpe, for a study")
    return list(space.iter_grid())


def check_enqueued(settings: SweepSettings, space: Space, grid: Sequence[Any] | None) -> None:
    """Raise ValueError for a configuration in `enqueue` that the space does not have."""
    if settings.enqueue and grid is not None:
        raise ValueError(
            "hydra.sweeper.enqueue: a grid has its order; name a sampler for a study, as hydra/sweeper/sampler=tpe"
        )
    for params in settings.enqueue:
        if unknown := set(params) - set(space.parameters):
            raise ValueError(f"hydra.sweeper.enqueue: the sweep has no parameter {', '.join(sorted(unknown))}")
        for key, value in params.items():
            parameter = space.parameters[key]
            if not contains(parameter.distribution, value):
                raise ValueError(f"hydra.sweeper.enqueue: {key}={value} is not in the space: {parameter.describe()}")


def check_repeats(settings: SweepSettings, space: Space, config: DictConfig) -> None:
    """Raise ValueError if the key that repeats count up is swept or is no whole number."""
    key = settings.repeats["over"]
    if settings.repeats["n"] == 1:
        return
    if key in space.parameters:
        raise ValueError(f"hydra.sweeper.repeats.over={key}: the sweep varies it already; give it one value to count from")
    if type(get_first_value(space, config, key)) is not int:
        raise ValueError(f"hydra.sweeper.repeats.over={key}: give a key that holds a whole number, as seed")


def get_first_value(space: Space, config: DictConfig, key: str) -> Any:
    """Return the value of a key that repeats count up from."""
    return space.get_condition_values({}).get(key, OmegaConf.select(config, key))


def resolve_home(home: str | None, config: DictConfig) -> Path | None:
    """Return `home`, or out/name where the configuration has both; None where it has not."""
    folder = home or (f"{config['out']}/{config['name']}" if {"out", "name"} <= set(config) else None)
    return Path(folder).absolute() if folder else None


def resolve_folder(plan: Plan, worker_spec: dict[str, Any] | None) -> None:
    """Set the plan's folder, study and storage: those of the same command if it is not finished, or else new ones."""
    s, fresh = plan.settings, Path(plan.config.hydra.sweep.dir).absolute()
    if worker_spec:
        plan.folder, plan.name = Path(worker_spec["folder"]), worker_spec["study"]
    elif any(line.lstrip("+").startswith("hydra.sweep.dir=") for line in plan.config.hydra.overrides.hydra):
        plan.folder, plan.name = fresh, s.study_name or fresh.name
    elif s.study_name and plan.home:
        plan.folder, plan.name = plan.home / s.study_name.replace("/", "_"), s.study_name
    else:
        unfinished = None if s.study_name else find_newest(plan.home, SWEEP_SPEC_FILE, lambda path: can_resume(plan, path))
        plan.folder = unfinished or fresh
        plan.name = s.study_name or read_study_spec(plan.folder).study or plan.folder.name
    plan.storage = make_absolute(s.storage) or get_journal_url(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)


def can_resume(plan: Plan, folder: Path) -> bool:
    """Return True for a sweep of this very command that has trials left to run."""
    try:
        spec = read_study_spec(folder)
    except ValueError:  # a later Grokbit wrote it: not this command's
        return False
    return spec.digest == plan.digest and not (spec.finished and spec.total >= plan.total)


def find_newest(home: Path | None, name: str, matches: Callable[[Path], bool]) -> Path | None:
    """Return the folder in `home` whose file `name` was written last, of those that match; None without one."""
    files = sorted(home.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime, reverse=True) if home else []
    return next((file.parent.absolute() for file in files if matches(file.parent)), None)


def hash_record(record: Any) -> str:
    """Return a digest of plain values, 12 hexadecimal digits."""
    return sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


def describe_space(space: Space) -> list[tuple[str, str]]:
    """Return the rows of a dry run on what is varied and what is fixed."""
    rows = [("space", f"{key}: {text}") for key, text in space.describe().items()]
    return rows + [("fixed", line) for line in space.fixed.values()]


def format_row(name: str, value: str) -> str:
    """Return one fact as a line for the terminal."""
    return f"{name:<16} {value}"


def describe_plan(plan: Plan) -> list[str]:
    """Return the lines of a dry run."""
    s, rows = plan.settings, describe_space(plan.space)
    names = s.metrics or ["returned"] * len(plan.directions)
    rows.append(("objective", ", ".join(f"{name} {way}" for name, way in zip(names, plan.directions, strict=True))))
    rows.append(("runs" if plan.grid is not None else "trials", str(plan.total * s.repeats["n"])))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = InOrderSampler(plan.grid) if plan.grid else make_sampler(s.sampler)
    study = optuna.create_study(sampler=sampler, directions=plan.directions)
    rows.append(("for example", " ".join(plan.space.to_overrides(plan.space.suggest(study.ask())))))
    rows.append(("time", estimate_time(plan)))
    return [format_row(name, value) for name, value in rows]


def estimate_time(plan: Plan) -> str:
    """Return how long the sweep will take, by the runs of its home that have finished."""
    summaries = plan.home.glob("**/summary.json") if plan.home else ()
    seconds = [float(value) for path in summaries if (value := read_json(path).get("wall_s"))]
    if not seconds:
        return "unknown: no run of this name has finished yet"
    median = statistics.median(seconds)
    total = format_duration(median * plan.total * plan.settings.repeats["n"] / plan.settings.workers)
    return f"about {total}: runs in {plan.home} took {format_duration(median)}"
