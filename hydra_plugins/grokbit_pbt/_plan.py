"""What is to be run and where, before anything is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.grokbit_pbt._evolve import begun
from hydra_plugins.grokbit_pbt._settings import settled
from hydra_plugins.grokbit_pbt.config import PopulationConf
from hydra_plugins.grokbit_sweeper._plan import home
from hydra_plugins.grokbit_sweeper._space import Space, read
from hydra_plugins.grokbit_sweeper._study import directions
from research.folder import alive, read_json
from research.preflight.resume import FREE
from research.processes import launched

POPULATION = "population.json"  # in the folder of the sweep: what it is for, and each member that has ended
NOT_COMPARED = ("_target_", "params", "n_jobs", "study_name", "home", "dry_run")  # they do not change what comes out
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
        settings = {key: value for key, value in asdict(self.settings).items() if key not in NOT_COMPARED}
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


def planned(given: dict[str, Any], arguments: Sequence[str], config: DictConfig, context: HydraContext) -> Plan:
    """What is to be run. Raises ValueError, naming the setting that is wrong and what would be right."""
    settings = settled(given)
    space = read(settings.params or {}, arguments, {}, context.config_loader)
    steps = OmegaConf.select(config, "trainer.steps")
    for wrong in misfits(settings, space, config, steps):
        raise ValueError(wrong)
    (way,) = directions(settings.direction, (config.monitor,))
    return Plan(settings, space, config, steps, config.monitor, way == "maximize")


def misfits(s: PopulationConf, space: Space, config: DictConfig, steps: int) -> list[str]:
    """What is wrong with the settings beside the run's own."""
    wrong = []
    if not space.parameters:
        wrong.append("hydra/sweeper=pbt: there is nothing to evolve; give parameters, as 'lr=tag(log,interval(1e-4,1e-2))'")
    for key in (key.lstrip("+") for key in space.parameters):
        if key == "seed":
            wrong.append("seed: all members have one seed, so that only their settings set them apart; give it one value")
        if key in ("optim", "trainer.steps") or (key.split(".")[0] in BOUND and key not in FREE):
            wrong.append(f"{key}: a member cannot go on from another one's checkpoint with another {key}; give it one value")
    if s.interval >= steps:
        fix = f"give fewer, as {max(1, steps // 10)}"
        wrong.append(f"hydra.sweeper.interval={s.interval}: a run has {steps} steps, so nothing would be exploited; {fix}")
    if (processes := launched()[1]) > 1:
        wrong.append(f"hydra/sweeper=pbt: {processes} processes were started, its members run in one each; leave out torchrun")
    if OmegaConf.select(config, "callbacks.checkpoint") is None:
        wrong.append("callbacks.checkpoint: a population lives on checkpoints; give callbacks=default")
    if (seconds := OmegaConf.select(config, "callbacks.time_limit.seconds")) is not None:
        fix = "give null; after Ctrl-C the same command goes on"
        wrong.append(f"callbacks.time_limit.seconds={seconds}: members would end short of their generation; {fix}")
    return wrong


def place(plan: Plan) -> Path:
    """The folder: that of the study, or of the same command that was not finished, or a new one."""
    s, fresh = plan.settings, Path(plan.config.hydra.sweep.dir).absolute()
    root = home(s.home, plan.config)
    if root is None:
        return fresh
    if s.study_name:
        return root / s.study_name.replace("/", "_")
    for note in sorted(root.glob(f"*/{POPULATION}"), key=lambda path: path.stat().st_mtime, reverse=True):
        held = read_json(note)
        if held.get("digest") == plan.digest and not held.get("over") and not alive(note.parent):
            return note.parent
    return fresh


def told(plan: Plan) -> list[str]:
    """What would be run."""
    s = plan.settings
    rows = [("space", f"{key}: {each.told()}") for key, each in plan.space.parameters.items()]
    rows += [("fixed", line) for line in plan.space.fixed.values()]
    rows.append(("objective", f"{plan.monitor} {'maximize' if plan.maximize else 'minimize'}"))
    rows.append(("members", f"{s.population}: {s.exploit}, {s.explore}"))
    short = plan.steps % s.interval
    rows.append(("generations", f"{plan.generations} of {s.interval} steps" + (f", the last one of {short}" if short else "")))
    rows.append(("steps", f"{plan.steps} each, {s.population * plan.steps:,} in all"))
    rows.append(("for example", " ".join(plan.space.overrides(begun(plan.space.parameters, s)[0].params))))
    return [f"{name:<16} {value}" for name, value in rows]
