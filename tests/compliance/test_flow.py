"""Rule 1: recursion, complexity and nesting."""

from pathlib import Path

import pytest
from compliance.trees import make_tree, write_tree

from research.compliance import flow
from research.compliance.findings import RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.tree import read_tree

ELIF = "def f(x):\n    if x == 0:\n        return 0\n" + "".join(
    f"    elif x == {n}:\n        return {n}\n" for n in range(1, 9)
)

SIMPLE = {
    "a helper is called": "def a():\n    return b()\n\ndef b():\n    return 1\n",
    "its own annotations are read": """
        class C:
            def __init__(self, x: int) -> None:
                check(C.__init__.__annotations__, x)
        """,
    "an object of an unknown class has a method of the same name": """
        class C:
            def close(self):
                self.inner.close()
        """,
    "an object of another class has a method of the same name": """
        class A:
            def close(self):
                return 1
        class B:
            def __init__(self, inner: A):
                self.inner = inner
            def close(self):
                self.inner.close()
        """,
    "a function imports what is named like it": "def load(path):\n    from json import load\n    return load(path)\n",
    "a method is named like a function of its module": """
        def load(path):
            return path
        class Store:
            def load(self):
                return load(self.path)
        """,
    "a parameter is named like the function": "def run(run):\n    return run()\n",
    "a constructor asks for its own class": """
        class C:
            def __init__(self, other):
                self.is_same = isinstance(other, C) or type(other) is C
        """,
    "super has a method of the same name": """
        class A:
            def run(self):
                return 1
        class B(A):
            def run(self):
                return super().run()
        """,
    "the writer of a property reads it": """
        class C:
            @property
            def rate(self):
                return self._rate
            @rate.setter
            def rate(self, value):
                if self.rate != value:
                    self._rate = value
        """,
    "a static method's first parameter is no object of its class": """
        class C:
            @staticmethod
            def run(x):
                return x.run()
        """,
    "what is handed on is only inspected": """
        from inspect import signature
        def check(build):
            return signature(build).parameters if build else {}
        def f(x):
            return check(f)
        """,
    "nine branches of an elif are one block and complexity ten": ELIF,
    "and and or count nothing": "def f(a, b):\n    return " + " or ".join(["a and b"] * 12) + "\n",
    "comprehensions and conditional expressions count nothing, as in C901": (
        "def f(a):\n    return " + " + ".join(["[b if b else 1 for b in a if b]"] * 12) + "\n"
    ),
    "four blocks are inside each other": """
        def f(x):
            for a in x:
                if a:
                    with a:
                        while a:
                            pass
        """,
    "an inner function begins anew": """
        def f(x):
            for a in x:
                if a:
                    def g():
                        for b in a:
                            if b:
                                return 1
        """,
    "a lambda has a parameter of its own name": "f = lambda f: f(1)\n",
}

