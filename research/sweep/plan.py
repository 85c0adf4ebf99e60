"""What is to be run and where, before anything is."""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from research.run_dir import read_json
from research.sweep.progress import format_duration
from research.sweep.settings import Settings
from research.sweep.space import Space, parse_space
from research.sweep.study import Direction, InOrderSampler, get_journal_url, make_absolute, make_sampler, parse_directions

SWEEP_SPEC_FILE = "study.json"  # in the folder of a sweep: what it is for, and whether it is over
MAX_GRID_SIZE = 100_000
NOT_COMPARED = ("out", "tracker", "resume")  # where a run goes and who watches: it is the same study


@dataclass
class Plan:
    """What all processes of a sweep agree on."""

    settings: Settings
    space: Space
    config: DictConfig
    directions: list[Direction]  # the directions
    grid: list[dict[str, Any]] | None  # the combinations, where they are simply run in their order
    total: int
    spec: dict[str, Any] = field(default_factory=dict)  # what must be the same where the study goes on
    folder: Path = Path()
    name: str = ""
    storage: Any = None

    @property
    def home(self) -> Path | None:
        """The folder of the sweeps; in Grokbit that of the runs of this name."""
        return resolve_home(self.settings.home, self.config)

    @property
    def digest(self) -> str:
        """Of what makes it the same command: what it asks for, and how its trials are chosen and judged."""
        s = self.settings
        how = [s.sampler, s.pruner, s.constraints, s.custom_search_space, s.dedup, s.storage, s.enqueue]
        return sha256(json.dumps([self.spec, how], sort_keys=True, default=str).encode()).hexdigest()[:12]


