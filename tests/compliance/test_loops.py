"""Rule 2: loops and their bounds."""

from pathlib import Path
from textwrap import indent

import pytest
from compliance.trees import make_tree

from research.compliance import loops
from research.compliance.findings import RuleResult
from research.compliance.syntax.calls import CallGraph

HEAD = """
import asyncio, itertools, math, time
from itertools import count, cycle, islice, repeat, takewhile

def f(x, n, left, queue, deadline, node, process, event):
"""

BOUNDED = {
    "for over what is finite": "for a in x:\n    print(a)",
    "for over a range": "for _ in range(n):\n    print(n)",
    "for over islice of count": "for a in islice(count(), 3):\n    print(a)",
    "for over zip with something finite": "for a, b in zip(count(), x):\n    print(a, b)",
    "for over enumerate of zip": "for i, (a, b) in enumerate(zip(cycle(x), range(n))):\n    print(a, b)",
    "for over repeat with times": "for a in repeat(1, n):\n    print(a)",
    "for over repeat with times by name": "for a in repeat(1, times=n):\n    print(a)",
    "for over takewhile": "for a in takewhile(lambda a: a < n, count()):\n    print(a)",
    "for over count leaves by a count": "for i in count():\n    if i >= n:\n        break\n    print(i)",
    "for over cycle leaves by the clock": "for i in cycle(x):\n    if time.monotonic() > deadline:\n        raise TimeoutError",
    "for over what grows in some rounds": "for a in left:\n    if a:\n        left.append(a)",
    "a comprehension over zip": "return [a for a, b in zip(x, count())]",
    "a generator within zip": "return [*zip(x, (i * i for i in count()))]",
    "a counter goes up": "i = 0\nwhile i < n:\n    i += 1",
    "a counter goes down": "while n > 0:\n    n -= 1",
    "a counter on the right": "i = 0\nwhile n >= i:\n    i = i + 1",
    "a counter among others": "i = 0\nwhile x and i < n:\n    i += 2",
    "a counter of an object": "while x.i < x.n:\n    x.i += 1",
    "a counter in both branches": "i = 0\nwhile i < n:\n    if x:\n        i += 1\n    else:\n        i += 2",
    "a counter before continue": "i = 0\nwhile i < n:\n    i += 1\n    if x:\n        continue\n    print(i)",
    "a counter in finally": (
        "i = 0\nwhile i < n:\n    try:\n        print(i)\n    except ValueError:\n"
        "        continue\n    finally:\n        i += 1"
    ),
    "a counter where the other branch leaves": "i = 0\nwhile i < n:\n    if x:\n        return\n    i += 1",
    "a counter in the test": "while (n := n - 1) > 0:\n    print(n)",
    "halving": "while n > 1:\n    n //= 2",
    "shifting": "while n:\n    n >>= 1",
    "bisection": (
        "lo, hi = 0, n\nwhile lo < hi:\n    mid = (lo + hi) // 2\n    if x[mid]:\n"
        "        lo = mid + 1\n    else:\n        hi = mid"
    ),
    "the remainder": "while n:\n    x, n = n, x % n",
    "a cursor": "while node is not None:\n    node = node.next",
    "a cursor by its attribute": "while node.parent is not None:\n    node = node.parent",
    "a cursor by its class": "while isinstance(node, str):\n    node = node[1:]",
    "a cursor of pages": "while node:\n    page = fetch(node)\n    node = page.next",
    "a position that is found again": "i = x.find('a')\nwhile i != -1:\n    i = x.find('a', i + 1)",
    "a length that grows": "rows = []\nwhile len(rows) < n:\n    rows.append(1)",
    "the counter is set to the bound": "i = 0\nwhile i < n:\n    i += 1\n    if x:\n        i = n",
    "a counter is reset before it leaves": "i = 0\nwhile i < n:\n    i += 1\n    if x:\n        i = 0\n        break",
    "a work list": "while left:\n    left.pop()",
    "a work list that may grow": (
        "while left:\n    a = left.popleft()\n    left += a.children\n    if a:\n        left.append(a)"
    ),
    "a work list by its length": "while len(left) > 0:\n    del left[0]",
    "a work list by its size": "while len(left):\n    left = left[1:]",
    "a work list that is sliced": "while left:\n    a, left = left[:n], left[n:]",
    "a heap": "while left:\n    heapq.heappop(left)",
    "a queue": "while not queue.empty():\n    queue.get()",
    "levels of a search": "while left:\n    left = [b for a in left for b in a.children]",
    "a deadline": "while time.monotonic() < deadline:\n    print(x)",
    "a time limit": "start = time.time()\nwhile time.time() - start < 5:\n    print(x)",
    "the time that is left": "while deadline - time.monotonic() > 0:\n    print(x)",
    "a way out by a deadline": "while True:\n    if time.monotonic() > deadline:\n        raise TimeoutError\n    print(x)",
    "a way out by a deadline in an else": (
        "while True:\n    if time.monotonic() < deadline:\n        print(x)\n    else:\n        break"
    ),
    "a deadline beside another test": (
        "while x.is_alive():\n    if time.monotonic() > max(n, x.begun) + 5:\n        break\n    x.join(0.1)"
    ),
    "a way out by a count": "i = 0\nwhile True:\n    i += 1\n    if i > n:\n        break",
    "a count of failures": """
tries = 0
while True:
    try:
        return x()
    except OSError:
        tries += 1
        if tries >= 5:
            raise
""",
    "a wait that raises": "while True:\n    process.wait(timeout=5)\n    print(x)",
    "a wait in asyncio that raises": "while True:\n    await_(asyncio.wait_for(x, timeout=5))",
    "a wait that breaks": "while True:\n    if not event.wait(5):\n        break\n    print(x)",
    "a text that is cut": "while x not in left:\n    x, _, _ = x.rpartition('.')",
    "a count of what a counter holds": "while x.total() < n:\n    x[deadline] += 1",
    "a loop inside has a bound of its own": (
        "i = 0\nwhile i < n:\n    for a in x:\n        if a:\n            break\n    i += 1"
    ),
}

