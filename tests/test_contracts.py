"""Contracts: what annotations say is checked at each call, and what the checker of the Power of Ten counts is real."""

import asyncio
import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypedDict, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from program import ROOT
from torch import Tensor

from research.contracts import contract, make_rule, read_hints
from research.ranges import PositiveInt, Share

Item = TypeVar("Item")


class Named(Protocol):
    name: str


class Sizes(TypedDict):
    width: int


class Wrong:
    """What no function takes."""


@contract
def cut(text: str, count: PositiveInt, *, side: Literal["left", "right"] = "left", by: Share | None = None) -> str:
    return text[:count] if side == "left" and by is None else text[-count:]


@contract
@dataclass(frozen=True)
class Point:
    x: float
    names: Sequence[str] = ()

    def move(self, by: float) -> "Point":
        return Point(self.x + by, self.names)

    def _hide(self, by: float) -> float:
        return by


MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "another type": (lambda: cut(3, 1), TypeError, "takes text as str; got 3, a int"),  # type: ignore[arg-type]
    "no number": (lambda: cut("a", "1"), TypeError, "takes count as a whole number in [1, inf); got '1', a str"),  # type: ignore[arg-type]
    "a bool is no number": (lambda: cut("a", True), TypeError, "got True, a bool"),
    "outside the interval": (lambda: cut("a", 0), ValueError, "takes count as a whole number in [1, inf); got 0"),
    "by its name": (lambda: cut("a", count=-1), ValueError, "count as a whole number"),
    "none of the choices": (lambda: cut("a", 1, side="top"), ValueError, "takes side as left, right; got 'top'"),  # type: ignore[arg-type]
    "NaN": (lambda: cut("a", 1, by=float("nan")), ValueError, "takes by as a number in [0, 1] or null; got nan"),
    "a constructor": (lambda: Point("0"), TypeError, "Point.__init__ takes x as float; got '0', a str"),  # type: ignore[arg-type]
    "a text for texts": (lambda: Point(0.0, "ab"), TypeError, "takes names as collections.abc.Sequence[str]; got 'ab'"),
    "a method": (lambda: Point(0.0).move(None), TypeError, "Point.move takes by as float; got None, a NoneType"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_function_parameter_and_value(name: str) -> None:
    call, kind, text = MISTAKES[name]
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    assert text in str(raised.value)


def test_what_is_right_passes() -> None:
    assert cut("abc", np.int64(2)) == "ab"  # type: ignore[arg-type]
    assert cut("abc", 1, side="right", by=0) == "c"
    assert Point(1, ["a"]).move(np.float32(2)).x == 3  # type: ignore[arg-type]
    assert Point(1.0)._hide("x") == "x"  # type: ignore[arg-type, comparison-overlap]


def test_a_result_is_checked() -> None:
    @contract
    def read(path: Path) -> list[str]:
        return str(path)  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"read returns list\[str\]; got 'a', a str"):
        read(Path("a"))


