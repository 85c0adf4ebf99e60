"""The values that a setting takes: annotations say it, constructors and the preflight check it by the same functions.

The notes of numbers are mathematical intervals: a round bracket excludes the end, a square one includes it. A set lists all
values. The preflight reads the annotations from the source, as it imports nothing heavy; constructors have them as objects,
and give them with their arguments to `check_settings`.
"""

import json
import logging
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

PositiveInt = Annotated[int, "[1, inf)"]
Depth = Annotated[int, "[1, 10000]"]  # of layers: a larger one would be built for hours
NonNegativeInt = Annotated[int, "[0, inf)"]
PositiveFloat = Annotated[float, "(0, inf)"]
NonNegativeFloat = Annotated[float, "[0, inf)"]
FiniteFloat = Annotated[float, "(-inf, inf)"]
Fraction = Annotated[float, "[0, 1)"]
Fractions = Annotated[Sequence[float], "[0, 1)"]  # each of them
PositiveFloats = Annotated[Sequence[float], "(0, inf)"]  # each of them
ClassWeights = PositiveFloats | Literal["balanced"] | None
Share = Annotated[float, "[0, 1]"]
OpenFraction = Annotated[float, "(0, 1)"]
Modulus = Annotated[int, "[3, inf)"]
ProfiledSteps = Annotated[int, "[1, 50]"]  # a trace of more is larger than its viewers take
NumDates = Annotated[int, "[10, 73049]"]  # of the days of 1900 to 2099
VocabSize = Annotated[int, "[257, 65536]"]
WeightBits = Annotated[float | int, "{1, 1.58, 2, 4, 8}"]
ExistingPath = Annotated[str, "a file or folder that exists"]

log = logging.getLogger(__name__)
MAX_NESTING = 100  # containers in containers that are followed: deeper ones are nobody's settings
TYPE_LABELS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list as [a,b]"}


@dataclass(frozen=True)
class ValueType:
    """One alternative of an annotation."""

    name: str  # int, float, bool, str, list, null, path, choice; any: not checked
    interval: str = ""
    choices: tuple[object, ...] = ()

    def __str__(self) -> str:
        if self.name == "list" and self.interval:
            return f"a list of numbers in {self.interval}"
        words = ", ".join(map(str, self.choices)) or TYPE_LABELS.get(self.name, self.name)
        return f"{words} in {self.interval}" if self.interval else words

    def accepts(self, value: object) -> bool:
        """Return whether a value is of this type: an int is a float too, a bool is neither."""
        if self.name in ("int", "float"):
            return is_number(value, self.interval, self.name == "float")
        if self.name in ("str", "path"):
            return isinstance(value, str if self.name == "str" else str | os.PathLike) and value != ""
        if self.name == "list":
            items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None
            return items is not None and not (self.interval and not all(is_number(item, self.interval) for item in items))
        if self.name == "choice":
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        types: dict[str, type] = {"bool": bool, "null": NoneType}
        return isinstance(value, types.get(self.name, object))


ANY = ValueType("any")
PLAIN_TYPES = (int, float, bool, str, NoneType)


def is_number(value: object, interval: str, takes_fractions: bool = True) -> bool:
    """Return whether a value is a number in an interval; without `takes_fractions` a whole one. A bool is none."""
    has_type = isinstance(value, Real if takes_fractions else Integral) and not isinstance(value, bool)  # numpy's too
    return has_type and (not interval or is_in_interval(interval, float(cast(float, value))))


def is_in_interval(interval: str, value: float) -> bool:
    """Return whether `value` lies in an interval as "[0, 1)", or in a set as "{1, 2}". NaN lies nowhere."""
    ends = [float(end) for end in interval[1:-1].split(",")]
    if interval[0] == "{":
        return value in ends
    low, high = ends
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def parse_annotation(annotation: Any) -> tuple[ValueType, ...]:
    """Return the alternatives of an annotation; what is none of the types here takes any value."""
    types, left = list[ValueType](), [annotation]
    while left:
        hint = left.pop()
        kind, arguments = get_origin(hint), get_args(hint)
        if kind in (Union, UnionType):
            left += reversed(arguments)
        elif kind is Annotated and not isinstance(arguments[1], str):  # a note of somebody else's
            left.append(arguments[0])
        else:
            types.append(parse_plain(hint, kind, arguments))
    return tuple(types)


