"""Rule 2, loops with a bound: something finite to loop over, a counter that each round steps, or a deadline.

A `while` has to test a name that each way through its body steps, or a container that each round takes from, or a clock; so has
the way out of a `while True` and of a `for` over an iterator without end. What only a called function does is not seen.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from research.compliance.calls import CallGraph
from research.compliance.endless import COMPREHENSIONS, Endless, find_assigned, is_same_for_ever
from research.compliance.findings import Finding, RuleResult
from research.compliance.folding import get_truth, judge_test
from research.compliance.functions import Function, FunctionNode, get_last_name
from research.compliance.paths import Loop, Paths, list_heads, walk_certain
from research.compliance.steps import (
    CALL, DOWN, GROW, SET, STEP, TAKE, UP, Change, Changes, calls_clock, classify_clock, is_key, list_keys, list_names, read_number,
)  # fmt: skip
from research.compliance.tree import Module, Tree

RULE = 2
TIME_WORDS = ("deadline", "timeout", "until", "time_limit")
WAITS = {"wait", "acquire", "poll", "select"}  # with a timeout they say whether it was in time
RAISING_WAITS = {"wait", "wait_for", "result", "communicate", "join_thread"}  # with a timeout they raise where it was not
MIRRORED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}
NEGATED = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
           ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
DIRECTIONS = {ast.Lt: UP, ast.LtE: UP, ast.Gt: DOWN, ast.GtE: DOWN}  # where a number has to go for `number < x` to end
OPPOSITE = {UP: DOWN, DOWN: UP}
COMPREHENSION = "a comprehension over what may never end; take islice of it, or zip it with what ends"
ENDLESS_FOR = "it loops over what may never end; take islice of it, or leave by a count or a deadline on each way"
WHILE_TRUE = "`while True` without a counted or timed way out of each round; count the rounds, or set a deadline"
WHILE = "its test has no counter that each round steps, nothing that it takes from, no deadline; count the rounds"


@dataclass
class Scope:
    """A function, or the top of a module or class, with the loops of its own."""

    module: Module
    function: Function | None
    nodes: list[ast.AST]
    endless: Endless
    globals: dict[str, ast.expr]

    def report(self, node: ast.AST, message: str, is_critical: bool) -> Finding:
        """Return a finding about a loop."""
        line = getattr(node, "lineno", 1)
        unit = self.function.unit if self.function else self.module.name
        return Finding(self.module.path, line, RULE, f"{unit}:{line}", message, is_critical)


def check(tree: Tree, graph: CallGraph) -> RuleResult:
    """Return the loops without a bound, and the comprehensions over what never ends."""
    units, findings = 0, list[Finding]()
    for scope in iter_scopes(tree, graph):
        loops = [node for node in scope.nodes if isinstance(node, Loop)]
        findings += filter(None, (judge_loop(scope, loop) for loop in loops))
        endless = [*find_comprehensions(scope)]
        findings += endless
        units += len(loops) + len(endless)
    return RuleResult(RULE, units, sorted(findings))


def iter_scopes(tree: Tree, graph: CallGraph) -> Iterator[Scope]:
    """Yield the functions of a tree, and the tops of its modules."""
    generators = dict[str, bool]()
    for module in tree.modules:
        top = [*walk_top(module.syntax)]
        names = find_assigned(top)
        yield Scope(module, None, top, Endless(graph, module.name, None, names, generators), names)
        for key, function in graph.names[module.name].functions.items():
            nodes = graph.walked[f"{module.name}.{key}"]
            endless = Endless(graph, module.name, function, find_assigned(nodes), generators)
            yield Scope(module, function, nodes, endless, names)


def walk_top(syntax: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: with the bodies of classes, without those of functions."""
    left: list[ast.AST] = [syntax]
    while left:
        node = left.pop()
        yield node
        left += [child for child in ast.iter_child_nodes(node) if not isinstance(child, FunctionNode)]


