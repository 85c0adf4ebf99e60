"""Trees that try to look clean: each lie, the rule that it would pass, and what the checker must say of it."""

from pathlib import Path

import pytest
from compliance.trees import write_tree

from research.compliance.rules import Inputs, run_rules
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.tree import read_tree

EVAL = "def load(text: str) -> object:\n    return eval(text)\n"
TEN = "a, b, c, d, e, g, h, i, j, k"
RECURSION, GROWS, SHARED = "recursion", "grows (append)", "is changed after the import"


def fill(number: int, indent: int = 4) -> str:
    """Return lines of code."""
    return f"{' ' * indent}x = 1\n" * number


def loop(body: str) -> str:
    """Return a file with a function of some statements."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"import itertools\nfrom itertools import count as numbers\n\n\ndef f(x, n):\n{lines}"


def grow(body: str, more: str = "", name: str = "step") -> str:
    """Return a file with a class whose method fills a list."""
    lines = "".join(f"        {line}\n" for line in ["self.rows.append(x)", *body.splitlines()])
    return f"class C:\n    def __init__(self):\n        self.rows = []\n\n    def {name}(self, x):\n{lines}{more}"


RUN = "class C:\n    def run(self, n):\n        return "
EVER = "class Ever:\n    def __iter__(self):\n        return self\n\n    def __next__(self):\n        return 1\n"
LAMBDA = "def f(x):\n    return (lambda: (\n" + "        x,\n" * 70 + "    ))()\n"
SPLIT = f"def train():\n    {TEN.replace(', ', ' = ')} = 1\n{fill(40)}    _finish({TEN})\n\n\ndef _finish({TEN}):\n{fill(40)}"
LIES: dict[str, tuple[int, str, str | dict[str, str]]] = {
    "recursion through a lambda": (1, RECURSION, "f = lambda n: g(n)\ndef g(n):\n    return f(n - 1)\n"),
    "recursion through a lambda that is handed on": (1, RECURSION, "def f(n):\n    return map(lambda m: f(m), n)\n"),
    "recursion through a partial": (
        *(1, RECURSION),
        "from functools import partial\ndef f(n):\n    return go(n)\ngo = partial(f, 1)\n",
    ),
    "recursion through a property": (
        *(1, RECURSION),
        "class C:\n    @property\n    def x(self):\n        return self.y()\n    def y(self):\n        return self.x\n",
    ),
    "recursion through another file": (
        *(1, RECURSION),
        {"a.py": "import b\ndef f(n):\n    return b.g(n)\n", "b.py": "def g(n):\n    from a import f\n    return f(n)\n"},
    ),
    "recursion through an object that is called": (1, RECURSION, RUN.replace("run", "__call__") + "self(n - 1)\n"),
    "recursion through getattr": (1, RECURSION, RUN + "getattr(self, 'run')(n - 1)\n"),
    "recursion through a table of functions": (1, RECURSION, "def f(n):\n    return TABLE['f'](n)\nTABLE = {'f': f}\n"),
    "recursion through another name of a method": (1, RECURSION, RUN + "self.go(n - 1)\n    go = run\n"),
    "a counter that nothing reads": (2, "while True", loop("i = 0\nwhile True:\n    i += 1")),
    "a counter that leads nowhere": (2, "while True", loop("i = 0\nwhile True:\n    i += 1\n    if i > n:\n        pass")),
    "iter with what never comes": (2, "may never end", loop("for _ in iter(int, 1):\n    x()")),
    "iter of a function and None": (2, "may never end", loop("for _ in iter(x, None):\n    x()")),
    "count under another name": (2, "may never end", loop("for i in numbers():\n    x(i)")),
    "a way out that a constant shuts": (2, "while True", loop("while True:\n    if False:\n        break\n    x()")),
    "a test that is a constant": (2, "counter", loop("go = True\nwhile go:\n    x()")),
    "a constant with a name": (2, "while True", loop("while go := True:\n    x()")),
    "an iterator of one's own": (2, "may never end", EVER + "def f():\n    for x in Ever():\n        print(x)\n"),
    "a deque whose maxlen is None": (3, GROWS, grow("").replace("[]", "deque(maxlen=None)")),
    "its length is compared, and nothing reads it": (3, GROWS, grow("len(self.rows) < 10")),
    "its length is compared for a pass": (3, GROWS, grow("if len(self.rows) > 10:\n    pass")),
    "it is cleared in a branch that never runs": (3, GROWS, grow("if False:\n    self.rows.clear()")),
    "it is cleared by what nobody calls": (3, GROWS, grow("", "    def _never(self):\n        self.rows.clear()\n")),
    "a step that is named as set-up": (3, GROWS, grow("", name="build_step")),
    "a part that is called once with ten variables": (4, "is a part of it", SPLIT),
    "a part that takes locals()": (4, "is a part of it", SPLIT.replace(f"_finish({TEN})\n", "_finish(locals())\n", 1)),
    "a lambda in place of lines": (4, "lines of code", LAMBDA),
    "a program at the top of a file": (4, "lines of code", f"import sys\n\nif sys.argv:\n{fill(70)}"),
    "a class body in place of a function": (4, "lines of code", f"class C:\n    for _ in (1,):\n{fill(70, 8)}"),
    "a name of another module": (
        *(6, "a.LEVEL is set for everybody"),
        {"a.py": "LEVEL = 1\n", "b.py": "import a\ndef f() -> None:\n    a.LEVEL = 2\n"},
    ),
    "a container of another module": (
        *(6, f"{SHARED}, b.py"),
        {"a.py": "ROWS = []\n", "b.py": "from a import ROWS\ndef f() -> None:\n    ROWS.append(2)\n"},
    ),
    "an object that is imported as a module": (
        *(9, "3 steps"),
        {"a.py": "from b import state\ndef f():\n    return state.a.b.c\n", "b.py": "state = 1\n"},
    ),
    "ruff without rules": (10, "turns ruff or mypy off", {"a.py": "x = 1\n", "ruff.toml": "lint.select = []\n"}),
    "all rules off for all files": (
        *(10, "turns ruff or mypy off"),
        {"a.py": "x = 1\n", "pyproject.toml": "[tool.ruff.lint.per-file-ignores]\n'**/*.py' = ['ALL']\n"},
    ),
    "mypy off in its settings": (
        *(10, "turns ruff or mypy off"),
        {"a.py": "x = 1\n", "pyproject.toml": "[tool.mypy]\nignore_errors = true\n"},
    ),
    "code in a folder of tests": (8, "eval makes", {"a.py": "from tests.load import load\n", "tests/load.py": EVAL}),
    "code with the name of a test": (8, "eval makes", {"a.py": "import test_load\n", "test_load.py": EVAL}),
    "code behind code in a folder of tests": (
        *(8, "eval makes"),
        {"a.py": "import tests.b\n", "tests/b.py": "from .c import load\n", "tests/c.py": EVAL, "tests/__init__.py": ""},
    ),
    "code in a configuration": (8, "eval makes", {"a.py": "x = 1\n", "conf/b.py": "load = lambda text: eval(text)\n"}),
    "a file that calls itself generated": (8, "eval makes", f"# Generated by protoc. Do not edit.\n{EVAL}"),
    "a file that is named as generated": (8, "eval makes", {"a_pb2.py": EVAL}),
    "a package that is named as a build": (8, "eval makes", {"build/__init__.py": EVAL}),
}


@pytest.mark.parametrize(("rule", "message", "files"), LIES.values(), ids=LIES)
def test_a_lie_is_found(tmp_path: Path, rule: int, message: str, files: str | dict[str, str]) -> None:
    tree = read_tree(write_tree(tmp_path, files if isinstance(files, dict) else {"a.py": files}))
    (result,) = run_rules(Inputs(tree, CallGraph(tree)), [rule])
    assert any(message in finding.message for finding in result.findings), result.findings
    assert result.conforming < result.units


HONEST: dict[str, dict[str, str]] = {
    "a test": {"a.py": "x = 1\n", "tests/load.py": EVAL},
    "a test that a test imports": {"a.py": "x = 1\n", "tests/load.py": EVAL, "tests/test_a.py": "import tests.load\n"},
    "settings": {"a.py": "x = 1\n", "conf/b.py": "load = 'eval for'\n"},
    "a generated file": {"a.py": "import b_pb2\n", "b_pb2.py": f"# Generated by the protocol buffer compiler.\n{EVAL}"},
    "a folder of generated files": {"a.py": "x = 1\n", "generated/b.py": f"# Autogenerated by thrift\n{EVAL}"},
    "a folder that a build leaves": {"a.py": "x = 1\n", "build/lib/b.py": EVAL},
}


@pytest.mark.parametrize("files", HONEST.values(), ids=HONEST)
def test_what_does_not_count(tmp_path: Path, files: dict[str, str]) -> None:
    tree = read_tree(write_tree(tmp_path, files))
    assert [module.path for module in tree.modules] == ["a.py"]
