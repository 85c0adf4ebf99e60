"""The settings of a population. Hydra imports this file at every start: nothing heavy here."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from research.ranges import PositiveFloat, PositiveInt
from research.sweep.settings import CommonSettings

EXAMPLES = {"params": "{lr: 'interval(1e-4,1e-2)'}", "factors": "[0.8,1.2]"}


@dataclass
class PopulationSettings(CommonSettings):
    """hydra/sweeper=pbt: `hydra.sweeper.KEY` (Jaderberg et al. 2017, arXiv 1711.09846); docs/pbt.md says when to use it."""

    population: Annotated[int, "[2, inf)"] = 8  # members
    interval: PositiveInt = 100  # steps of a generation, fewer than those of the run
    exploit: Literal["truncation", "tournament"] = "truncation"  # who copies whose state
    share: Annotated[float, "(0, 0.5]"] = 0.25  # of the members: with truncation so many of the worst copy so many of the best
    explore: Literal["perturb", "resample"] = "perturb"  # what a copy does to the parameters
    factors: list[PositiveFloat] = field(default_factory=lambda: [0.8, 1.2])  # perturb: one of them
    resample_probability: Annotated[float, "[0, 1]"] = 0.25  # resample: how often a parameter is drawn anew
    seed: int = 0  # every draw is a function of (seed, generation, member)