def parse_plain(annotation: Any, kind: Any, arguments: tuple[Any, ...]) -> ValueType:
    """Return what an annotation takes that holds no other one."""
    if kind is Literal:
        return ValueType("choice", choices=arguments)
    if kind is Annotated:
        base, note, *_ = arguments
        name = "list" if get_origin(base) is Sequence else "int" if base is int else "float"
        return ValueType(name, note) if note[0] in "[({" else ValueType("path")
    if kind in (list, tuple, Sequence):
        return ValueType("list")
    return ValueType("null" if annotation is NoneType else annotation.__name__) if annotation in PLAIN_TYPES else ANY


def describe_mistake(key: str, value: object, value_types: Iterable[ValueType]) -> str:
    """Return the setting, what it takes and the value that it got; an empty text where it takes the value."""
    if any(alternative.accepts(value) for alternative in value_types):
        return ""
    return f"{key} takes {' or '.join(map(str, value_types))}; got {'nothing' if value == '' else repr_value(value)}"


def check_fields(prefix: str, settings: Any) -> None:
    """Raise ValueError for the first field of a dataclass whose value is not of its annotation."""
    try:
        annotations = get_type_hints(type(settings), include_extras=True)
    except NameError:  # a class of a user's that imports its types for type checkers only
        annotations = {field.name: field.type for field in fields(settings)}
    check_settings(prefix, {field.name: annotations[field.name] for field in fields(settings)}, vars(settings))


def check_settings(prefix: str, annotations: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise ValueError for the first value that is not of its annotation: those of a function, with its `locals()`."""
    for name in filter(values.__contains__, annotations):
        if mistake := describe_mistake(f"{prefix}.{name}", values[name], parse_annotation(annotations[name])):
            raise ValueError(mistake)


def check_partial(prefix: str, function: Callable[..., Any]) -> None:
    """Raise ValueError for a setting of a partial that is not of its annotation: what it is of is called too often to check."""
    if isinstance(function, partial):
        check_settings(prefix, function.func.__annotations__, function.keywords)


def take_fields(settings: type, record: Any, source: object) -> dict[str, Any]:
    """Return what the fields of a dataclass take of a JSON object that `source` holds; a warning names any other value."""
    annotations = get_type_hints(settings)
    if not isinstance(record, dict):
        log.warning("%s is damaged and left out: it is not a JSON object", source)
        return {}
    known = {key: value for key, value in record.items() if key in annotations and value is not None}
    for key in [key for key, value in known.items() if not is_json_of(annotations[key], value)]:
        log.warning("%s: %s=%s is damaged and left out", source, key, reprlib.repr(known.pop(key)))
    return known


def is_json_of(annotation: Any, value: object) -> bool:
    """Return whether a value that JSON has is of an annotation: numbers are those that 64 bits have.

    Of a union the first alternative counts whose own type the value has: none of ours has two lists, or two mappings.
    """
    left = [(annotation, value)]
    while left:
        hint, item = left.pop()
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        fitting = [choice for choice in choices if is_of_json_type(item, get_origin(choice) or choice)]
        if not fitting:
            return False
        hint = fitting[0]
        if isinstance(item, dict) and get_origin(hint) is dict:
            left += [(get_args(hint)[1], inner) for inner in item.values()]
        elif isinstance(item, list) and get_origin(hint) is list:
            left += [(get_args(hint)[0], inner) for inner in item]
    return True


def is_of_json_type(value: object, kind: Any) -> bool:
    """Return whether a value has a type of JSON: a whole number is a float too, and none that 64 bits lack."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return False
    return kind is Any or type(value) in ((int, float) if kind is float else (kind,))


def repr_value(value: object) -> str:
    """Return a value as one types it."""
    return json.dumps(value, default=repr, ensure_ascii=False)
