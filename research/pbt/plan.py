"""What is to be run and where, before anything is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from research.pbt.evolve import create_first_generation
from research.pbt.settings import PopulationConf, parse_settings
from research.preflight.resume import CHANGEABLE_KEYS
from research.run_dir import is_locked, read_json
from research.sweep.plan import resolve_home
from research.sweep.space import Space, parse_space
from research.sweep.study import parse_directions
from research.training.distributed import get_launched_ranks

POPULATION_FILE = "population.json"  # in the folder of the sweep: what it is for, and each member that has ended
NOT_COMPARED = ("_target_", "params", "n_jobs", "study_name", "home", "dry_run")  # they do not change what comes out
FIXED_BY_CHECKPOINT = ("model", "data", "steps", "monitor", "name", "out", "resume", "tracker")  # what a checkpoint is bound to


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
    def spec(self) -> dict[str, Any]:
        """What must be the same where a population goes on."""
        settings = {key: value for key, value in asdict(self.settings).items() if key not in NOT_COMPARED}
        told = {"space": {key: each.describe() for key, each in self.space.parameters.items()}}
        return settings | told | {"fixed": sorted(self.space.fixed.values()), "steps": self.steps, "maximize": self.maximize}

    @property
    def digest(self) -> str:
        return sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def generations(self) -> int:
        return -(-self.steps // self.settings.interval)

    def get_last_step(self, generation: int) -> int:
        """The step that is a generation's last."""
        return min((generation + 1) * self.settings.interval, self.steps)


def make_plan(raw_settings: dict[str, Any], arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """What is to be run. Raises ValueError, naming the setting that is wrong and what would be right."""
    settings = parse_settings(raw_settings)
    space = parse_space(settings.params or {}, arguments, {}, context.config_loader)
    steps = OmegaConf.select(config, "trainer.steps")
    for wrong in find_conflicts(settings, space, config, steps):
        raise ValueError(wrong)
    (way,) = parse_directions(settings.direction, (config.monitor,))
    return Plan(settings, space, config, steps, config.monitor, way == "maximize")


def find_conflicts(s: PopulationConf, space: Space, config: DictConfig, steps: int) -> list[str]:
    """What is wrong with the settings beside the run's own."""
    wrong = []
    if not space.parameters:
        wrong.append("hydra/sweeper=pbt: there is nothing to evolve; give parameters, as 'lr=tag(log,interval(1e-4,1e-2))'")
    for key in (key.lstrip("+") for key in space.parameters):
        if key == "seed":
            wrong.append("seed: all members have one seed, so that only their settings set them apart; give it one value")
        if key in ("optim", "trainer.steps") or (key.split(".")[0] in FIXED_BY_CHECKPOINT and key not in CHANGEABLE_KEYS):
            wrong.append(f"{key}: a member cannot go on from another one's checkpoint with another {key}; give it one value")
    if s.interval >= steps:
        fix = f"give fewer, as {max(1, steps // 10)}"
        wrong.append(f"hydra.sweeper.interval={s.interval}: a run has {steps} steps, so nothing would be exploited; {fix}")
    if (processes := get_launched_ranks()[1]) > 1:
        wrong.append(f"hydra/sweeper=pbt: {processes} processes were started, its members run in one each; leave out torchrun")
    if OmegaConf.select(config, "callbacks.checkpoint") is None:
        wrong.append("callbacks.checkpoint: a population lives on checkpoints; give callbacks=default")
    if (seconds := OmegaConf.select(config, "callbacks.time_limit.seconds")) is not None:
        fix = "give null; after Ctrl-C the same command goes on"
        wrong.append(f"callbacks.time_limit.seconds={seconds}: members would end short of their generation; {fix}")
    return wrong


def resolve_folder(plan: Plan) -> Path:
    """The folder: that of the study, or of the same command that was not finished, or a new one."""
    s, fresh = plan.settings, Path(plan.config.hydra.sweep.dir).absolute()
    root = resolve_home(s.home, plan.config)
    if root is None:
        return fresh
    if s.study_name:
        return root / s.study_name.replace("/", "_")
    for note in sorted(root.glob(f"*/{POPULATION_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        held = read_json(note)
        if held.get("digest") == plan.digest and not held.get("over") and not is_locked(note.parent):
            return note.parent
    return fresh


def describe_plan(plan: Plan) -> list[str]:
    """What would be run."""
    s = plan.settings
    rows = [("space", f"{key}: {each.describe()}") for key, each in plan.space.parameters.items()]
    rows += [("fixed", line) for line in plan.space.fixed.values()]
    rows.append(("objective", f"{plan.monitor} {'maximize' if plan.maximize else 'minimize'}"))
    rows.append(("members", f"{s.population}: {s.exploit}, {s.explore}"))
    short = plan.steps % s.interval
    rows.append(("generations", f"{plan.generations} of {s.interval} steps" + (f", the last one of {short}" if short else "")))
    rows.append(("steps", f"{plan.steps} each, {s.population * plan.steps:,} in all"))
    rows.append(("for example", " ".join(plan.space.to_overrides(create_first_generation(plan.space.parameters, s)[0].params))))
    return [f"{name:<16} {value}" for name, value in rows]
