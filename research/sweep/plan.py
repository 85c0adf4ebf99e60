"""Plan a sweep: its space, its grid or its study, how many trials it has, its folder."""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from research.cli import format_duration, redact
from research.contracts import contract
from research.options.trigger import read_directions
from research.rules import check_name, enforce
from research.run_dir import OUTER_KEYS, SUMMARY_FILE, check_links, expand_path, make_folder, read_summary
from research.sweep.optuna_private import contains
from research.sweep.settings import CommonSettings, SweepSettings
from research.sweep.space import Space, parse_space
from research.sweep.study import Direction, InOrderSampler, make_sampler, parse_directions
from research.tracking.storage import find_sqlite_file, format_sqlite_url
from research.tracking.study_spec import SWEEP_SPEC_FILE, StudySpec, read_study_spec

MAX_GRID_SIZE = 100_000


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
    def study_spec(self) -> StudySpec:
        """The content of study.json as the sweep begins. Its digest is that of all that makes it the same command."""
        s = self.settings
        choices = [s.sampler, s.pruner, s.constraints, s.custom_search_space, s.dedup, s.storage, s.enqueue]
        digest = hash_record([self.spec, choices])
        return StudySpec(self.name, digest, self.total, max_failure_rate=s.max_failure_rate, **self.spec)


@contract
def make_plan(settings: SweepSettings, arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """Return the plan of a command. Raise ValueError for a space that cannot be, naming the key."""
    space = parse_space(settings.params, arguments, settings.when, context.config_loader, config)
    grid = make_grid(settings, space)
    total = min(settings.n_trials or len(grid), len(grid)) if grid is not None else settings.n_trials or 20
    monitor = OmegaConf.select(config, "monitor", throw_on_missing=False) if "monitor" in config else None
    directions = parse_directions(settings.direction, settings.metrics or (str(monitor),), read_directions(config))
    for mistake in find_mistakes(settings, space, grid, config):
        raise ValueError(f"hydra.sweeper.{mistake}")
    roots = {key: re.split(r"[./]", key.lstrip("+~"))[0] for key in space.fixed}
    compared = [line for key, line in space.fixed.items() if roots[key] not in OUTER_KEYS]
    compared += [line for key, line in space.fixed.items() if roots[key] == "resume" and not line.endswith("=auto")]
    spec = {
        "space": space.describe(),
        "fixed": redact(sorted(compared)),
        "directions": directions,
        "metrics": list(settings.metrics),
        "repeats": settings.repeats,
        "kind": "grid" if grid is not None else "study",
    }
    return Plan(settings, space, config, directions, grid, total, spec)


def make_grid(settings: SweepSettings, space: Space) -> list[dict[str, Any]] | None:
    """Return the combinations in their order; None for a study, whose sampler chooses. Raise ValueError for too many."""
    sampler = settings.sampler
    is_grid = sampler is not None and str(sampler["_target_"]).endswith("GridSampler")
    continuous = ", ".join(key for key, parameter in space.parameters.items() if not parameter.texts)
    if is_grid and continuous:
        raise ValueError(f"hydra/sweeper/sampler=grid: {continuous} has no list of values; give choices or ranges")
    if continuous or not (sampler is None or is_grid) or settings.custom_search_space:
        return None
    count = math.prod(len(parameter.values) for parameter in space.parameters.values())
    if count > MAX_GRID_SIZE:
        raise ValueError(f"-m: a grid of {count:,} runs; name a sampler, as hydra/sweeper/sampler=tpe, for a study")
    return list(space.iter_grid())


def find_mistakes(settings: SweepSettings, space: Space, grid: Sequence[Any] | None, config: DictConfig) -> Iterator[str]:
    """Yield where settings and space do not fit, each with its fix. The caller stops at the first one."""
    if settings.enqueue and grid is not None:
        yield "enqueue: a grid has its order; name a sampler for a study, as hydra/sweeper/sampler=tpe"
    if unknown := ", ".join(sorted({key for params in settings.enqueue for key in params} - set(space.parameters))):
        yield f"enqueue: the sweep has no parameter {unknown}"
    for key, value in [item for params in settings.enqueue for item in params.items()]:
        parameter = space.parameters[key]
        if not contains(parameter.distribution, value):
            yield f"enqueue: {key}={value} is not in the space: {parameter.describe()}"
    key, has_repeats = settings.repeats["over"], settings.repeats["n"] > 1
    if has_repeats and key in space.parameters:
        yield f"repeats.over={key}: the sweep varies it already; give it one value to count from"
    if has_repeats and type(get_first_value(space, config, key)) is not int:
        yield f"repeats.over={key}: give a key that holds a whole number, as seed"


@contract
def get_first_value(space: Space, config: DictConfig, key: str) -> Any:
    """Return the value of a key that repeats count up from."""
    return space.values.get(key, OmegaConf.select(config, key))


def resolve_home(home: str | None, config: DictConfig) -> Path | None:
    """Return the folder of the sweeps: `home`, or out/name where the configuration has both; None where it has not."""
    folder = home or (f"{config['out']}/{config['name']}" if {"out", "name"} <= set(config) else None)
    return expand_path(folder).absolute() if folder else None


@contract
def resolve_folder(settings: CommonSettings, config: DictConfig, file: str, can_resume: Callable[[Path], bool]) -> Path:
    """Return the folder of a sweep: the one that the command or its study_name names, or else an unfinished or a new one.

    Of the sweeps in the home, whose folders hold `file`, the newest that `can_resume` is continued. Raise ValueError for a
    study_name that cannot name a folder.
    """
    home, fresh = resolve_home(settings.home, config), Path(config.hydra.sweep.dir).absolute()
    if home is None or any(line.lstrip("+").startswith("hydra.sweep.dir=") for line in config.hydra.overrides.hydra):
        return fresh
    if settings.study_name:
        enforce(check_name(settings.study_name.replace("/", "_"), "hydra.sweeper.study_name"))
        return home / settings.study_name.replace("/", "_")
    files = sorted(home.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in files if can_resume(path.parent)), home / fresh.name if settings.home else fresh)


