"""Rule 4: the length of functions, and what they are split into to look short."""

from pathlib import Path

import pytest
from compliance.trees import make_tree

from research.compliance import length
from research.compliance.findings import RuleResult
from research.compliance.syntax.calls import CallGraph


def lines(number: int, indent: int = 4, text: str = "x = 1") -> str:
    return f"{' ' * indent}{text}\n" * number


SPLIT = "def train():\n    a = b = c = d = e = g = 1\n{}    {}({})\n\n\ndef {}({}):\n{}"
SIX = "a, b, c, d, e, g"
LONG_LINE = f"x = '{'a' * 156}'"  # with its indentation 165 columns

SHORT = {
    "sixty lines with the first": "def f():\n" + lines(59),
    "blank lines do not count": "def f():\n" + lines(58) + "\n" * 40 + "    return 1\n",
    "comments do not count": "def f():\n" + lines(50) + lines(50, text="# why"),
    "a docstring does not count": 'def f():\n    """One.\n' + lines(90, text="more") + '    """\n' + lines(59),
    "an inner function has its own lines": "def f():\n" + lines(40) + "    def g():\n" + lines(40, 8) + "    return g\n",
    "an inner function is called twice": (
        "def f():\n" + lines(30) + "    def g():\n" + lines(30, 8) + "    g()\n    return g()\n"
    ),
    "a line of 160 columns is one": "def f():\n" + lines(59, text=f"x = '{'a' * 150}'"),
    "a helper of another name": SPLIT.format(lines(40), "_pack", SIX, "_pack", SIX, lines(40)),
    "a part that takes few variables": SPLIT.format(lines(40), "_train_2", "a, b", "_train_2", "a, b", lines(40)),
    "a part that is called twice": SPLIT.format(lines(40), "_train_2", SIX, "_train_2", SIX, lines(40))
    + f"\n\ndef other(a, b, c, d, e, g):\n    _train_2({SIX})\n",
    "short parts": SPLIT.format(lines(10), "_train_2", SIX, "_train_2", SIX, lines(10)),
    "an if of one line counts for two": "def f():\n" + lines(29, text="if x: y()") + "    return 1\n",
}

LONG = {
    "sixty-one lines": ("def f():\n" + lines(60), "61 lines"),
    "a method": ("class C:\n    def f(self):\n" + lines(70, 8), "71 lines"),
    "an async function": ("async def f():\n" + lines(70), "71 lines"),
    "statements behind a semicolon": ("def f():\n" + lines(30, text="x = 1; y = 2; z = 3"), "91 lines"),
    "semicolons in an if of one line": ("def f():\n" + lines(30, text="if x: y(); z()"), "91 lines"),
    "very long lines": ("def f():\n" + lines(40, text=LONG_LINE), "81 lines"),
    "a text that is no docstring": ("def f():\n    x = '''\n" + lines(90, text="more") + "    '''\n", "93 lines"),
    "a hash in a text is no comment": ("def f():\n    x = '''\n" + lines(90, text="# more") + "    '''\n", "93 lines"),
    "an inner function that is called once": (
        "def f():\n" + lines(40) + "    def g():\n" + lines(40, 8) + "    g()\n",
        "83 lines",
    ),
    "inner functions that are called once each": (
        "def f():\n" + "".join(f"    def g{n}():\n{lines(29, 8)}    g{n}()\n" for n in range(3)),
        "94 lines",
    ),
    "an inner function of an inner one": (
        "def f():\n    def g():\n        def h():\n" + lines(40, 12) + "        h()\n" + lines(20, 8) + "    g()\n",
        "65 lines",
    ),
    "a second part": (SPLIT.format(lines(40), "_train_2", SIX, "_train_2", SIX, lines(40)), "84 lines"),
    "a part by name": (SPLIT.format(lines(40), "train_part2", SIX, "train_part2", SIX, lines(40)), "train_part2"),
    "the rest": (SPLIT.format(lines(40), "_train_rest", SIX, "_train_rest", SIX, lines(40)), "_train_rest"),
    "what is continued by keyword": (
        SPLIT.format(lines(40), "_train_continued", "a, b, c, d, e=e, g=g", "_train_continued", SIX, lines(40)),
        "_train_continued",
    ),
    "a part that takes locals()": (SPLIT.format(lines(40), "_go", "locals()", "_go", "names", lines(40)), "_go"),
    "a part that takes **locals()": (SPLIT.format(lines(40), "_go", "**locals()", "_go", "**names", lines(40)), "_go"),
    "a part of a part": (
        SPLIT.format(lines(20), "_train_2", SIX, "_train_2", SIX, lines(20) + f"    _train_3({SIX})\n")
        + f"\n\ndef _train_3({SIX}):\n{lines(30)}",
        "which are parts",
    ),
    "one of two with the same name": (
        "if x:\n    def f():\n" + lines(70, 8) + "else:\n    def f():\n        pass\n",
        "71 lines",
    ),
}


def check(folder: Path, text: str) -> RuleResult:
    tree = make_tree(folder, a=text)
    return length.check(tree, CallGraph(tree))


@pytest.mark.parametrize("text", SHORT.values(), ids=SHORT.keys())
def test_passes(tmp_path: Path, text: str) -> None:
    result = check(tmp_path, text)
    assert not result.findings
    assert result.units > 0


@pytest.mark.parametrize(("text", "message"), LONG.values(), ids=LONG.keys())
def test_fails(tmp_path: Path, text: str, message: str) -> None:
    result = check(tmp_path, text)
    assert len(result.findings) == 1
    assert message in result.findings[0].message
    assert result.conforming == result.units - 1


def test_parts_are_one_unit(tmp_path: Path) -> None:
    text = SPLIT.format(lines(40), "_train_2", SIX, "_train_2", SIX, lines(40))
    assert check(tmp_path, text).units == 1


def test_methods_are_split_too(tmp_path: Path) -> None:
    text = (
        f"class C:\n    def fit(self):\n        a = b = c = d = e = g = 1\n{lines(40, 8)}        self._fit_rest({SIX})\n\n"
        f"    def _fit_rest(self, {SIX}):\n{lines(40, 8)}"
    )
    result = check(tmp_path, text)
    assert [finding.unit for finding in result.findings] == ["a.C.fit"]
