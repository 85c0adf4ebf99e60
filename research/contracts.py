"""Contracts: what the annotations of a function say holds at each call of it, under `python -O` too.

They stand where rooms meet and where data enters. What runs within a step has none, as a check there costs more than it finds.
Neither has what Hydra builds: its constructors check their settings by `ranges.py`, in the words of the configuration.
"""

import reprlib
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import formatannotation, iscoroutinefunction, unwrap
from numbers import Integral, Real
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from research.ranges import parse_annotation

Target = TypeVar("Target", bound=Callable[..., Any])


def contract(target: Target) -> Target:
    """Return a function that checks its arguments and its result by their annotations; a class, with such methods.

    Of a class, the constructor and the public methods are checked. Numbers are checked with the interval of their annotation,
    tensors with their number of dimensions, containers by their own type: all that they hold would cost its length. Each call
    raises TypeError for what is of another type, and ValueError for a number or a choice outside those of its annotation.
    """
    if not isinstance(target, type):
        return cast(Target, check_calls(target))
    for name, member in [*vars(target).items()]:
        if isinstance(member, FunctionType) and (name == "__init__" or not name.startswith("_")):
            setattr(target, name, check_calls(member))  # class methods and static ones take a line of their own
    return target


def check_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks what another is called with, and what it returns."""
    terms = Terms(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if (mistake := terms.find_mistake(args, kwargs)) is not None:
            raise mistake
        result = function(*args, **kwargs)
        if (mistake := terms.find_mistake_of_result(result)) is not None:
            raise mistake
        return result

    return call


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be: of one of the types, or as one of the tests wants it."""

    name: str
    annotation: Any
    types: tuple[type, ...]
    tests: tuple[Callable[[Any], bool], ...]

    def accepts(self, value: object) -> bool:
        """Return whether a value is what the annotation says."""
        return isinstance(value, self.types) or any(test(value) for test in self.tests)


class Terms:
    """What a function takes and returns, read at its first call: the classes of its annotations exist by then."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.by_index: tuple[Rule | None, ...] | None = None
        self.by_name: dict[str, Rule] = {}

    def read(self) -> tuple[Rule | None, ...]:
        """Return the rules of the parameters that have an index, None for one that takes anything; keep all by their names."""
        code, hints = unwrap(self.function).__code__, read_hints(self.function)
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if iscoroutinefunction(self.function):  # what it returns is checked by who awaits it
            hints = {name: hint for name, hint in hints.items() if name != "return"}
        rules = [make_rule(name, hints[name]) for name in (*names, "return") if hints.get(name) is not None]
        self.by_name = {rule.name: rule for rule in rules if rule is not None}
        self.by_index = tuple(self.by_name.get(name) for name in names[: code.co_argcount])
        for name in names[: code.co_posonlyargcount]:  # a keyword of that name is one of **kwargs
            self.by_name.pop(name, None)
        return self.by_index

    def find_mistake(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Exception | None:
        """Return the error that an argument of a call deserves; None where all are right."""
        rules = self.read() if self.by_index is None else self.by_index
        for rule, value in zip(rules, args, strict=False):
            if rule is not None and not rule.accepts(value):
                return make_error(self.function, rule, value)
        for name, value in kwargs.items():
            if (rule := self.by_name.get(name)) is not None and not rule.accepts(value):
                return make_error(self.function, rule, value)
        return None

    def find_mistake_of_result(self, result: object) -> Exception | None:
        """Return the error that a result deserves; None where it is right."""
        rule = self.by_name.get("return")
        return make_error(self.function, rule, result) if rule is not None and not rule.accepts(result) else None


def make_rule(name: str, annotation: Any) -> Rule | None:
    """Return what a value must be by its annotation; None where that takes anything, or what only a type checker sees."""
    types, tests, left = list[type](), list[Callable[[Any], bool]](), [annotation]
    while left:
        hint = left.pop()
        kind, arguments = get_origin(hint), get_args(hint)
        if kind in (Union, UnionType):
            left += arguments
        elif kind is Literal or (kind is Annotated and isinstance(arguments[1], str)):
            tests += [alternative.accepts for alternative in parse_annotation(hint)]
        elif kind is Annotated:
            left.append(arguments[0])
        elif hint in (int, float):
            types.append(Integral if hint is int else Real)  # numpy's too, and a bool is an int as for type checkers
        elif kind in (Sequence, Iterable, Collection) and arguments == (str,):
            tests.append(partial(holds_texts, kind))
        elif (array := getattr(hint, "array_type", None)) is not None:  # of jaxtyping
            tests.append(partial(is_array, array, hint.dim_str.split()))
        elif is_checkable(kind or hint):
            types.append(kind or hint)
        else:
            return None
    return Rule(name, annotation, tuple(types), tuple(tests))


def is_checkable(kind: Any) -> bool:
    """Return whether isinstance says what is of a class: not of a protocol, of what typing has, or of object itself."""
    has_no_instances = getattr(kind, "_is_protocol", False) or is_typeddict(kind)
    return isinstance(kind, type) and not has_no_instances and kind is not object and kind.__module__ != typing.__name__


def holds_texts(kind: type, value: object) -> bool:
    """Return whether a value is a container of texts: one text is a sequence of texts too, and never the one that is meant."""
    return isinstance(value, kind) and not isinstance(value, str | bytes)


def is_array(kind: type, dims: list[str], value: Any) -> bool:
    """Return whether a value is an array with that many dimensions; `...` and `*batch` stand for any number of them."""
    fixed = [dim for dim in dims if dim != "..." and not dim.startswith("*")]
    is_kind, ndim = isinstance(value, kind), getattr(value, "ndim", 0)
    return is_kind and (ndim == len(dims) if len(fixed) == len(dims) else ndim >= len(fixed))


def make_error(function: Callable[..., Any], rule: Rule, value: object) -> Exception:
    """Return the error that names the function, its parameter, what that takes and the value."""
    alternatives = parse_annotation(rule.annotation)
    has_notes = any(alternative.interval or alternative.choices for alternative in alternatives)
    takes = " or ".join(map(str, alternatives)) if has_notes else formatannotation(rule.annotation)
    verb = "returns" if rule.name == "return" else f"takes {rule.name} as"
    text = f"{function.__module__}.{function.__qualname__} {verb} {takes}; got {reprlib.repr(value)}"
    is_near = any(replace(alternative, interval="").accepts(value) for alternative in alternatives if alternative.interval)
    is_other = any(type(value) is type(choice) for alternative in alternatives for choice in alternative.choices)
    return ValueError(text) if is_near or is_other else TypeError(f"{text}, a {type(value).__name__}")


def read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function; where one names what only type checkers import, those that can be read."""
    hints = function.__annotations__
    if not any(isinstance(hint, str) for hint in hints.values()):
        return hints
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        return {name: hint for name, hint in hints.items() if not isinstance(hint, str)}
