"""Whether a loop ends by its test or by a way out: a counter that each round steps, a container it takes from, a clock."""

import ast
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from research.compliance.syntax.folding import judge_test
from research.compliance.syntax.functions import get_last_name
from research.compliance.syntax.paths import Loop, Paths, list_heads, walk_certain
from research.compliance.syntax.steps import (
    CALL,
    DOWN,
    EXTEND,
    GROW,
    STEP,
    TAKE,
    UP,
    Change,
    Changes,
    calls_clock,
    classify_clock,
    is_key,
    list_keys,
    list_names,
    read_number,
)
from research.compliance.syntax.tree import walk

Wanted = tuple[str, set[str], str]  # a name, the changes that end a loop, and the one that must not be
TIME_WORDS = ("deadline", "timeout", "until", "time_limit")
WAITS = {"wait", "acquire", "poll", "select"}  # with a timeout they say whether it was in time
RAISING_WAITS = {"wait_for", "result", "communicate"}  # with a timeout they raise where it was not; so does that of a process
PROCESS_WORDS = ("proc", "child", "popen")
CURSOR_CHECKS = {"isinstance", "hasattr", "len"}  # of what walks along a chain of objects, or becomes shorter
DISTANCES = {"abs", "norm", "dist", "max", "min"}  # what comes nearer to a value may never reach it
MIRRORED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}
OPPOSITES = [(ast.Lt, ast.GtE), (ast.LtE, ast.Gt), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
DIRECTIONS: dict[type[ast.cmpop], str] = {ast.Lt: UP, ast.LtE: UP, ast.Gt: DOWN, ast.GtE: DOWN}  # of a number that ends it
OPPOSITE = {UP: DOWN, DOWN: UP}


@dataclass
class Judge:
    """Judges whether a loop ends."""

    loop: Loop
    values: dict[str, ast.expr]  # of names that are set once

    @cached_property
    def paths(self) -> Paths:
        """The ways through its body."""
        return Paths(self.loop)

    @cached_property
    def changes(self) -> Changes:
        """What it does to names; a loop over count() or enumerate() counts the first of its names."""
        changes = Changes(self.paths)
        if not isinstance(self.loop, ast.While) and isinstance(self.loop.iter, ast.Call):
            names = list_names(self.loop.target)
            if get_last_name(self.loop.iter) in ("count", "enumerate") and names:
                changes.by_key.setdefault(names[0], []).append(Change(names[0], UP, 0))
        return changes

    def grows(self, container: ast.expr) -> bool:
        """Return whether each round adds to a container."""
        return self.changes.always(self.changes.select(ast.unparse(container), {GROW}))

    def is_bounded(self) -> bool:
        """Return whether the test ends the loop, or a counted or timed way out that each round passes."""
        if isinstance(self.loop, ast.While) and judge_test(self.loop.test, True, self.judge):
            return True
        exits = {id(node) for node, is_wanted in self.paths.iter_exits() if judge_test(node.test, is_wanted, self.judge)}
        exits |= {identity for identity, node in self.paths.nodes.items() if self.waits(identity, node)}
        return self.changes.always(exits)

    def waits(self, identity: int, node: ast.stmt) -> bool:
        """Return whether a statement waits with a timeout that raises, which nothing in the loop catches."""
        calls = [part for part in walk_certain(list_heads(node)) if isinstance(part, ast.Call)]
        timed = [call for call in calls if raises_in_time(call) and has_timeout(call)]
        is_caught = bool(timed) and self.paths.leads_again(self.paths.handlers[identity], set())
        return bool(timed) and not is_caught and isinstance(node, ast.Expr | ast.Assign)

    def judge(self, test: ast.expr, is_wanted: bool) -> bool:
        """Return whether a loop ends that goes on while a single test is `is_wanted`."""
        if isinstance(test, ast.Compare):
            return self.judge_compare(test, is_wanted)
        if isinstance(test, ast.NamedExpr):
            test = test.target
        if isinstance(test, ast.Call):
            return self.judge_call(test, is_wanted)
        return is_wanted and is_key(test) and self.ends(list_keys_wanted(test, {TAKE, STEP, CALL, DOWN}, ""), set())

    def judge_call(self, test: ast.Call, is_wanted: bool) -> bool:
        """Return whether a loop ends by a call: isinstance of a cursor, `queue.empty()`, a wait that says it took too long."""
        name = get_last_name(test)
        if name in WAITS and has_timeout(test):
            return is_wanted
        if any(word in ast.unparse(test.func).lower() for word in TIME_WORDS):
            return not is_wanted
        if name == "len" and not is_wanted:
            return False
        kinds = {TAKE, STEP} if name in CURSOR_CHECKS else {TAKE}
        owners = [*test.args[:1], *([test.func.value] if isinstance(test.func, ast.Attribute) else [])]
        return any(self.ends([(ast.unparse(owner), kinds, "")], set()) for owner in owners)

    def judge_compare(self, test: ast.Compare, is_wanted: bool) -> bool:
        """Return whether a loop ends that goes on while a comparison is `is_wanted`."""
        if any(self.is_infinite(side) for side in (test.left, *test.comparators)):
            return False
        if not is_wanted and len(test.ops) > 1:
            return False
        sides = [test.left, *test.comparators]
        for (left, right), op in zip(pairwise(sides), test.ops, strict=True):
            kind = type(op) if is_wanted else NEGATED[type(op)]
            if self.is_timed(left, kind, right) or self.is_counted(left, kind, right):
                return True
        return False

    def is_counted(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr) -> bool:
        """Return whether each round brings one side of a comparison nearer to the other."""
        common = list_keys(left) & list_keys(right)
        wanted = [*list_wanted(left, op, common), *list_wanted(right, MIRRORED.get(op, op), common)]
        return self.ends(wanted, {ast.unparse(left), ast.unparse(right)}) and not (op in DIRECTIONS and self.flees(left, right))

    def flees(self, left: ast.expr, right: ast.expr) -> bool:
        """Return whether the bound moves with the counter: `n += 1` beside `i += 1` for `i < n`, or `n.append(i)`."""
        moves = [{kind for kind in (UP, DOWN) if self.moves(side, kind)} for side in (left, right)]
        return bool(moves[0] & moves[1])

    def moves(self, side: ast.expr, direction: str) -> bool:
        """Return whether each round moves a name, or the length of one, in a direction."""
        if isinstance(side, ast.Call) and get_last_name(side) == "len" and side.args:
            side, direction = side.args[0], {UP: GROW, DOWN: TAKE}[direction]
        return self.changes.always(self.changes.select(ast.unparse(side), {direction}))

    def ends(self, wanted: list[Wanted], allowed: set[str]) -> bool:
        """Return whether each round changes one of some names in a wanted manner, and nothing undoes it.

        Setting a name to one of the `allowed` values, as to the bound itself, undoes nothing.
        """
        stepping = set[int]()
        for key, kinds, wrong in wanted:
            nodes = self.changes.select(key, kinds)
            if nodes and self.changes.spoils(key, wrong, {key, *allowed}):
                return False
            stepping |= nodes
        return self.changes.always(stepping)

    def is_infinite(self, side: ast.expr) -> bool:
        """Return whether a side of a comparison is infinity, or a name that is set to it."""
        names = [node.id for node in walk(side) if isinstance(node, ast.Name)]
        values = [self.values[name] for name in names if name in self.values]
        return any(is_infinity(node) for value in [side, *values] for node in walk(value))

    def is_timed(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr) -> bool:
        """Return whether a comparison ends by the clock: `time() < end`, `time() - start < limit`, `spent < timeout`."""
        direction = DIRECTIONS.get(op, "")
        if calls_clock(left) or calls_clock(right):
            sides = ((left, direction), (right, OPPOSITE.get(direction, "")))
            return any(calls_clock(side) and get_clock_direction(side) == kind for side, kind in sides)
        is_named = any(word in key.lower() for side in (left, right) for key in list_keys(side) for word in TIME_WORDS)
        return is_named and any(self.changes.by_key.get(key) for side in (left, right) for key in list_keys(side))


def list_keys_wanted(node: ast.expr, kinds: set[str], wrong: str) -> list[Wanted]:
    """Return a name with the changes that end a loop, and with it what it is an attribute of: `node` of `node.next`."""
    wanted = [(ast.unparse(node), kinds, wrong)]
    if isinstance(node, ast.Attribute) and is_key(node.value):
        wanted.append((ast.unparse(node.value), {STEP}, ""))
    return wanted


def list_wanted(side: ast.expr, op: type[ast.cmpop], common: set[str]) -> list[Wanted]:
    """Return the names on a side of a comparison, each with the changes that end it and the one that must not be."""
    side = side.target if isinstance(side, ast.NamedExpr) else side
    direction = DIRECTIONS.get(op, "")
    if isinstance(side, ast.Call) and get_last_name(side) == "len" and side.args:
        kinds = {UP: {GROW, EXTEND, STEP}, DOWN: {TAKE, STEP}}.get(direction, {GROW, EXTEND, TAKE, STEP})
        return [(ast.unparse(side.args[0]), kinds, "")]
    if is_key(side) and ast.unparse(side) not in common:
        kinds = {direction, STEP, TAKE} if direction else {UP, DOWN, STEP, TAKE, CALL}
        kinds = {TAKE} if op is ast.NotIn else kinds
        return list_keys_wanted(side, kinds, OPPOSITE.get(direction, ""))
    is_distance = any(isinstance(node, ast.Call) and get_last_name(node) in DISTANCES for node in walk(side))
    return [(key, {UP, DOWN, STEP, TAKE}, "") for key in sorted(list_keys(side) - common) if not is_distance]


def get_clock_direction(side: ast.expr) -> str:
    """Return where a side that reads a clock goes: up, but down in `end - time()`."""
    return classify_clock(side) if isinstance(side, ast.BinOp) else UP


def is_infinity(node: ast.AST) -> bool:
    """Return whether a node is infinity: float("inf"), math.inf, 1e999, sys.maxsize."""
    if isinstance(node, ast.Call) and get_last_name(node) == "float" and node.args:
        value = node.args[0]
        return isinstance(value, ast.Constant) and str(value.value).lower().lstrip("+-") in ("inf", "infinity")
    if isinstance(node, ast.Name | ast.Attribute):
        return (node.attr if isinstance(node, ast.Attribute) else node.id) in ("inf", "Infinity", "infty", "maxsize")
    return isinstance(node, ast.Constant) and read_number(node) == float("inf")


def raises_in_time(call: ast.Call) -> bool:
    """Return whether a call that is given a time raises after it: `event.wait(5)` returns, `process.wait(5)` raises."""
    name, text = get_last_name(call), ast.unparse(call.func).lower()
    return name in RAISING_WAITS or (name == "wait" and any(word in text for word in PROCESS_WORDS))


def has_timeout(call: ast.Call) -> bool:
    """Return whether a call is given a time that it waits at most."""
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "timeout")]
    return any(not isinstance(value, ast.Constant) or value.value not in (None, True) for value in values)