def test_a_function_that_python_refuses_keeps_its_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'count'"):
        cut("a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        cut("a", 1, size=2)  # type: ignore[call-arg]


ACCEPTED: dict[str, tuple[Any, list[object], list[object]]] = {  # annotation, what it takes, what it does not
    "optional path": (Path | None, [Path(), None], ["a", 3]),
    "mapping": (Mapping[str, int], [{}, {"a": 1}], [[], "a"]),
    "callable": (Callable[[int], int], [abs, Wrong], [3, None]),
    "class": (type[Exception], [ValueError], [ValueError(), 3]),
    "numbers": (float, [1, 1.5, np.float32(1), float("nan"), True], ["1", None]),
    "interval or nothing": (PositiveInt | None, [1, None], [0, 1.0, "1", True]),
    "numpy's in an interval": (Share, [np.float32(0.5), np.int64(1), Fraction(1, 2)], [np.float32(2), "0.5"]),
    "a note of somebody else's": (Annotated[int, 3], [1, np.int64(1)], ["a", 1.5]),
    "texts": (Sequence[str], [[], ("a",)], ["a", b"a", 3]),
    "an iterator": (Iterator[str], [iter("ab")], ["ab", ["a"]]),
    "two dimensions": (Float[Tensor, "rows cols"], [torch.ones(2, 3)], [torch.ones(3), np.ones((2, 3)), 3]),
    "any dimensions": (Float[Tensor, "*batch dim"], [torch.ones(3), torch.ones(2, 3)], [torch.ones(()), [1.0]]),
    "a number in a tensor": (Float[Tensor, ""], [torch.tensor(1.0)], [torch.ones(3)]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_annotations(name: str) -> None:
    annotation, right, wrong = ACCEPTED[name]
    rule = make_rule("x", annotation)
    assert rule is not None
    assert [value for value in right if not rule.accepts(value)] == []
    assert [value for value in wrong if rule.accepts(value)] == []


@pytest.mark.parametrize("annotation", [Any, object, Item, Named, Sizes, int | Any, Named | None])
def test_what_takes_anything_has_no_rule(annotation: Any) -> None:
    assert make_rule("x", annotation) is None


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans()), st.integers(-3, 3), st.integers(0, 5))
def test_an_interval_is_the_one_of_mathematics(value: object, low: int, width: int) -> None:
    rule = make_rule("x", Annotated[float, f"[{low}, {low + width})"])
    assert rule is not None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assert rule.accepts(value) == (is_number and low <= value < low + width)  # type: ignore[operator]


def test_a_keyword_of_the_name_of_a_positional_parameter_is_another() -> None:
    @contract
    def scale(x: int, /, **names: str) -> str:
        return names["x"] * x

    assert scale(2, x="a") == "aa"
    with pytest.raises(TypeError, match="takes x as int"):
        scale("a")  # type: ignore[arg-type]


def test_a_coroutine_is_no_result() -> None:
    @contract
    async def wait(x: int) -> int:
        return x

    assert asyncio.run(wait(3)) == 3
    with pytest.raises(TypeError, match="takes x as int"):
        asyncio.run(wait("3"))  # type: ignore[arg-type]


def test_a_contract_changes_nothing_else() -> None:
    assert cut.__name__ == "cut"
    assert pickle.loads(pickle.dumps(cut)) is cut
    assert pickle.loads(pickle.dumps(Point(1.0))) == Point(1.0)

    @contextmanager
    @contract
    def hold(text: str) -> Iterator[str]:
        yield text

    with hold("a") as text:
        assert text == "a"
    with pytest.raises(TypeError, match="takes text as str"), hold(3):  # type: ignore[arg-type]
        raise AssertionError("the block began")


def test_it_stays_on_under_optimization() -> None:
    program = "from research.contracts import contract\n@contract\ndef halve(x: int) -> int: return x // 2\nhalve('8')"
    ended = subprocess.run([sys.executable, "-O", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "TypeError: __main__.halve takes x as int; got '8', a str" in ended.stderr


LIST_ENFORCED = """
import json
from pathlib import Path
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.enforced import Enforcement
from research.compliance.syntax.tree import read_tree
graph = CallGraph(read_tree(Path(".")))
checks = Enforcement(graph)
enforced = [function for function in graph.functions.values() if checks.is_enforced(function)]
print(json.dumps([(function.module.name, function.name, checks.list_checked(function)) for function in enforced]))
"""


def list_enforced() -> list[tuple[str, str, list[str]]]:
    """Each function of the tree that a decorator of ours checks: its module, its name, and the parameters that count."""
    ended = subprocess.run([sys.executable, "-c", LIST_ENFORCED], cwd=ROOT, capture_output=True, text=True, check=True)
    functions: list[tuple[str, str, list[str]]] = json.loads(ended.stdout)
    return functions


def test_each_parameter_that_counts_refuses_what_is_wrong() -> None:
    """The checker reads the source, and contracts run: both must say the same of each parameter."""
    lies, missing, count = list[str](), set[str](), 0
    for module, function, names in list_enforced():
        try:
            target: Any = reduce(getattr, function.split("."), importlib.import_module(module))
        except ModuleNotFoundError as error:  # a library of an extra
            missing.add(str(error.name))
            continue
        count += len(names)
        lies += [f"{module}.{function}: {name}" for name in names if not refuses(target, name)]
    print(f"not tried without {', '.join(sorted(missing))}" if missing else f"{count} parameters and results")
    assert lies == []
    assert count > 2000


def refuses(target: Any, name: str) -> bool:
    """Whether a function refuses an object of no type of ours as that parameter, before it runs."""
    if name == "return":
        rule = make_rule(name, read_hints(target)[name])
        return rule is not None and not rule.accepts(Wrong())
    try:
        target(**{name: Wrong()})
    except TypeError as error:
        return f"takes {name} as" in str(error)
    return False