TANGLED = {
    "a function calls itself": ("def f(n):\n    return f(n - 1)\n", "a.f -> a.f"),
    "two functions call each other": ("def a():\n    return b()\n\ndef b():\n    return a()\n", "a.a -> a.b -> a.a"),
    "a function is handed on to map": ("def f(x):\n    return list(map(f, x))\n", "a.f -> a.f"),
    "a partial of it is called": ("from functools import partial\ndef f(x):\n    return partial(f, 1)()\n", "a.f -> a.f"),
    "a partial at the top is called": (
        "from functools import partial\ndef f(x):\n    return g(x)\n\ng = partial(f, 1)\n",
        "a.f -> a.f",
    ),
    "a local alias is called": ("def f(n):\n    g = f\n    return g(n)\n", "a.f -> a.f"),
    "an alias at the top is called": ("def f(n):\n    return g(n)\n\ng = f\n", "a.f -> a.f"),
    "a lambda inside calls the function": ("def f(n):\n    g = lambda: f(n - 1)\n    return g()\n", "a.f -> a.f"),
    "type(self) has the method": ("class C:\n    def run(self):\n        return type(self).run(self)\n", "C.run -> C.run"),
    "self.__class__ has the method": ("class C:\n    def run(self):\n        return self.__class__.run(self)\n", "C.run"),
    "cls has the method": ("class C:\n    @classmethod\n    def run(cls):\n        return cls.run()\n", "C.run -> C.run"),
    "a new object has the method": ("class C:\n    def run(self):\n        return C().run()\n", "C.run -> C.run"),
    "super leads back": (
        (
            "class A:\n    def run(self):\n        return B().run()\n\nclass B(A):\n"
            "    def run(self):\n        return super().run()\n"
        ),
        "recursion",
    ),
    "an inner function calls the outer one": ("def f(n):\n    def g():\n        return f(n - 1)\n    return g()\n", "a.f -> "),
    "an inner function calls a method of the outer self": (
        "class C:\n    def run(self):\n        def go():\n            return self.run()\n        return go()\n",
        "C.run",
    ),
    "a child of its own class is walked": (
        (
            "class Node:\n    children: list['Node']\n    def walk(self):\n"
            "        for child in self.children:\n            child.walk()\n"
        ),
        "Node.walk -> Node.walk",
    ),
    "a property reads itself": ("class C:\n    @property\n    def x(self):\n        return self.x\n", "C.x -> C.x"),
    "its own class is called with what it calls": ("def f(x):\n    return type(x)(map(f, x))\n", "a.f -> a.f"),
    "a lambda calls the name it is bound to": ("f = lambda n: f(n - 1)\n", " f -> f;"),
    "a lambda calls the attribute it is bound to": (
        "class C:\n    def __init__(self):\n        self.f = lambda n: self.f(n - 1)\n",
        "self.f -> self.f",
    ),
    "ten elif make eleven": (ELIF + "    elif x == 10:\n        return 1\n", "complexity 11"),
    "handlers, loops, cases and functions inside count": (
        """
        def f(x):
            for a in x:
                while a:
                    try:
                        a = x
                    except KeyError:
                        a = 1
                    except ValueError:
                        a = 2
                    else:
                        a = 0
            def g():
                if x:
                    pass
            if x:
                pass
            match x:
                case 1:
                    pass
                case 2:
                    pass
                case _:
                    pass
        """,
        "complexity 11",
    ),
    "five blocks are inside each other": (
        """
        def f(x):
            for a in x:
                if a:
                    with a:
                        try:
                            pass
                        finally:
                            if a:
                                pass
        """,
        "5 blocks",
    ),
    "an else holds an if that is no elif": (
        """
        def f(x):
            if x:
                pass
            else:
                if x:
                    pass
                else:
                    if x:
                        pass
                    else:
                        if x:
                            pass
                        else:
                            if x:
                                pass
                            x = 1
        """,
        "5 blocks",
    ),
}


def check(folder: Path, **files: str) -> RuleResult:
    tree = make_tree(folder, **files)
    return flow.check(tree, CallGraph(tree))


@pytest.mark.parametrize("text", SIMPLE.values(), ids=SIMPLE.keys())
def test_passes(tmp_path: Path, text: str) -> None:
    result = check(tmp_path, a=text)
    assert not result.findings
    assert result.score == 100


@pytest.mark.parametrize(("text", "message"), TANGLED.values(), ids=TANGLED.keys())
def test_fails(tmp_path: Path, text: str, message: str) -> None:
    result = check(tmp_path, a=text)
    assert any(message in finding.message for finding in result.findings), result.findings
    assert all(finding.is_critical == ("recursion" in finding.message) for finding in result.findings)
    assert result.conforming < result.units


def test_recursion_over_files(tmp_path: Path) -> None:
    """An import inside a function counts too."""
    files = {"a": "from b import g\n\ndef f():\n    return g()\n", "b": "def g():\n    from a import f\n    return f()\n"}
    result = check(tmp_path, **files)
    assert [finding.path for finding in result.findings] == ["a.py", "b.py"]
    assert result.score == 0


def test_recursion_within_a_package_that_is_the_root(tmp_path: Path) -> None:
    """Imports name the package, whose folder is above the files."""
    files = {"b": "from pkg.c import g\n\ndef f():\n    return g()\n", "c": "from pkg import b\n\ndef g():\n    return b.f()\n"}
    tree = read_tree(write_tree(tmp_path / "pkg", {"__init__.py": "", **{f"{name}.py": text for name, text in files.items()}}))
    assert [finding.unit for finding in flow.check(tree, CallGraph(tree)).findings] == ["pkg.b.f", "pkg.c.g"]


def test_long_cycle_is_short_to_read(tmp_path: Path) -> None:
    names = [f"a_function_with_a_long_name_{number}" for number in range(12)]
    text = "".join(f"def {name}():\n    {names[(number + 1) % 12]}()\n\n" for number, name in enumerate(names))
    result = check(tmp_path, a=text)
    assert len(result.findings) == 12
    assert all(len(f.message) <= 200 and "..." in f.message and f.message.endswith("bound") for f in result.findings)


def test_units_are_functions_at_any_depth(tmp_path: Path) -> None:
    text = (
        "class C:\n    def f(self):\n        def g():\n            return lambda: 1\n"
        "        return g\n\nasync def h():\n    pass\n"
    )
    assert check(tmp_path, a=text).units == 3
