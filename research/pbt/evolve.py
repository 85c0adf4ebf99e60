"""Evolve a population: choose who copies whose state, and change the parameters of the copies.

Every draw is a function of (seed, generation, member), so a population that was killed evolves as one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from research.contracts import contract
from research.pbt.settings import PopulationSettings
from research.sweep.space import Parameter


@dataclass
class Member:
    """One member during one generation; it has a value or an error once it was run."""

    generation: int
    number: int
    parent: int | None  # the member of the generation before whose state it begins with; None: it begins afresh
    params: dict[str, Any]
    value: float | None = None  # the monitor at the end of the generation; None: it failed
    best: float | None = None  # the best value of it and of its ancestors
    steps: int = 0
    error: str = ""
    stop: str = ""  # why it ended by itself, as at its target; empty if it was paused or has done all steps
    run_id: str | None = field(default=None, compare=False)  # in MLflow

    @property
    def name(self) -> str:
        """The name of its folder in the sweep's."""
        return f"g{self.generation}m{self.number}"


@contract
def create_first_generation(parameters: Mapping[str, Parameter], s: PopulationSettings) -> list[Member]:
    """Return the first generation, drawn from the space."""

    def draw(number: int) -> dict[str, Any]:
        return {key: sample_value(p, make_rng(s.seed, 0, number, key)) for key, p in parameters.items()}

    return [Member(0, number, None, draw(number)) for number in range(s.population)]


@contract
def evolve_generation(
    before: Sequence[Member], parameters: Mapping[str, Parameter], s: PopulationSettings, maximize: bool
) -> list[Member]:
    """Return the generation that follows `before`, in which at least one member has a value.

    Only a copy explores (algorithm 1 of the paper). A copy of a member that has ended by itself does not: it would take no
    step with its new parameters.
    """
    exploit = {"truncation": select_by_truncation, "tournament": select_by_tournament}[s.exploit]
    donors, members = exploit(before, s, maximize), []
    for old in before:
        generation, donor = old.generation + 1, donors.get(old.number, old.number)
        params = dict(before[donor].params)
        if donor != old.number and not before[donor].stop:
            params |= explore_params(parameters, params, s, make_rng(s.seed, generation, old.number, "explore"))
        members.append(Member(generation, old.number, donor, params))
    return members


@contract
def rank_members(members: Sequence[Member], maximize: bool) -> list[Member]:
    """Return the best first and those that failed last; equal ones keep their order."""
    return sorted(members, key=lambda member: get_loss(member, maximize))


def get_loss(member: Member, maximize: bool) -> float:
    """Return a number that is lower for a better member, infinite for one that failed."""
    if member.value is None:
        return math.inf
    return -member.value if maximize else member.value


def select_by_truncation(before: Sequence[Member], s: PopulationSettings, maximize: bool) -> dict[int, int]:
    """Return copy -> donor: the worst share, and all that failed, copy from the best share."""
    count, order = max(1, int(s.share * len(before))), rank_members(before, maximize)
    best = [member.number for member in order[:count] if member.value is not None]
    worst = {member.number: member for member in before if member.value is None or member in order[-count:]}
    return {n: make_rng(s.seed, m.generation + 1, n, "exploit").choice(best) for n, m in worst.items() if n not in best}


def select_by_tournament(before: Sequence[Member], s: PopulationSettings, maximize: bool) -> dict[int, int]:
    """Return copy -> donor: each member meets a random other one, and copies it if that one is better."""
    donors = dict[int, int]()
    for member in before:
        others = [other for other in before if other.value is not None and other is not member]
        if others:
            other = make_rng(s.seed, member.generation + 1, member.number, "exploit").choice(others)
            if get_loss(other, maximize) < get_loss(member, maximize):
                donors[member.number] = other.number
    return donors


def explore_params(
    parameters: Mapping[str, Parameter], params: dict[str, Any], s: PopulationSettings, random: Random
) -> dict[str, Any]:
    """Return what a copy changes in its donor's parameters; `resample` changes one at least, or the two would be twins."""
    if s.explore == "perturb":
        return {key: perturb_value(p, params[key], random.choice(s.factors)) for key, p in parameters.items()}
    drawn = [key for key in parameters if random.random() < s.resample_probability] or [random.choice(list(parameters))]
    return {key: sample_value(parameters[key], random) for key in drawn}


def make_rng(seed: int, generation: int, member: int, purpose: str) -> Random:
    return Random(f"{seed} {generation} {member} {purpose}")


def sample_value(parameter: Parameter, random: Random) -> Any:
    """Return a value from the space, uniform in the logarithm where the parameter is logarithmic."""
    match parameter.distribution:
        case IntDistribution(low=low, high=high, log=True):
            return int(clamp(round(math.exp(random.uniform(math.log(low - 0.5), math.log(high + 0.5)))), low, high))
        case _ if parameter.values:
            return random.choice(parameter.values)
        case IntDistribution(low=low, high=high):
            return random.randint(low, high)
        case FloatDistribution(low=low, high=high, log=log):
            value = math.exp(random.uniform(math.log(low), math.log(high))) if log else random.uniform(low, high)
            return clamp(value, low, high)
    raise AssertionError("a choice has values")


def perturb_value(parameter: Parameter, value: Any, factor: float) -> Any:
    """Return the value times the factor, within the space.

    Where the interval is not logarithmic, the value moves by (factor - 1) of its width: a product never leaves zero. Whole
    numbers and ranges move by one grid step at least, choices to the neighbour.
    """
    if factor == 1:
        return value
    is_up = factor > 1
    match parameter.distribution:
        case FloatDistribution(low=low, high=high, log=log) | IntDistribution(low=low, high=high, log=log):
            moved = value * factor if log else value + (factor - 1) * (high - low)
        case _:
            return get_neighbour(parameter.values, value, is_up)
    if parameter.values:
        ordered = sorted(parameter.values)
        nearest = get_neighbour(ordered, value, is_up)
        beyond = [other for other in ordered if (other >= nearest if is_up else other <= nearest)]
        return min(beyond, key=lambda other: abs(other - moved))
    if isinstance(parameter.distribution, IntDistribution):
        moved = max(round(moved), value + 1) if is_up else min(round(moved), value - 1)
    return clamp(moved, low, high)


def get_neighbour(values: Sequence[Any], value: Any, is_up: bool) -> Any:
    """Return the value after this one, or before it; at an end the value itself."""
    index = next(i for i, other in enumerate(values) if type(other) is type(value) and other == value)
    return values[min(max(index + (1 if is_up else -1), 0), len(values) - 1)]


@contract
def clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
