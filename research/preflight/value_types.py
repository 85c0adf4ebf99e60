"""The values that a parameter takes, as far as its annotation says."""

from dataclasses import dataclass
from typing import cast

TYPE_LABELS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list as [a,b]",
}


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
        checks = {
            "choice": any(type(value) is type(choice) and value == choice for choice in self.choices),
            "str": isinstance(value, str) and value != "",
            "path": isinstance(value, str) and value != "",
            "bool": isinstance(value, bool),
            "list": isinstance(value, list),
            "null": value is None,
        }
        return checks.get(self.name, True)


ANY = ValueType("any")


def is_in_interval(interval: str, value: float) -> bool:
    """Return whether `value` lies in an interval as "[0, 1)", or in a set as "{1, 2}". NaN lies nowhere."""
    ends = [float(end) for end in interval[1:-1].split(",")]
    if interval[0] == "{":
        return value in ends
    low, high = ends
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)
