"""Rules 5 to 10: what passes, what fails, and what only looks like a check."""

from pathlib import Path
from textwrap import indent

import pytest
from compliance.trees import make_tree

from research.compliance import analysers, chains, checks, dynamic, results, scope
from research.compliance.findings import Finding
from research.compliance.syntax.calls import CallGraph

RULES = {
    5: lambda tree: checks.check(tree, CallGraph(tree)),
    6: scope.check,
    7: lambda tree: results.check(tree, CallGraph(tree)),
    8: dynamic.check,
    9: chains.check,
    10: analysers.check,
}


def refuse(*tests: str) -> str:
    """Return the statements that raise where a test holds."""
    return "".join(f"    if {test}:\n        raise ValueError(a)\n" for test in tests)


TWO = refuse("a < 0", "b < 0")
CLEAN: dict[int, dict[str, str]] = {
    5: {
        "two raises under conditions": f"def f(a: int, b: int) -> int:\n{TWO}    return a + b\n",
        "a checker of the tree and a raise": (
            f"def check_size(a: int) -> None:\n{refuse('a < 0', 'a > 9')}"
            f"def f(a: int) -> int:\n    check_size(a)\n{refuse('a == 3')}    return a\n"
        ),
        "a decorator that checks types": (
            "from beartype import beartype\n@beartype\ndef f(a: int, b: str) -> str:\n    return b * a\n"
        ),
        "two parameters whose class checks itself": (
            f"class P:\n    def __init__(self, a: int, b: int) -> None:\n{indent(TWO, '    ')}        self.a = a\n"
            "def f(a: P, b: P) -> int:\n    return a.a + b.a\n"
        ),
        "a private helper has its caller's checks": "def _f(a: int) -> int:\n    return a\n",
        "nothing is given": "def f() -> int:\n    return 3\n",
        "NaN is told by itself": f"def f(a: float) -> float:\n{refuse('a != a', 'a < 0')}    return a\n",
    },
    6: {
        "a constant in capitals": "NAMES = {'a': 1}\ndef f() -> int:\n    return NAMES['a']\n",
        "a tuple": "names = ('a', 'b')\n",
        "None as a default": "def f(a: list[int] | None = None) -> list[int]:\n    return a or []\n",
        "a list of a dataclass": "import dataclasses\nclass A:\n    x: list[int] = dataclasses.field(default_factory=list)\n",
        "a constant of a class": "class A:\n    NAMES = ['a']\n    def f(self) -> str:\n        return self.NAMES[0]\n",
        "a list of an object": (
            "class A:\n    def __init__(self) -> None:\n        self.x = []\n"
            "    def f(self) -> None:\n        self.x.append(2)\n"
        ),
        "a local list of the same name": "ITEMS = [1]\ndef f() -> None:\n    ITEMS = []\n    ITEMS.append(2)\n",
    },
    7: {
        "all has types": "def f(a: int) -> int:\n    return a\n",
        "a result that is kept": "def f(a: int) -> int:\n    return a\ndef g() -> None:\n    _ = f(3)\n",
        "a narrow exception": "try:\n    x = int('3')\nexcept ValueError:\n    pass\n",
        "any exception is logged": "import logging\ntry:\n    x = 1\nexcept Exception:\n    logging.exception('no')\n",
        "any exception has a fallback": "try:\n    x = 1\nexcept Exception:\n    x = 2\n",
        "one that is raised again": "try:\n    x = 1\nexcept Exception as error:\n    raise ValueError from error\n",
    },
    8: {
        "a constant attribute": "def f(a: object) -> object:\n    return getattr(a, 'shape', None)\n",
        "a literal is parsed": "import ast\ndef f(a: str) -> object:\n    return ast.literal_eval(a)\n",
        "keywords that are read": "def f(**names: int) -> int:\n    return sum(names.values())\n",
        "a method of one's own named eval": "class M:\n    def f(self) -> None:\n        self.model.eval()\n",
        "re.compile": "import re\nP = re.compile('a')\n",
    },
    9: {
        "two steps": "def f(a):\n    return a.b.c\n",
        "modules are no steps": "import torch\ndef f(x):\n    return torch.nn.functional.relu(x)\n",
        "self is no step": "class A:\n    def f(self):\n        return self.a.b.c\n",
        "a call begins anew": "def f(a):\n    return a.b.c().d.e\n",
        "annotations": "def f(a: 'x') -> dict[str, dict[str, list[int]]]:\n    return {}\n",
    },
    10: {
        "a code is named": "import os  # noqa: F401\n",
        "warnings inside a block": "import warnings\n\nwith warnings.catch_warnings():\n    warnings.simplefilter('ignore')\n",
        "one message is off": "import warnings\n\nwarnings.filterwarnings('ignore', message='torch')\n",
    },
}
LIES: dict[int, dict[str, str]] = {
    5: {
        "nothing is checked": "def f(a: int) -> int:\n    return a\n",
        "a constant is asserted": "def f(a: int) -> int:\n    assert True\n    return a\n",
        "a filled tuple is asserted": "def f(a: int) -> int:\n    assert (a > 0, 'positive')\n    return a\n",
        "asserts go away under -O": "def f(a: int) -> int:\n    assert a > 0\n    assert a < 9\n    return a\n",
        "everything is an object": (
            "def f(a: int) -> int:\n    if not isinstance(a, object):\n        raise TypeError\n    return a\n"
        ),
        "a thing is itself": "def f(a: int) -> int:\n    assert a == a\n    return a\n",
        "a length is not negative": "def f(a: list[int]) -> int:\n    if len(a) < 0:\n        raise ValueError\n    return 1\n",
        "a constant is checked": "def f(a: int) -> int:\n    n = 3\n    if n != 3:\n        raise ValueError\n    return a\n",
        "two constants are compared": "def f(a: int) -> int:\n    if 1 > 2:\n        raise ValueError\n    return a\n",
        "a thing or its contrary": "def f(a: int) -> int:\n    assert a or not a\n    return a\n",
        "if False": "def f(a: int) -> int:\n    if False:\n        raise ValueError\n    return a\n",
        "only in debug": "def f(a: int) -> int:\n    if not __debug__:\n        raise ValueError\n    return a\n",
        "every object has a class": "def f(a: int) -> int:\n    assert hasattr(a, '__class__')\n    return a\n",
        "an alternative that always holds": "def f(a: int) -> int:\n    assert a > 0 or True\n    return a\n",
        "what it raises is swallowed": (
            "def f(a: int) -> int:\n    try:\n        if a < 0:\n            raise ValueError\n        if a > 9:\n"
            "            raise ValueError\n    except ValueError:\n        pass\n    return a\n"
        ),
        "nothing is checked after the return": f"def f(a: int, b: int) -> int:\n    return a\n{TWO}",
        "one check is written twice": f"def f(a: int, b: int) -> int:\n{refuse('a < 0', 'a < 0')}    return a\n",
        "it raises, whatever it is given": (
            "def f(a: int) -> int:\n    for _ in (1, 2):\n        raise ValueError\n    return a\n"
        ),
        "a checker that never raises": (
            "def check_a(a: int) -> None:\n    print(a)\ndef f(a: int) -> int:\n    check_a(a)\n    return a\n"
        ),
        "a decorator of that name that does nothing": (
            "def beartype(f):\n    return f\n@beartype\ndef g(a: int, b: int) -> int:\n    return a + b\n"
        ),
    },
    6: {
        "global": "n = 1\ndef f() -> None:\n    global n\n    n = 2\n",
        "nonlocal": "def f() -> None:\n    n = 1\n    def g() -> None:\n        nonlocal n\n        n = 2\n    g()\n",
        "a list as default": "def f(a: list[int] = []) -> None:\n    pass\n",
        "a made dict as default": "def f(*, a: dict[str, int] = dict()) -> None:\n    pass\n",
        "a list in small letters": "names = ['a']\n",
        "a constant that grows": "NAMES = ['a']\ndef f() -> None:\n    NAMES.append('b')\n",
        "a constant that is set": "NAMES: dict[str, int] = {}\ndef f() -> None:\n    NAMES['a'] = 1\n",
        "a list of a class": "class A:\n    names: list[str] = []\n",
        "a constant of a class that grows": "class A:\n    N = ['a']\n    def f(self) -> None:\n        self.N.append('b')\n",
        "one that another changes": "class A:\n    NAMES = ['a']\ndef f() -> None:\n    A.NAMES.append('b')\n",
    },
    7: {
        "no type": "def f(a) -> int:\n    return a\n",
        "no type of the result": "def f(a: int):\n    return a\n",
        "Any alone": "from typing import Any\ndef f(a: Any) -> int:\n    return 1\n",
        "a result that is dropped": "def f(a: int) -> int:\n    return a\ndef g() -> None:\n    f(3)\n",
        "except and pass": "try:\n    x = 1\nexcept:\n    pass\n",
        "except Exception and continue": "for i in (1, 2):\n    try:\n        x = 1\n    except Exception:\n        continue\n",
        "any exception among others": "try:\n    x = 1\nexcept (KeyError, Exception):\n    ...\n",
        "suppressed": "import contextlib\nwith contextlib.suppress(Exception):\n    x = 1\n",
        "suppressed under another name": "from contextlib import suppress as s\nwith s(Exception):\n    x = 1\n",
        "return in a finally": "def f() -> int:\n    try:\n        raise ValueError\n    finally:\n        return 0\n",
        "None in its place": "def f() -> None:\n    try:\n        g = 1\n    except BaseException:\n        return None\n",
    },
    8: {
        "eval": "def f(a: str) -> object:\n    return eval(a)\n",
        "exec at the top": "exec('x = 1')\n",
        "an alias of eval": "run = eval\ndef f(a: str) -> object:\n    return run(a)\n",
        "eval of builtins": "import builtins\ndef f(a: str) -> object:\n    return builtins.eval(a)\n",
        "exec under another name": "from builtins import exec as run\ndef f(a: str) -> None:\n    run(a)\n",
        "eval by its name": "import builtins\nrun = getattr(builtins, 'eval')\ndef f(a: str) -> object:\n    return run(a)\n",
        "import *": "from os import *\n",
        "a dynamic attribute": "def f(a: object, name: str) -> object:\n    return getattr(a, name)\n",
        "a module of any name": "import importlib\ndef f(name: str) -> object:\n    return importlib.import_module(name)\n",
        "keywords handed on": "def f(**kwargs: int) -> None:\n    print(**kwargs)\n",
        "a patched module": "import os\ndef f() -> None:\n    os.sep = '/'\n",
        "builtins by a name": "def f(a: str) -> object:\n    return __builtins__['eval'](a)\n",
        "globals that are set": "def f(a: str) -> None:\n    globals()[a] = 1\n",
        "a variable that is set": "def f(x: object, a: str) -> None:\n    vars(x)[a] = 1\n",
        "attributes by their mapping": "def f(x: object, a: str) -> None:\n    x.__dict__.update({a: 1})\n",
        "a dynamic attribute of a frozen object": "def f(x: object, a: str) -> None:\n    object.__setattr__(x, a, 1)\n",
        "a class that nobody reads": "def f(a: str) -> type:\n    return type(a, (), {})\n",
    },
    9: {
        "three steps": "def f(a):\n    return a.b.c.d\n",
        "subscripts": "def f(a):\n    return a[0][1][2]\n",
        "three steps after self": "class A:\n    def f(self):\n        return self.a.b.c.d\n",
        "mixed": "def f(a):\n    return a.b[0].c\n",
    },
    10: {
        "a bare noqa": "import os  # noqa\n",
        "a bare ignore": "x: int = 'a'  # type: ignore\n",
        "a whole file": "# ruff: noqa\nx = 1\n",
        "mypy off": "# mypy: ignore-errors\nx = 1\n",
        "all warnings off": "import warnings\n\nwarnings.filterwarnings('ignore')\n",
        "pylint off": "# pylint: disable=all\nx = 1\n",
        "all warnings off, simply": "import warnings\n\nwarnings.simplefilter('ignore')\n",
    },
}


