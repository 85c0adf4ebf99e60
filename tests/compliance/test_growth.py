"""Rule 3: containers that grow without an end."""

from pathlib import Path

import pytest
from compliance.trees import make_tree

from research.compliance import growth
from research.compliance.findings import RuleResult
from research.compliance.syntax.calls import CallGraph

CLASS = """
from collections import Counter, OrderedDict, defaultdict, deque

class C:
    def __init__(self, limit=3):
        self.rows = VALUE

    def on_step(self, key, value):
        STATEMENT
"""


def fill(value: str, statement: str, more: str = "") -> str:
    """Return a class with a container and the statement of its method that fills it."""
    return CLASS.replace("VALUE", value).replace("STATEMENT", statement) + more


def add(body: str) -> str:
    """Return one more method of the class."""
    return f"\n    def other(self):\n        {body}\n"


APPEND = "self.rows.append(value)"
BOUNDED = {
    "it is cleared": fill("[]", APPEND, add("self.rows.clear()")),
    "it is popped": fill("[]", APPEND, add("return self.rows.pop()")),
    "it is set anew": fill("[]", APPEND, add("rows, self.rows = self.rows, []")),
    "it is sliced away": fill("[]", APPEND, add("self.rows = self.rows[-10:]")),
    "a slice is deleted": fill("[]", APPEND, add("del self.rows[:10]")),
    "a slice is replaced": fill("[]", APPEND, add("self.rows[:] = []")),
    "an item is deleted": fill("{}", "self.rows[key] = value", add("del self.rows['a']")),
    "deque has a maxlen": fill("deque(maxlen=3)", APPEND),
    "deque has a maxlen by position": fill("deque((), 3)", APPEND),
    "an annotated deque has a maxlen": fill("[]", APPEND).replace("self.rows =", "self.rows: deque[int] = deque(maxlen=3) #"),
    "its length is checked": fill("[]", f"if len(self.rows) < 10:\n            {APPEND}"),
    "a local name of it is popped": fill("[]", APPEND, add("rows = self.rows\n        rows.pop()")),
    "a heap is popped": fill("[]", "heappush(self.rows, value)", add("return heappop(self.rows)")),
    "the key is constant": fill("{}", "self.rows['last'] = value"),
    "an item of a list is set": fill("[0, 1]", "self.rows[key] = value"),
    "an item that was read is set": fill("{}", "self.rows[key] = self.rows[key] + value"),
    "items of a loop over itself are set": fill("{}", "for k in self.rows:\n            self.rows[k] = value"),
    "a number is added to": fill("0", "self.rows += value"),
    "an object of another kind is updated": fill("Metric()", "self.rows.update(value)"),
    "it is filled while it is set up": fill("[]", APPEND).replace("on_step", "setup"),
    "a base class empties it": (
        "class A:\n    def __init__(self):\n        self.rows = []\n\n    def empty(self):\n"
        "        self.rows.clear()\n\n"
        "class B(A):\n    def on_step(self, x):\n        self.rows.append(x)\n"
    ),
    "a cache has a size": "from functools import lru_cache\n@lru_cache(maxsize=8)\ndef f(x):\n    return x\n",
    "a cache has its usual size": "from functools import lru_cache\n@lru_cache\ndef f(x):\n    return x\n",
    "a cached function has no parameters": "from functools import cache\n@cache\ndef f():\n    return 1\n",
    "a cached function has few values": "from functools import cache\n@cache\ndef f(x: bool):\n    return x\n",
    "a container of a module is cleared": "ROWS = []\ndef f(x):\n    ROWS.append(x)\n\ndef g():\n    ROWS.clear()\n",
    "a local container is filled": "ROWS = []\ndef f(x):\n    ROWS = []\n    ROWS.append(x)\n",
    "a table of a module is read": "TABLE = {1: 2}\ndef f(x):\n    return TABLE[x]\n",
}