WHILE_TRUE = {
    "while True": "while True:\n    print(x)",
    "while 1": "while 1:\n    print(x)",
    "while not False": "while not False:\n    print(x)",
    "while a text": "while 'x':\n    print(x)",
    "while True or x": "while True or x:\n    print(x)",
    "while x or 1": "while x or 1:\n    print(x)",
    "while one and another constant": "while 1 and 'x':\n    print(x)",
    "while a list": "while [0]:\n    print(x)",
    "while constants compare": "while 1 < 2:\n    print(x)",
    "while a name equals itself": "while x == x:\n    print(x)",
    "a way out by anything": "while True:\n    if x():\n        break",
    "a way out that some rounds skip": (
        "i = 0\nwhile True:\n    i += 1\n    if x:\n        continue\n    if i > n:\n        break"
    ),
    "a way out by a counter that some rounds step": (
        "i = 0\nwhile True:\n    if x:\n        i += 1\n    if i > n:\n        break"
    ),
    "a way out by a counter that goes away": "i = 0\nwhile True:\n    i -= 1\n    if i > 10:\n        break",
    "a way out of a loop inside": "i = 0\nwhile True:\n    for a in x:\n        i += 1\n        if i > n:\n            break",
    "a deadline that only warns": "while True:\n    if time.monotonic() > deadline:\n        print(x)",
    "an event that is waited for": "while True:\n    if event.wait(5):\n        break",
    "a wait whose end is caught": (
        "while True:\n    try:\n        process.wait(timeout=5)\n    except TimeoutError:\n        pass"
    ),
    "a wait of an event": "while True:\n    event.wait(timeout=5)",
    "a wait without an end": "while True:\n    process.wait(timeout=None)",
    "a deadline that never comes": "while True:\n    if time.monotonic() > float('inf'):\n        break",
    "for over count": "for i in count():\n    print(i)",
    "for over itertools.cycle": "for i in itertools.cycle(x):\n    print(i)",
    "for over repeat": "for i in repeat(1):\n    print(i)",
    "for over enumerate of count": "for i, a in enumerate(count(3)):\n    print(i)",
    "for over zip of two that never end": "for a, b in zip(count(), cycle(x)):\n    print(a)",
    "for over a name of it": "numbers = count()\nfor i in numbers:\n    print(i)",
    "for over iter(int, 1)": "for _ in iter(int, 1):\n    print(x)",
    "for over iter of a constant lambda": "for _ in iter(lambda: 0, 1):\n    print(x)",
    "for over islice without an end": "for a in islice(count(), 3, None):\n    print(a)",
    "for over takewhile of True": "for a in takewhile(lambda a: True, count()):\n    print(a)",
    "for over a generator that never ends": (
        "for a in forever():\n    print(a)\n\ndef forever():\n    while True:\n        yield 1"
    ),
    "for over what grows in each round": "for a in left:\n    left.append(a)",
    "a comprehension over count": "return [a for a in count()]",
    "a generator over cycle": "return next(a for a in cycle(x) if a)",
}