@contract
def set_folder(plan: Plan, worker_spec: dict[str, Any] | None) -> None:
    """Set the plan's folder, study and storage: those of the same command if it is not finished, or else new ones."""
    s = plan.settings
    if worker_spec:
        plan.folder, plan.name = Path(worker_spec["folder"]), worker_spec["study"]
    else:
        plan.folder = resolve_folder(s, plan.config, SWEEP_SPEC_FILE, lambda folder: can_resume(plan, folder))
        saved = read_study_spec(plan.folder).study
        plan.name = s.study_name or saved or plan.folder.name
    plan.storage = s.storage or f"journal://{plan.folder / 'study.journal'}"
    # Jobs may run in another folder.
    if match := re.fullmatch(r"journal://(.+)", str(s.storage)):
        plan.storage = f"journal://{expand_path(match[1]).absolute()}"
    elif file := find_sqlite_file(str(s.storage)):
        plan.storage = format_sqlite_url(expand_path(file).absolute(), str(s.storage))
    check_links(plan.folder)
    make_folder(plan.folder)


@contract
def can_resume(plan: Plan, folder: Path) -> bool:
    """Return True for a sweep of this very command that has trials left to run."""
    try:
        spec = read_study_spec(folder)
    except ValueError:  # a later Grokbit wrote it: not this command's
        return False
    return spec.digest == plan.study_spec.digest and not (spec.finished and spec.total >= plan.total)


@contract
def hash_record(record: Any) -> str:
    """Return a digest of plain values, 12 hexadecimal digits."""
    return sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


@contract
def describe_space(space: Space) -> list[tuple[str, str]]:
    """Return the rows of a dry run on what is varied and what is fixed."""
    rows = [("space", f"{key}: {text}") for key, text in space.describe().items()]
    return rows + [("fixed", line) for line in space.fixed.values()]


@contract
def format_row(name: str, value: str) -> str:
    """Return one fact as a line for the terminal."""
    return f"{name:<16} {value}"


@contract
def describe_plan(plan: Plan) -> list[str]:
    """Return the lines of a dry run."""
    s, kind = plan.settings, "runs" if plan.grid is not None else "trials"
    names = s.metrics or ["returned"] * len(plan.directions)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = InOrderSampler(plan.grid) if plan.grid else make_sampler(s.sampler)
    trial = optuna.create_study(sampler=sampler, directions=plan.directions).ask()
    rows = [
        *describe_space(plan.space),
        ("objective", ", ".join(f"{name} {way}" for name, way in zip(names, plan.directions, strict=True))),
        (kind, str(plan.total * s.repeats["n"])),
        ("for example", " ".join(plan.space.to_overrides(plan.space.suggest(trial)))),
        ("time", estimate_time(plan)),
    ]
    return [format_row(name, value) for name, value in rows]


def estimate_time(plan: Plan) -> str:
    """Return how long the sweep will take, by the runs of its home that have finished."""
    home = resolve_home(plan.settings.home, plan.config)
    folders = [path.parent for path in home.glob(f"**/{SUMMARY_FILE}")] if home else []
    seconds = [summary.wall_s for folder in folders if (summary := read_summary(folder)) and summary.wall_s]
    if not seconds:
        return "unknown: no run of this name has finished yet"
    median = statistics.median(seconds)
    total = format_duration(median * plan.total * plan.settings.repeats["n"] / plan.settings.workers)
    return f"about {total}: runs in {home} took {format_duration(median)}"