def find_comprehensions(scope: Scope) -> Iterator[Finding]:
    """Yield a finding for each comprehension over what never ends, but where zip, islice or takewhile end it."""
    ended = {id(argument) for node in scope.nodes if isinstance(node, ast.Call)
             and get_last_name(node) in ("zip", "islice", "takewhile") for argument in node.args}  # fmt: skip
    for node in scope.nodes:
        if isinstance(node, COMPREHENSIONS) and id(node) not in ended:
            endless = [part.iter for part in node.generators if scope.endless.never_ends(part.iter)]
            if endless:
                yield scope.report(node, COMPREHENSION, any(map(is_same_for_ever, endless)))


def judge_loop(scope: Scope, loop: Loop) -> Finding | None:
    """Return a finding about a loop without a bound; None for one that has one."""
    if isinstance(loop, ast.While):
        is_endless = bool(get_truth(loop.test))
        if Judge(scope, loop).is_bounded():
            return None
        return scope.report(loop, WHILE_TRUE if is_endless else WHILE, is_endless)
    is_growing = isinstance(loop.iter, ast.Name | ast.Attribute) and Judge(scope, loop).grows(ast.unparse(loop.iter))
    if not is_growing and (not scope.endless.never_ends(loop.iter) or Judge(scope, loop).is_bounded()):
        return None
    return scope.report(loop, ENDLESS_FOR, is_growing or is_same_for_ever(loop.iter))


