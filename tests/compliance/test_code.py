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
        "a local list of the same name": "ITEMS = [1]\ndef f() -> None:\n    ITEMS = []\n    ITEMS.append(2)\n",
        "a table that is read-only by its type": "from collections.abc import Mapping\nnames: Mapping[str, int] = {'a': 1}\n",
        "a list of each object": "class C:\n    def f(self) -> None:\n        self.a = []\n        self.a.append(1)\n",
        "a name of a script": "if __name__ == '__main__':\n    rows = [1]\n",
        "a class that is set up": "class C:\n    def __init_subclass__(cls) -> None:\n        cls.n = 1\n",
        "a default that is copied": "from pydantic import BaseModel\nclass C(BaseModel):\n    rows: list[int] = []\n",
        "a local object": "def f(a: object) -> None:\n    a.n = 1\n",
    },
    7: {
        "all has types": "def f(a: int) -> int:\n    return a\n",
        "a result that is kept": "def f(a: int) -> int:\n    return a\ndef g() -> None:\n    _ = f(3)\n",
        "a narrow exception": "try:\n    x = int('3')\nexcept ValueError:\n    pass\n",
        "any exception is logged": "import logging\ntry:\n    x = 1\nexcept Exception:\n    logging.exception('no')\n",
        "any exception has a fallback": "try:\n    x = 1\nexcept Exception:\n    x = 2\n",
        "one that is raised again": "try:\n    x = 1\nexcept Exception as error:\n    raise ValueError from error\n",
        "a call for what else it does": "def f(a: str) -> str:\n    print(a)\n    return a\ndef g() -> None:\n    f('b')\n",
        "a call for its error": "def f(a: str) -> str:\n    if a: raise OSError\n    return a\ndef g() -> None:\n    f('')\n",
        "a call that never returns": "def f() -> t.NoReturn:\n    raise ValueError\ndef g() -> None:\n    f()\n",
        "a number of bytes": "def write(a: bytes) -> int:\n    print(a)\n    return 1\ndef f() -> None:\n    write(b'')\n",
        "a finally that leaves its own loop": "try:\n    x = 1\nfinally:\n    for i in (1, 2):\n        break\n",
        "a context that chooses": "class Q:\n    def __exit__(self, *error: object) -> bool:\n        return not error[0]\n",
        "parameters that nobody reads": "def f(*_: Any, **__: Any) -> int:\n    return 1\n",
    },
    8: {
        "a constant attribute": "def f(a: object) -> object:\n    return getattr(a, 'shape', None)\n",
        "a literal is parsed": "import ast\ndef f(a: str) -> object:\n    return ast.literal_eval(a)\n",
        "keywords that are read": "def f(**names: int) -> int:\n    return sum(names.values())\n",
        "a method of one's own named eval": "class M:\n    def f(self) -> None:\n        self.model.eval()\n",
        "re.compile": "import re\nP = re.compile('a')\n",
        "names of a table": "def f(a: object) -> list[object]:\n    return [getattr(a, name) for name in ('b', 'c')]\n",
        "names of a constant": "NAMES = {'b': 1}\ndef f(a: object) -> None:\n    for n in NAMES:\n        setattr(a, n, 1)\n",
        "names in the second column": (
            "def f(a: object) -> None:\n    for _, name in ((1, 'b'), (2, 'c')):\n        print(getattr(a, name))\n"
        ),
        "a function of one's own named eval": "def eval(a: str) -> str:\n    return a\ndef f() -> str:\n    return eval('b')\n",
        "keywords of a known type": "def f(*args: P.args, **kwargs: P.kwargs) -> int:\n    return g(*args, **kwargs)\n",
        "keywords that are selected": "def f(**kwargs: int) -> None:\n    print(**{k: kwargs[k] for k in ('sep', 'end')})\n",
        "the environment is extended": "import os\ndef f() -> None:\n    os.environ |= {'A': '1'}\n",
        "a local name like an import": "def f(a: object) -> None:\n    os = a\n    os.b = 1\ndef g() -> None:\n    import os\n",
        "a pickled state": "class C:\n    def __setstate__(self, a: object) -> None:\n        self.__dict__.update(a)\n",
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
        "a list of the class for all objects": "class C:\n    A = []\n    def f(self) -> None:\n        self.A.append(1)\n",
        "a list in small letters of a class": "class C:\n    rows = [1]\n",
        "a class as a global": "class G:\n    n = 0\ndef f() -> None:\n    G.n += 1\n",
        "the class of an object": "class C:\n    n = 0\n    def f(self) -> None:\n        type(self).n = 1\n",
        "an attribute of a function": "def f() -> None:\n    f.n = 1\n",
        "an object as a global": "from types import SimpleNamespace\nS = SimpleNamespace()\ndef f() -> None:\n    S.n = 1\n",
        "a container in a container": "ROWS = {'a': [1]}\ndef f() -> None:\n    ROWS['a'].append(2)\n",
        "a list that an if makes": "if True:\n    rows = [1]\n",
        "a default of a lambda": "def f() -> object:\n    return lambda x=[]: x\n",
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
        "None in its place": "def f() -> None:\n    try:\n        g = 1\n    except BaseException:\n        return None\n",
        "suppress under another name": "from contextlib import suppress as quiet\nwith quiet(Exception):\n    x = 1\n",
        "any exception under another name": "ERRORS = (Exception,)\ntry:\n    x = 1\nexcept ERRORS:\n    pass\n",
        "an exception that is only named": "try:\n    x = 1\nexcept Exception as error:\n    _ = error\n",
        "a return in a finally": "def f() -> int:\n    try:\n        return g()\n    finally:\n        return 1\n",
        "a context that is deaf": "class Q:\n    def __exit__(self, *error: object) -> bool:\n        return True\n",
        "a coroutine that nobody awaits": "async def f() -> None:\n    print(1)\nasync def g() -> None:\n    f()\n",
        "a generator that nobody loops over": "def f():\n    yield 1\ndef g() -> None:\n    f()\n",
        "map as a loop": "def f(a: list[int]) -> None:\n    map(print, a)\n",
        "a status that is dropped": "def f(a: int) -> bool:\n    print(a)\n    return a > 1\ndef g() -> None:\n    f(3)\n",
        "an awaited status": "async def f() -> bool:\n    print(1)\n    return True\nasync def g() -> None:\n    await f()\n",
        "an error that is returned": "def f() -> ValueError | None:\n    print(1)\ndef g() -> None:\n    f()\n",
        "a sum that is dropped": "def f(a: str) -> str:\n    return str(sorted(a))\ndef g() -> None:\n    f('b')\n",
        "Any as a text": "def f(a: 'Any | None') -> int:\n    return 1\n",
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
        "eval that is handed on": "def f(a: list[str]) -> object:\n    return [*map(eval, a)]\n",
        "eval as an item": "def f(a: str) -> object:\n    return __builtins__['eval'](a)\n",
        "eval in a default": "def f(a: str, run: object = eval) -> object:\n    return run(a)\n",
        "eval in a lambda": "f = lambda a: eval(a)\n",
        "builtins under another name": "import builtins as b\ndef f(a: str) -> object:\n    return b.eval(a)\n",
        "a compiled text": "def f(a: str) -> object:\n    return compile(a, 'f', 'exec')\n",
        "a file that is run": "import runpy\ndef f(a: str) -> object:\n    return runpy.run_path(a)\n",
        "globals() as a table": "def f(a: str) -> None:\n    globals()[a] = 1\n",
        "a name of globals()": "def f(a: str) -> object:\n    return globals()[a]\n",
        "__dict__ as a table": "def f(a: object) -> None:\n    a.__dict__.update(b=1)\n",
        "a module that is put in place of another": "import sys\ndef f(a: object) -> None:\n    sys.modules['os'] = a\n",
        "setattr of a module": "import os\ndef f() -> None:\n    setattr(os, 'sep', '/')\n",
        "attrgetter of a value": "from operator import attrgetter\ndef f(a: str) -> object:\n    return attrgetter(a)\n",
        "object.__setattr__ of a value": "def f(a: object, b: str) -> None:\n    object.__setattr__(a, b, 1)\n",
        "a table of names that grows": (
            "def f(a: object, b: str) -> None:\n    c = ['d']\n    c.append(b)\n    for n in c:\n        getattr(a, n)\n"
        ),
        "a name of a loop that is set again": (
            "def f(a: object, b: str) -> None:\n    for n in ('c', 'd'):\n        n = b\n        getattr(a, n)\n"
        ),
        "keywords in another dict": "def f(**kwargs: int) -> None:\n    more = {**kwargs}\n    print(**more)\n",
        "keywords in a copy": "def f(**kwargs: int) -> None:\n    print(**dict(kwargs))\n",
    },
    9: {
        "three steps": "def f(a):\n    return a.b.c.d\n",
        "subscripts": "def f(a):\n    return a[0][1][2]\n",
        "three steps after self": "class A:\n    def f(self):\n        return self.a.b.c.d\n",
        "mixed": "def f(a):\n    return a.b[0].c\n",
        "getattr is a step": "def f(a):\n    return getattr(a.b, 'c').d\n",
        "attrgetter takes steps": "from operator import attrgetter\ndef f(a):\n    return attrgetter('b.c.d')(a)\n",
    },
    10: {
        "a bare noqa": "import os  # noqa\n",
        "a bare ignore": "x: int = 'a'  # type: ignore\n",
        "a whole file": "# ruff: noqa\nx = 1\n",
        "mypy off": "# mypy: ignore-errors\nx = 1\n",
        "all warnings off": "import warnings\n\nwarnings.filterwarnings('ignore')\n",
        "all warnings off, simply": "import warnings\n\nwarnings.simplefilter('ignore')\n",
        "noqa in capitals": "import os  # NOQA\n",
        "noqa without a code": "import os  # noqa:\n",
        "flake8 for a file": "# flake8: noqa\nimport os\n",
        "ignored by mypy for a file": "# type: ignore\nx = 1\n",
        "mypy off with a value": "# mypy: ignore_errors=True\nx = 1\n",
        "all warnings off by keyword": "import warnings\n\nwarnings.simplefilter(action='ignore')\n",
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


def test_ruff_that_cannot_look_is_told(tmp_path: Path) -> None:
    """Settings that it cannot read must not look like a tree without findings."""
    tree = make_tree(tmp_path, module="x = 1\n")
    assert not analysers.check(tree).notes
    (tmp_path / "ruff.toml").write_text("line-length = 'wide'\n", encoding="utf-8")
    (note,) = analysers.check(tree).notes
    assert note.startswith("ruff has not looked, rule 10 judges without it: ")
