"""Which decorators count under rule 5: those that can refuse what a function is called with."""

from pathlib import Path

import pytest

from research.compliance import checks
from research.compliance.findings import RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.tree import read_tree

USED = "def f(a: int, b: str) -> str:\n    return b * a\n"
GUARD = (
    "from functools import wraps\n"
    "def contract(function):\n"
    "    terms = dict(function.__annotations__)\n"
    "    @wraps(function)\n"
    "    def call(*args, **kwargs):\n"
    "        wrong = [value for value in args if type(value) not in terms.values()]\n"
    "        if wrong:\n"
    "            raise TypeError(wrong)\n"
    "        return function(*args, **kwargs)\n"
    "    return call\n"
)
COUNTS: dict[str, tuple[str, int]] = {  # source, the checks that count of f
    "a decorator of the tree": (f"{GUARD}@contract\n{USED}", 2),
    "one that calls the one that guards": (f"{GUARD}def check_all(g):\n    return contract(g)\n@check_all\n{USED}", 2),
    "with brackets": (f"{GUARD}@contract()\n{USED}", 2),
    "of a library": (f"from beartype import beartype\n@beartype\n{USED}", 2),
    "of a library by its module": (f"import typeguard\n@typeguard.typechecked\n{USED}", 2),
    "under another name": (f"from pydantic import validate_call as check\n@check\n{USED}", 2),
    "the result counts as a parameter": (f"{GUARD}@contract\ndef f(a: int) -> str:\n    return str(a)\n", 2),
    "no result, one parameter": (f"{GUARD}@contract\ndef f(a: int) -> None:\n    print(a)\n", 1),
    "around a class": (f"{GUARD}@contract\nclass C:\n    def f(self, a: int, b: int) -> None:\n        print(a, b)\n", 2),
    "a class that a decorator checks, as a parameter": (
        f"{GUARD}@contract\nclass C:\n    x: int\ndef f(a: C) -> None:\n    print(a.x)\n",
        1,
    ),
}
CHECK_ALL = "def check_all(values: dict) -> None:\n    if None in values.values():\n        raise ValueError(values)\n"
COUNTS |= {
    "a checker gets all": (f"{CHECK_ALL}def f(a: int, b: int) -> int:\n    check_all(locals())\n    return a + b\n", 2),
    "all is one": (f"{CHECK_ALL}def f(a: int) -> int:\n    check_all(locals())\n    return a\n", 1),
}
LIES: dict[str, tuple[str, int]] = {
    "it returns what it takes": (f"def contract(function):\n    return function\n@contract\n{USED}", 0),
    "it has the name of a library's": (f"def beartype(function):\n    return function\n@beartype\n{USED}", 0),
    "it guards nothing": (GUARD.replace("if wrong:", "if False:") + f"@contract\n{USED}", 0),
    "its guard is a constant": (GUARD.replace("wrong = [", "_ = [").replace("if wrong", "if not 3") + f"@contract\n{USED}", 0),
    "its guard looks elsewhere": (
        GUARD.replace("if wrong", "if not function.__doc__") + f"@contract\n{USED}",
        0,
    ),
    "it warns": (GUARD.replace("raise TypeError(wrong)", "print(wrong)") + f"@contract\n{USED}", 0),
    "it raises and never calls": (GUARD.replace("return function(*args, **kwargs)", "return None") + f"@contract\n{USED}", 0),
    "it puts nothing around": (GUARD.replace("    return call\n", "    return function\n") + f"@contract\n{USED}", 0),
    "its annotations say nothing": (
        f"{GUARD}from typing import Any\n@contract\ndef f(a: Any, b: object) -> Any:\n    return a, b\n",
        0,
    ),
    "they are type variables": (
        f"{GUARD}from typing import TypeVar\nT = TypeVar('T')\n@contract\ndef f(a: T, b: T | None) -> T:\n    return a\n",
        0,
    ),
    "they are type variables of another file": (
        f"{GUARD}from b import T\n@contract\ndef f(a: T, b: T | None) -> T:\n    return a\n",
        0,
    ),
    "they are protocols": (
        f"{GUARD}import typing\nclass P(typing.Protocol):\n    x: int\n@contract\ndef f(a: P, b: P) -> P:\n    return a\n",
        0,
    ),
    "they are imported for type checkers": (
        f"{GUARD}from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from b import B\n"
        "@contract\ndef f(a: 'B', b: 'B | None') -> 'B':\n    return a\n",
        0,
    ),
    "who gets all raises nothing": (
        "def check_all(v: dict) -> None:\n    print(v)\ndef f(a: int) -> int:\n    check_all(locals())\n    return a\n",
        0,
    ),
    "all is variadic": (f"{GUARD}@contract\ndef f(*a: int, **b: int) -> None:\n    print(a, b)\n", 0),
    "a static method of a class around it": (
        f"{GUARD}@contract\nclass C:\n    @staticmethod\n    def f(a: int, b: int) -> None:\n        print(a, b)\n",
        0,
    ),
}


def refuse(*tests: str) -> str:
    """Return the statements that raise where a test holds."""
    return "".join(f"    if {test}:\n        raise ValueError(a)\n" for test in tests)


def check(folder: Path, source: str) -> RuleResult:
    """Return what rule 5 says of one file."""
    (folder / "a.py").write_text(source)
    (folder / "b.py").write_text("from typing import TypeVar\nT = TypeVar('T')\n")
    return checks.check(tree := read_tree(folder), CallGraph(tree))


def count_checks(folder: Path, source: str) -> int:
    """Return the checks of f that count, as the finding of it says; 2 where there is none."""
    findings = [item for item in check(folder, source).findings if item.unit.split(".")[-1] == "f" and not item.is_critical]
    return int(findings[0].message.split()[0]) if findings else 2


@pytest.mark.parametrize("name", COUNTS)
def test_a_decorator_that_checks_counts(tmp_path: Path, name: str) -> None:
    source, count = COUNTS[name]
    assert count_checks(tmp_path, source) == count


@pytest.mark.parametrize("name", LIES)
def test_a_decorator_that_checks_nothing_counts_for_none(tmp_path: Path, name: str) -> None:
    source, count = LIES[name]
    assert count_checks(tmp_path, source) == count


def test_one_long_function_does_not_make_up_for_many(tmp_path: Path) -> None:
    plain = "".join(f"def f{number}(a: int) -> int:\n    return a\n" for number in range(9))
    result = check(
        tmp_path, f"def f(a: int) -> int:\n{refuse(*(f'a == {number}' for number in range(50)))}    return a\n{plain}"
    )
    assert (result.units, result.conforming) == (20, 4)


def test_two_are_wanted_on_average(tmp_path: Path) -> None:
    three = f"def f(a: int) -> int:\n{refuse('a < 0', 'a > 9', 'a == 3')}    return a\n"
    result = check(tmp_path, f"{three}def g(a: int) -> int:\n{refuse('a')}    return a\n")
    assert (result.units, result.conforming) == (4, 4)
    assert [finding.unit for finding in result.findings] == ["a.g"]