def list_cases(table: dict[int, dict[str, str]]) -> list[object]:
    return [pytest.param(rule, text, id=f"{rule}: {name}") for rule, cases in table.items() for name, text in cases.items()]


def find(folder: Path, rule: int, text: str) -> list[Finding]:
    return list(RULES[rule](make_tree(folder, module=text)).findings)


@pytest.mark.parametrize(("rule", "text"), list_cases(CLEAN))
def test_what_conforms(tmp_path: Path, rule: int, text: str) -> None:
    messages = [f"{finding.unit}: {finding.message}" for finding in find(tmp_path, rule, text)]
    assert not [message for message in messages if "__init__" not in message and "check_size" not in message]


@pytest.mark.parametrize(("rule", "text"), list_cases(LIES))
def test_what_does_not(tmp_path: Path, rule: int, text: str) -> None:
    assert find(tmp_path, rule, text)
    assert RULES[rule](make_tree(tmp_path, module=text)).score < 100


@pytest.mark.parametrize("name", ["a constant is asserted", "a length is not negative", "if False", "a thing or its contrary"])
def test_a_check_that_cannot_fail_is_critical(tmp_path: Path, name: str) -> None:
    critical = [finding for finding in find(tmp_path, 5, LIES[5][name]) if finding.is_critical]
    assert critical
    assert "cannot fail" in critical[0].message