def make_plan(settings: Settings, arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """What is to be run. Raises ValueError for a space that cannot be."""
    space = parse_space(settings.params, arguments, settings.when, context.config_loader, config)
    node = settings.sampler
    grid_asked = node is not None and str(node["_target_"]).endswith("GridSampler")
    if grid_asked and not space.is_discrete:
        loose = [key for key, each in space.parameters.items() if not each.texts]
        raise ValueError(f"hydra/sweeper/sampler=grid: {', '.join(loose)} has no values to go through; give choices or ranges")
    grid = None
    if space.is_discrete and (node is None or grid_asked) and not settings.custom_search_space:
        if space.count_combinations() > MAX_GRID_SIZE:
            raise ValueError(
                f"-m: a grid of {space.count_combinations():,} runs; name a sampler, as hydra/sweeper/sampler=tpe, for a study"
            )
        grid = list(space.iter_grid())
    total = min(settings.n_trials or len(grid), len(grid)) if grid is not None else settings.n_trials or 20
    monitor = OmegaConf.select(config, "monitor", throw_on_missing=False) if "monitor" in config else None
    ways = parse_directions(settings.direction, settings.metrics or (str(monitor),))
    check_enqueued(settings, space, grid)
    check_repeats(settings, space, config)
    asked = {
        "space": {key: each.describe() for key, each in space.parameters.items()},
        "fixed": sorted(
            line for key, line in space.fixed.items() if re.split(r"[./]", key.lstrip("+~"))[0] not in NOT_COMPARED
        ),
        "directions": ways,
        "metrics": list(settings.metrics),
        "repeats": settings.repeats,
        "kind": "grid" if grid is not None else "study",
    }
    return Plan(settings, space, config, ways, grid, total, asked)


def check_enqueued(settings: Settings, space: Space, grid: Sequence[Any] | None) -> None:
    """Raises ValueError for a configuration to begin with that the space does not have."""
    if settings.enqueue and grid is not None:
        raise ValueError(
            "hydra.sweeper.enqueue: a grid has its order; name a sampler for a study, as hydra/sweeper/sampler=tpe"
        )
    for params in settings.enqueue:
        if unknown := set(params) - set(space.parameters):
            raise ValueError(f"hydra.sweeper.enqueue: the sweep has no parameter {', '.join(sorted(unknown))}")
        for key, value in params.items():
            each = space.parameters[key]
            try:
                fits = each.distribution._contains(each.distribution.to_internal_repr(value))
            except (TypeError, ValueError):
                fits = False
            if not fits:
                raise ValueError(f"hydra.sweeper.enqueue: {key}={value} is not in the space: {each.describe()}")


def check_repeats(settings: Settings, space: Space, config: DictConfig) -> None:
    """Raises ValueError where nothing can count up."""
    key = settings.repeats["over"]
    if settings.repeats["n"] == 1:
        return
    if key in space.parameters:
        raise ValueError(f"hydra.sweeper.repeats.over={key}: the sweep varies it already; give it one value to count from")
    if type(get_first_value(space, config, key)) is not int:
        raise ValueError(f"hydra.sweeper.repeats.over={key}: give a key that holds a whole number, as seed")


def get_first_value(space: Space, config: DictConfig, key: str) -> Any:
    """The value of a key that repeats count up from."""
    return space.get_condition_values({}).get(key, OmegaConf.select(config, key))


def resolve_home(home: str | None, config: DictConfig) -> Path | None:
    """The folder that is given, or out/name where the configuration has these; none where it knows of no such folder."""
    known = home or (f"{config['out']}/{config['name']}" if {"out", "name"} <= set(config) else None)
    return Path(known).absolute() if known else None


def resolve_folder(plan: Plan, worker_spec: dict[str, Any] | None) -> None:
    """Which folder and which study: those of the same command that are not finished, where there are such."""
    s, fresh = plan.settings, Path(plan.config.hydra.sweep.dir).absolute()
    if worker_spec:
        plan.folder, plan.name = Path(worker_spec["folder"]), worker_spec["study"]
    elif any(line.lstrip("+").startswith("hydra.sweep.dir=") for line in plan.config.hydra.overrides.hydra):
        plan.folder, plan.name = fresh, s.study_name or fresh.name
    elif s.study_name and plan.home:
        plan.folder, plan.name = plan.home / s.study_name.replace("/", "_"), s.study_name
    else:
        begun = find_unfinished(plan) if plan.home and not s.study_name else None
        plan.folder = begun or fresh
        plan.name = s.study_name or read_json(plan.folder / SWEEP_SPEC_FILE).get("study") or plan.folder.name
    plan.storage = make_absolute(s.storage) or get_journal_url(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)


def find_unfinished(plan: Plan) -> Path | None:
    """The newest sweep of this very command in the home that has trials left to run."""
    assert plan.home is not None
    for note in sorted(plan.home.glob(f"*/{SWEEP_SPEC_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        held = read_json(note)
        if held.get("digest") == plan.digest and not (held.get("over") and held.get("total", 0) >= plan.total):
            return note.parent.absolute()
    return None


def describe_plan(plan: Plan) -> list[str]:
    """What a sweep would run."""
    s = plan.settings
    rows = [("space", f"{key}: {each.describe()}") for key, each in plan.space.parameters.items()]
    rows += [("fixed", line) for line in plan.space.fixed.values()]
    names = s.metrics or ["returned"] * len(plan.directions)
    rows.append(("objective", ", ".join(f"{name} {way}" for name, way in zip(names, plan.directions, strict=True))))
    rows.append(("runs" if plan.grid is not None else "trials", str(plan.total * s.repeats["n"])))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=InOrderSampler(plan.grid) if plan.grid else make_sampler(s.sampler), directions=plan.directions
    )
    rows.append(("for example", " ".join(plan.space.to_overrides(plan.space.suggest(study.ask())))))
    summaries = plan.home.glob("**/summary.json") if plan.home else ()
    known = [float(seconds) for path in summaries if (seconds := read_json(path).get("wall_s"))]
    if known:
        each = statistics.median(known)
        whole = format_duration(each * plan.total * s.repeats["n"] / s.workers)
        rows.append(("time", f"about {whole}: runs in {plan.home} took {format_duration(each)}"))
    else:
        rows.append(("time", "unknown: no run of this name has finished yet"))
    return [f"{name:<16} {value}" for name, value in rows]