UNBOUNDED = {
    "a counter that is reset": "i = 0\nwhile i < n:\n    i += 1\n    if x:\n        i = 0",
    "a counter in the wrong direction": "i = 0\nwhile i < n:\n    i -= 1",
    "a counter that goes up from above": "while n > 0:\n    n += 1",
    "a counter to and fro": "i = 0\nwhile i < n:\n    i += 1\n    if x:\n        i -= 1",
    "a counter in an if alone": "i = 0\nwhile i < n:\n    if x:\n        i += 1",
    "a counter after continue": "i = 0\nwhile i < n:\n    if x:\n        continue\n    i += 1",
    "a counter in a loop inside alone": "i = 0\nwhile i < n:\n    for a in x:\n        i += 1",
    "a counter in a function inside": "i = 0\nwhile i < n:\n    def g():\n        i += 1",
    "a counter that an exception skips": (
        "i = 0\nwhile i < n:\n    try:\n        x()\n        i += 1\n    except ValueError:\n        pass"
    ),
    "a counter in an or": "i = 0\nwhile x or i < n:\n    i += 1",
    "a step of zero": "i = 0\nwhile i < n:\n    i += 0",
    "a step to itself": "while node is not None:\n    node = node",
    "a counter against infinity": "i = 0\nwhile i < float('inf'):\n    i += 1",
    "a counter against math.inf": "i = 0\nwhile i < math.inf:\n    i += 1",
    "a counter against a huge number": "i = 0\nwhile i < 1e999:\n    i += 1",
    "a counter against a name of infinity": "limit = float('inf')\ni = 0\nwhile i < limit:\n    i += 1",
    "a number below its successor": "while n < n + 1:\n    n += 1",
    "a bound that moves too": "i = 0\nwhile i < n:\n    i += 1\n    n += 1",
    "a length that grows with the counter": "i = 0\nwhile i < len(left):\n    i += 1\n    left.append(i)",
    "a flag": "done = False\nwhile not done:\n    done = x()",
    "a state": "while x.state != 'done':\n    x.state = x.poll()",
    "a test that nothing changes": "while n > 0:\n    print(n)",
    "a timeout that nothing measures": "while n < deadline:\n    print(x)",
    "a clock in the wrong direction": "while time.monotonic() > 0:\n    print(x)",
    "a deadline that never comes": "end = float('inf')\nwhile time.monotonic() < end:\n    print(x)",
    "a work list that nothing is taken from": "while left:\n    left.append(1)",
    "a work list that is taken from in an if": "while left:\n    if x:\n        left.pop()",
    "a work list that is taken from in a loop inside": "while left:\n    for a in x:\n        left.pop()",
    "a work list that a copy stands for": "while left:\n    left = left[:]",
    "a file to its end": "while block := x.read(10):\n    print(block)",
    "an event with a pause": "while not event.wait(5):\n    print(x)",
    "a search that may not converge": "while n > 0.1:\n    n = improve(n)",
    "a flag that an event sets": "while not x:\n    x = event.wait(5)",
    "a distance that shrinks": "while abs(x - n) > 0.1:\n    x += n / 2",
    "a name until it is known": "while x not in left:\n    x = x.next",
    "iter with a sentinel": "for block in iter(x.read, b''):\n    print(block)",
}


def check(folder: Path, body: str) -> RuleResult:
    tree = make_tree(folder, a=HEAD + indent(body.strip("\n"), "    ") + "\n")
    return loops.check(tree, CallGraph(tree))


@pytest.mark.parametrize("body", BOUNDED.values(), ids=BOUNDED.keys())
def test_passes(tmp_path: Path, body: str) -> None:
    result = check(tmp_path, body)
    assert not result.findings
    assert result.score == 100


@pytest.mark.parametrize("body", WHILE_TRUE.values(), ids=WHILE_TRUE.keys())
def test_endless_is_critical(tmp_path: Path, body: str) -> None:
    critical = [finding for finding in check(tmp_path, body).findings if finding.is_critical]
    assert critical
    assert critical[0].unit.startswith("a.f:")


@pytest.mark.parametrize("body", UNBOUNDED.values(), ids=UNBOUNDED.keys())
def test_unbounded_fails(tmp_path: Path, body: str) -> None:
    result = check(tmp_path, body)
    assert [finding.is_critical for finding in result.findings] == [False]
    assert result.conforming == result.units - 1


def test_generator_of_another_file(tmp_path: Path) -> None:
    """A consumer's loop over a generator with no way out is endless, whichever file the generator is in."""
    files = {
        "a": "from b import numbers\n\nfor n in numbers():\n    print(n)\n",
        "b": "def numbers():\n    while True:\n        yield 1\n",
    }
    tree = make_tree(tmp_path, **files)
    assert [(f.path, f.line) for f in loops.check(tree, CallGraph(tree)).findings] == [("a.py", 3), ("b.py", 2)]


def test_loops_count_everywhere(tmp_path: Path) -> None:
    """Loops at the top of a module, in a class and in functions are units; finite comprehensions are none."""
    text = (
        "for a in x:\n    pass\n\nclass C:\n    for b in x:\n        pass\n\n    def f(self):\n"
        "        while x: x.pop()\n        return [c for c in x]\n"
    )
    tree = make_tree(tmp_path, a=text)
    result = loops.check(tree, CallGraph(tree))
    assert (result.units, len(result.findings)) == (3, 0)