GROWING = {
    "append": fill("[]", APPEND),
    "extend": fill("[]", "self.rows.extend(value)"),
    "insert": fill("[]", "self.rows.insert(0, value)"),
    "appendleft": fill("deque()", "self.rows.appendleft(value)"),
    "maxlen is None": fill("deque(maxlen=None)", APPEND),
    "+= of a list": fill("[]", "self.rows += [value]"),
    "= itself and more": fill("[]", "self.rows = [*self.rows, value]"),
    "= itself + more": fill("[]", "self.rows = self.rows + [value]"),
    "|= of a set": fill("set()", "self.rows |= {value}"),
    "add": fill("set[int]()", "self.rows.add(value)"),
    "a key": fill("{}", "self.rows[key] = value"),
    "a key of an OrderedDict": fill("OrderedDict()", "self.rows[key] = value"),
    "a cache": fill("{}", "if key not in self.rows:\n            self.rows[key] = value\n        return self.rows[key]"),
    "a cache that returns early": fill(
        "{}", "if key in self.rows:\n            return self.rows[key]\n        self.rows[key] = value"
    ),
    "a cache that catches": fill(
        "{}", "try:\n            return self.rows[key]\n        except KeyError:\n            self.rows[key] = value"
    ),
    "update": fill("{}", "self.rows.update(value)"),
    "setdefault": fill("{}", "self.rows.setdefault(key, value)"),
    "a Counter": fill("Counter()", "self.rows[key] += 1"),
    "a list in a defaultdict": fill("defaultdict(list)", "self.rows[key].append(value)"),
    "a local name of it": fill("[]", "rows = self.rows\n        rows.append(value)"),
    "a heap": fill("[]", "heappush(self.rows, value)"),
    "a function inside": fill("[]", "def go():\n            self.rows.append(value)\n        go()"),
    "a length that is no bound": fill("[]", f"if len(self.rows) >= 0:\n            {APPEND}"),
    "it is emptied only where it is made": fill("[]", APPEND).replace(
        "self.rows = []", "self.rows = []\n        self.rows = []"
    ),
    "a field of a dataclass": (
        "from dataclasses import dataclass, field\n@dataclass\nclass C:\n"
        "    rows: list[int] = field(default_factory=list)\n\n"
        "    def on_step(self, x):\n        self.rows.append(x)\n"
    ),
    "a container of the class": (
        "class C:\n    rows = {}\n\n    @classmethod\n    def register(cls, key, x):\n        cls.rows[key] = x\n"
    ),
    "a parameter that is kept": "class C:\n    def __init__(self, rows: list[int]):\n        self.rows = rows\n\n"
    "    def on_step(self, x):\n        self.rows.append(x)\n",
    "a container of the module": "ROWS = []\ndef f(x):\n    ROWS.append(x)\n",
    "a dict of the module": "ROWS: dict[str, int] = {}\ndef f(key, x):\n    ROWS[key] = x\n",
    "a method fills a container of the module": "ROWS = []\nclass C:\n    def f(self, x):\n        ROWS.append(x)\n",
    "a cache without a bound": "from functools import cache\n@cache\ndef f(x):\n    return x\n",
    "a cache with maxsize=None": "import functools\n@functools.lru_cache(maxsize=None)\ndef f(x):\n    return x\n",
    "a cache with None": "from functools import lru_cache\n@lru_cache(None)\ndef f(x):\n    return x\n",
    "a cache of a method": "from functools import cache\nclass C:\n    @cache\n    def f(self):\n        return 1\n",
}


def check(folder: Path, text: str) -> RuleResult:
    tree = make_tree(folder, a=text)
    return growth.check(tree, CallGraph(tree))


@pytest.mark.parametrize("text", BOUNDED.values(), ids=BOUNDED.keys())
def test_passes(tmp_path: Path, text: str) -> None:
    result = check(tmp_path, text)
    assert not result.findings
    assert result.units > 0


@pytest.mark.parametrize("text", GROWING.values(), ids=GROWING.keys())
def test_fails(tmp_path: Path, text: str) -> None:
    result = check(tmp_path, text)
    assert len(result.findings) == 1
    assert "bound" in result.findings[0].message
    assert result.conforming == result.units - 1


def test_units_are_methods_and_functions_that_touch_the_module(tmp_path: Path) -> None:
    text = (
        "ROWS = [1]\ndef f():\n    return ROWS\n\ndef g():\n    return 1\n\nclass C:\n"
        "    def h(self):\n        def inner(): ...\n"
    )
    assert check(tmp_path, text).units == 2