def test_mypy_says_which_functions_have_wrong_types(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, module="def f(a: int) -> int:\n    return str(a)\n")
    (finding,) = results.check(tree, CallGraph(tree), ["module.py:2: error: Incompatible return value type"]).findings
    assert "line 2" in finding.message
    assert analysers.check(tree, ["module.py:2: error: Incompatible return value type"]).score == 0


def test_a_report_of_mypy_from_another_folder_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "package", module="def f(a: int) -> int:\n    return str(a)\n")
    monkeypatch.chdir(tmp_path)
    assert analysers.check(tree, ["package/module.py:2: error: Incompatible return value type"]).score == 0
    assert results.check(tree, CallGraph(tree), ["package/module.py:2: error: no"]).findings
    assert analysers.check(tree, ["other/module.py:2: error: Incompatible return value type"]).score == 100


def test_ruff_that_cannot_look_is_told(tmp_path: Path) -> None:
    """Settings that it cannot read must not look like a tree without findings."""
    tree = make_tree(tmp_path, module="x = 1\n")
    assert not analysers.check(tree).notes
    (tmp_path / "ruff.toml").write_text("line-length = 'wide'\n", encoding="utf-8")
    (note,) = analysers.check(tree).notes
    assert note.startswith("ruff has not looked, rule 10 judges without it: ")


def test_a_constant_that_another_file_changes_is_found(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, a="NAMES = ['a']\n", b="from a import NAMES\ndef f() -> None:\n    NAMES.append('b')\n")
    (finding,) = scope.check(tree).findings
    assert (finding.path, finding.unit) == ("a.py", "a.NAMES")
    assert "line 2 of b.py" in finding.message


@pytest.mark.parametrize("folder", ["tests", "conf"])
def test_what_the_code_imports_counts_wherever_it_lies(tmp_path: Path, folder: str) -> None:
    """A folder of tests is no place to hide code in: what others import is code. What only tests import is not."""
    hidden = {
        f"{folder}__hidden": "from tests.more import g\nf = 1\ndef h(): ...\n",
        "tests__more": "g = 2\n",
        "tests__alone": "x = 3\n",
    }
    tree = make_tree(tmp_path, code=f"from {folder}.hidden import f\nprint(f)\n", **hidden)
    assert [module.path for module in tree.modules] == sorted(["code.py", f"{folder}/hidden.py", "tests/more.py"])
    assert tree.excluded == {"tests/alone.py": "test"}