@dataclass
class Judge:
    """Judges whether a loop ends."""

    scope: Scope
    loop: Loop

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

    def grows(self, key: str) -> bool:
        """Return whether each round adds to a container."""
        return self.changes.always(self.changes.select(key, {GROW}))

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
        timed = [call for call in calls if get_last_name(call) in RAISING_WAITS and has_timeout(call)]
        caught = self.paths.edges[identity] - {id(self.next_of(identity))}
        return bool(timed) and isinstance(node, ast.Expr | ast.Assign) and not self.paths.leads_again(caught, set())

    def next_of(self, identity: int) -> ast.stmt | None:
        """Return the statement after one in its block; None for the last."""
        blocks = [getattr(node, name, []) for node in [self.loop, *self.paths.nodes.values()]
                  for name in ("body", "orelse", "finalbody")]  # fmt: skip
        rows = [block for block in blocks if any(id(statement) == identity for statement in block)]
        after = rows[0][[id(statement) for statement in rows[0]].index(identity) + 1 :] if rows else []
        return after[0] if after else None

    def judge(self, test: ast.expr, is_wanted: bool) -> bool:
        """Return whether a loop ends that goes on while a single test is `is_wanted`."""
        if isinstance(test, ast.Compare):
            return self.judge_compare(test, is_wanted)
        if isinstance(test, ast.NamedExpr):
            test = test.target
        if isinstance(test, ast.Call):
            return self.judge_call(test, is_wanted)
        return is_wanted and is_key(test) and self.ends([(ast.unparse(test), {TAKE, STEP, DOWN}, "")], "")

    def judge_call(self, test: ast.Call, is_wanted: bool) -> bool:
        """Return whether a loop ends by a call: isinstance of a cursor, `queue.empty()`, a wait that says it took too long."""
        name, owner = get_last_name(test), test.func.value if isinstance(test.func, ast.Attribute) else None
        if name in WAITS and has_timeout(test):
            return is_wanted and not isinstance(self.loop, ast.While | ast.For) or (is_wanted and name == "wait")
        if any(word in ast.unparse(test.func).lower() for word in TIME_WORDS):
            return not is_wanted
        if name == "isinstance" and test.args:
            return self.ends([(ast.unparse(test.args[0]), {STEP, TAKE}, "")], "")
        if owner is None:
            is_len = name == "len" and bool(test.args) and is_wanted
            return is_len and self.ends([(ast.unparse(test.args[0]), {TAKE, STEP}, "")], "")
        return self.ends([(ast.unparse(owner), {TAKE}, "")], "")

    def judge_compare(self, test: ast.Compare, is_wanted: bool) -> bool:
        """Return whether a loop ends that goes on while a comparison is `is_wanted`."""
        if any(self.is_infinite(side) for side in (test.left, *test.comparators)):
            return False
        if not is_wanted and len(test.ops) > 1:
            return False
        sides = [test.left, *test.comparators]
        for left, op, right in zip(sides, test.ops, sides[1:], strict=False):
            kind = type(op) if is_wanted else NEGATED[type(op)]
            if self.is_timed(left, kind, right) or self.is_counted(left, kind, right):
                return True
        return False

    def is_counted(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr) -> bool:
        """Return whether each round brings one side of a comparison nearer to the other."""
        common = list_keys(left) & list_keys(right)
        wanted = [*list_wanted(left, op, common), *list_wanted(right, MIRRORED.get(op, op), common)]
        return self.ends(wanted, ast.unparse(left) + "\n" + ast.unparse(right)) and not self.flees(left, op, right)

    def flees(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr) -> bool:
        """Return whether the bound moves away as the counter comes nearer: `n += 1` beside `i += 1` for `i < n`."""
        direction = DIRECTIONS.get(op, "")
        pairs = ((right, direction), (left, OPPOSITE.get(direction, "")))
        moved = [self.changes.always(self.changes.select(ast.unparse(side), {kind})) for side, kind in pairs if kind]
        if all(moved) and moved:
            return False  # both move in the direction that keeps them apart only where one is named twice
        grown = [
            node.args[0] for node in (left, right) if isinstance(node, ast.Call) and get_last_name(node) == "len" and node.args
        ]
        is_fleeing = direction == UP and (moved[0] or any(self.grows(ast.unparse(c)) for c in grown if not is_key(right)))
        return bool(is_fleeing) and not isinstance(left, ast.Call)

    def ends(self, wanted: list[tuple[str, set[str], str]], other: str) -> bool:
        """Return whether each round changes one of some names in a wanted manner, and nothing undoes it.

        Each name comes with the manners that are wanted and the direction that is not.
        """
        stepping = set[int]()
        for key, kinds, wrong in wanted:
            nodes = self.changes.select(key, kinds)
            texts = {key, *other.split("\n")}
            if nodes and self.changes.spoils(key, lambda c: c.kind == wrong or (c.kind == SET and c.value not in texts)):  # noqa: B023
                return False
            stepping |= nodes
        return self.changes.always(stepping)

    def is_infinite(self, side: ast.expr) -> bool:
        """Return whether a side of a comparison is infinity, or a name that is set to it."""
        names = [node.id for node in ast.walk(side) if isinstance(node, ast.Name)]
        values = [self.scope.endless.assigned.get(name) or self.scope.globals.get(name) for name in names]
        return any(is_infinity(node) for value in [side, *filter(None, values)] for node in ast.walk(value))

    def is_timed(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr) -> bool:
        """Return whether a comparison ends by the clock: `time() < end`, `time() - start < limit`, `spent < timeout`."""
        direction = DIRECTIONS.get(op, "")
        if calls_clock(left) or calls_clock(right):
            sides = ((left, direction), (right, OPPOSITE.get(direction, "")))
            return any(calls_clock(side) and get_clock_direction(side) == kind for side, kind in sides)
        is_named = any(word in key.lower() for side in (left, right) for key in list_keys(side) for word in TIME_WORDS)
        return is_named and any(self.changes.by_key.get(key) for side in (left, right) for key in list_keys(side))


def list_wanted(side: ast.expr, op: type[ast.cmpop], common: set[str]) -> list[tuple[str, set[str], str]]:
    """Return the names on a side of a comparison, each with the changes that end it and the one that must not be."""
    side = side.target if isinstance(side, ast.NamedExpr) else side
    direction = DIRECTIONS.get(op, "")
    if isinstance(side, ast.Call) and get_last_name(side) == "len" and side.args:
        kinds = {UP: {GROW, STEP}, DOWN: {TAKE, STEP}}.get(direction, {GROW, TAKE, STEP})
        return [(ast.unparse(side.args[0]), kinds, "")]
    if is_key(side) and ast.unparse(side) not in common:
        kinds = {direction, STEP, TAKE} if direction else {UP, DOWN, STEP, TAKE, CALL}
        return [(ast.unparse(side), kinds, OPPOSITE.get(direction, ""))]
    return [(key, {UP, DOWN, STEP, TAKE}, "") for key in sorted(list_keys(side) - common)]


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


def has_timeout(call: ast.Call) -> bool:
    """Return whether a call is given a time that it waits at most."""
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "timeout")]
    return any(not isinstance(value, ast.Constant) or value.value not in (None, True) for value in values)
