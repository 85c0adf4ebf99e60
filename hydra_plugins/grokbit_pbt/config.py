"""What `hydra.sweeper` takes with hydra/sweeper=pbt. Hydra imports this file at every start: nothing heavy here."""

from dataclasses import asdict, dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class PopulationConf:
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846); docs/pbt.md tells when to use it."""

    _target_: str = "hydra_plugins.grokbit_pbt.sweeper.PopulationSweeper"
    params: dict[str, Any] | None = None  # the space: key: choice(..) | range(..) | interval(..) | {type, low, high, ..}
    population: int = 8  # members, [2, inf)
    interval: int = 100  # steps of a generation, fewer than those of the run
    exploit: str = "truncation"  # truncation | tournament: who takes over whose state
    share: float = 0.25  # of the members, (0, 0.5]: with truncation so many of the worst copy so many of the best
    explore: str = "perturb"  # perturb | resample: what a copy does to the parameters
    factors: list[float] = field(default_factory=lambda: [0.8, 1.2])  # perturb: one of them, (0, inf)
    resample_probability: float = 0.25  # resample: how often a parameter is drawn anew, [0, 1]
    direction: str | None = None  # minimize | maximize; null: as `monitor` is better
    seed: int = 0  # every draw is a function of (seed, generation, member)
    n_jobs: int | None = None  # members that the launcher gets at once; null: 1 with the basic launcher, or else all
    study_name: str | None = None  # its folder in home; null: a new one, unless the same command has left one unfinished
    home: str | None = None  # the folder of the sweeps; null: out/name
    dry_run: bool = False  # tell what would be run


# Without its types: _settings tells of a wrong one, and of the right one, more clearly than OmegaConf does.
# Once: the process of a launcher may have been given all that was registered.
if "pbt.yaml" not in ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}):
    ConfigStore.instance().store(group="hydra/sweeper", name="pbt", node=asdict(PopulationConf()), provider="grokbit")
