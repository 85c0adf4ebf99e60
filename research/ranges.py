"""The values that a parameter takes, as its annotation says; the preflight reads them from the signature.

The notes on numbers are mathematical intervals: a round bracket excludes the end, a square one includes it. A set lists all
values.
"""

from dataclasses import dataclass
from types import NoneType
from typing import Annotated, cast

PositiveInt = Annotated[int, "[1, inf)"]
NonNegativeInt = Annotated[int, "[0, inf)"]
PositiveFloat = Annotated[float, "(0, inf)"]
NonNegativeFloat = Annotated[float, "[0, inf)"]
Fraction = Annotated[float, "[0, 1)"]
OpenFraction = Annotated[float, "(0, 1)"]
WeightBits = Annotated[float | int, "{1, 1.58, 2, 4, 8}"]
ExistingPath = Annotated[str, "a file or folder that exists"]

TYPE_LABELS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list as [a,b]"}


@dataclass(frozen=True)
class ValueType:
    """One alternative of an annotation."""

    name: str  # int, float, bool, str, list, null, path, choice; any: not checked
    interval: str = ""
    choices: tuple[object, ...] = ()

    def __str__(self) -> str:
        words = ", ".join(map(str, self.choices)) or TYPE_LABELS.get(self.name, self.name)
        return f"{words} in {self.interval}" if self.interval else words

    def accepts(self, value: object) -> bool:
        """Return whether a value is of this type: an int is a float too, a bool is neither."""
        if self.name in ("int", "float"):
            is_number = type(value) is int or (type(value) is float and self.name == "float")
            return is_number and (not self.interval or is_in_interval(self.interval, cast(float, value)))
        if self.name in ("str", "path"):
            return isinstance(value, str) and value != ""
        if self.name == "choice":
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        types: dict[str, type] = {"bool": bool, "list": list, "null": NoneType}
        return isinstance(value, types.get(self.name, object))


ANY = ValueType("any")


def is_in_interval(interval: str, value: float) -> bool:
    """Return whether `value` lies in an interval as "[0, 1)", or in a set as "{1, 2}". NaN lies nowhere."""
    ends = [float(end) for end in interval[1:-1].split(",")]
    if interval[0] == "{":
        return value in ends
    low, high = ends
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def is_prime(p: int) -> bool:
    """Return whether p is prime. By trial division, as p is small."""
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))
