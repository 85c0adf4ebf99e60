"""From one generation to the next: who takes over whose state, and what becomes of its parameters.

Every draw is a function of (seed, generation, member), so a population that was killed evolves as one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from research.pbt.settings import PopulationConf
from research.sweep.space import Parameter


@dataclass
class Member:
    """One member during one generation; planned, until it has a value or an error."""

    generation: int
    number: int
    parent: int | None  # the member of the generation before whose state it begins with; None: it begins afresh
    params: dict[str, Any]
    value: float | None = None  # the monitor at the end of the generation; None: it failed
    best: float | None = None  # the best one of it and those that it descends from
    steps: int = 0
    error: str = ""
    stop: str = ""  # why it ended by itself, as at its target; empty where it was paused or has done all steps
    run_id: str | None = field(default=None, compare=False)  # in MLflow

    @property
    def name(self) -> str:
        """Also of its folder in that of the sweep."""
        return f"g{self.generation}m{self.number}"


def create_first_generation(parameters: Mapping[str, Parameter], s: PopulationConf) -> list[Member]:
    """The first generation."""
    members = []
    for number in range(s.population):
        params = {key: sample_value(each, make_rng(s.seed, 0, number, key)) for key, each in parameters.items()}
        members.append(Member(0, number, None, params))
    return members


def evolve_generation(
    before: Sequence[Member], parameters: Mapping[str, Parameter], s: PopulationConf, maximize: bool
) -> list[Member]:
    """The generation that follows; only a copy explores (algorithm 1 of the paper), and none of a member that has ended by
    itself: it would not take a step with what it found. One member at least has a value.
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


def rank_members(members: Sequence[Member], maximize: bool) -> list[Member]:
    """The best first, those that failed last, equals in their order."""
    return sorted(members, key=lambda member: get_loss(member, maximize))


def get_loss(member: Member, maximize: bool) -> float:
    """Lower is better; infinite for one that failed."""
    if member.value is None:
        return math.inf
    return -member.value if maximize else member.value


def select_by_truncation(before: Sequence[Member], s: PopulationConf, maximize: bool) -> dict[int, int]:
    """Each of the worst, and whoever failed, copies one of the best."""
    count, order = max(1, int(s.share * len(before))), rank_members(before, maximize)
    best = [member.number for member in order[:count] if member.value is not None]
    worst = {member.number: member for member in before if member.value is None or member in order[-count:]}
    return {n: make_rng(s.seed, m.generation + 1, n, "exploit").choice(best) for n, m in worst.items() if n not in best}


def select_by_tournament(before: Sequence[Member], s: PopulationConf, maximize: bool) -> dict[int, int]:
    """Each meets another one, and copies it where that one is better; whoever failed copies whom it meets."""
    donors = dict[int, int]()
    for member in before:
        others = [each for each in before if each.value is not None and each is not member]
        if others:
            other = make_rng(s.seed, member.generation + 1, member.number, "exploit").choice(others)
            if get_loss(other, maximize) < get_loss(member, maximize):
                donors[member.number] = other.number
    return donors


def explore_params(
    parameters: Mapping[str, Parameter], params: dict[str, Any], s: PopulationConf, random: Random
) -> dict[str, Any]:
    """What a copy makes of its donor's parameters. One at least is drawn anew: a copy that kept all would be its donor's twin,
    to the last bit.
    """
    if s.explore == "perturb":
        return {key: perturb_value(each, params[key], random.choice(s.factors)) for key, each in parameters.items()}
    anew = [key for key in parameters if random.random() < s.resample_probability] or [random.choice(list(parameters))]
    return {key: sample_value(parameters[key], random) for key in anew}


def make_rng(seed: int, generation: int, member: int, purpose: str) -> Random:
    return Random(f"{seed} {generation} {member} {purpose}")


def sample_value(parameter: Parameter, random: Random) -> Any:
    """A value from the space: of a logarithmic interval each order of magnitude alike."""
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
    """The value times the factor; where the interval is not logarithmic, moved by (factor - 1) of its width, for a product
    never leaves zero. Whole numbers and ranges move by one step at least, choices to the neighbour; none leaves the space.
    """
    if factor == 1:
        return value
    up = factor > 1
    match parameter.distribution:
        case FloatDistribution(low=low, high=high, log=log) | IntDistribution(low=low, high=high, log=log):
            moved = value * factor if log else value + (factor - 1) * (high - low)
        case _:
            return get_neighbour(parameter.values, value, up)
    if parameter.values:
        ordered = sorted(parameter.values)
        least = get_neighbour(ordered, value, up)
        ahead = [each for each in ordered if (each >= least if up else each <= least)]
        return min(ahead, key=lambda each: abs(each - moved))
    if isinstance(parameter.distribution, IntDistribution):
        moved = max(round(moved), value + 1) if up else min(round(moved), value - 1)
    return clamp(moved, low, high)


def get_neighbour(values: Sequence[Any], value: Any, up: bool) -> Any:
    """The one before or after, in their order; at an end the value itself."""
    place = next(i for i, each in enumerate(values) if type(each) is type(value) and each == value)
    return values[min(max(place + (1 if up else -1), 0), len(values) - 1)]


def clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
