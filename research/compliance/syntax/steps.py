"""What the body of a loop does to the names that its test reads: counts them up or down, takes from them, sets them anew."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from research.compliance.syntax.containers import get_base, is_extended, list_targets
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import get_last_name
from research.compliance.syntax.paths import Paths, list_heads, walk_certain
from research.compliance.syntax.tree import walk

UP, DOWN, STEP, CALL = "up", "down", "step", "call"  # by a constant, by what is not known, by a function
TAKE, GROW, EXTEND, SET = "take", "grow", "extend", "set"  # EXTEND adds what may be nothing; SET has nothing of what was
TAKERS = {"pop", "popleft", "popitem", "remove", "discard", "clear", "get", "get_nowait", "heappop"}
GIVERS = {"append", "appendleft", "add", "insert", "push", "put", "heappush"}
EXTENDERS = {"extend", "extendleft", "update"}
CUTTERS = {"partition", "rpartition", "split", "rsplit", "removeprefix", "removesuffix"}  # the rest of a text is shorter
CLOCKS = {"monotonic", "perf_counter", "time", "monotonic_ns", "perf_counter_ns", "time_ns", "process_time", "now", "utcnow"}
ARITHMETIC = {
    "min", "max", "int", "float", "abs", "round", "len", "sum", "divmod", "next", "cast", "str",
    "list", "tuple", "set", "frozenset", "dict", "sorted", "filter",
}  # fmt: skip  # functions whose result is made of what they are given
RISING = {ast.Add: 0.0, ast.Mult: 1.0, ast.LShift: 0.0}  # with a larger constant a number rises
FALLING = {ast.Sub: 0.0, ast.FloorDiv: 1.0, ast.Div: 1.0, ast.RShift: 0.0}


@dataclass(frozen=True)
class Change:
    """What a statement does to a name, or to an attribute."""

    key: str  # as it is written: i, self.i, state["i"]
    kind: str
    node: int  # the identity of the statement; 0 for the head of the loop
    value: str = ""  # what it is set to


class Changes:
    """All that a loop does to names."""

    @contract
    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.origins = find_origins(paths)
        self.by_key: dict[str, list[Change]] = {}
        loop = paths.loop
        heads: list[ast.AST] = [loop.test] if isinstance(loop, ast.While) else []
        statements = [(identity, list_heads(node), node) for identity, node in paths.nodes.items()]
        for identity, parts, node in [(0, heads, loop.body[0]), *statements]:
            changes = [change for part in walk_certain(parts) for change in self.read(part, identity)]
            if identity and isinstance(node, ast.For | ast.AsyncFor):  # a loop inside sets its names
                changes += [Change(name, SET, identity) for name in list_names(node.target)]
            for change in changes:
                self.by_key.setdefault(change.key, []).append(change)

    @contract
    def read(self, node: ast.AST, identity: int) -> Iterator[Change]:
        """Yield what a node does to names."""
        if isinstance(node, ast.AugAssign):  # `counts[key] += 1` counts up what `counts` holds
            target = node.target if is_key(node.target) else get_base(node.target)
            yield Change(ast.unparse(target), classify_operation(node.op, node.value), identity)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target, value in pair_targets(node, node.value):
                if is_key(target):
                    yield Change(ast.unparse(target), self.classify(target, value), identity, ast.unparse(value))
        elif isinstance(node, ast.Delete):
            yield from (Change(ast.unparse(get_base(target)), TAKE, identity) for target in list_targets(node))
        elif isinstance(node, ast.Call):
            yield from read_call(node, identity)

    def classify(self, target: ast.expr, value: ast.expr) -> str:
        """Return what setting a name to a value does to it: UP, DOWN, STEP, CALL, TAKE, GROW, SET; empty for nothing."""
        key = ast.unparse(target)
        if key == ast.unparse(value):
            return ""
        if isinstance(value, ast.BinOp) and (kind := classify_clock(value)):
            return kind
        if isinstance(value, ast.BinOp) and key == ast.unparse(value.left) and isinstance(value.right, ast.Constant):
            return classify_operation(value.op, value.right)
        if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Slice) and ast.unparse(value.value) == key:
            return (
                TAKE if any(part is not None and not is_zero(part) for part in (value.slice.lower, value.slice.upper)) else ""
            )
        if is_extended(target, value):
            return EXTEND
        if key not in list_sources(value, self.origins):
            return UP if calls_clock(value) else SET
        if isinstance(value, ast.Call) and get_last_name(value) in CUTTERS:
            return TAKE
        is_plain = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id not in ARITHMETIC
        return CALL if is_plain else STEP

    @contract
    def select(self, key: str, kinds: set[str]) -> set[int]:
        """Return the statements that change a name in one of some manners."""
        return {change.node for change in self.by_key.get(key, []) if change.kind in kinds}

    @contract
    def spoils(self, key: str, wrong: str, allowed: set[str]) -> bool:
        """Return whether a change in the wrong direction, or to a value that is not allowed, leads to one more round."""
        changes = self.by_key.get(key, [])
        bad = {c.node for c in changes if c.kind == wrong or (c.kind == SET and c.value not in allowed)}
        return 0 in bad or self.paths.leads_again(bad, set())

    @contract
    def always(self, nodes: set[int]) -> bool:
        """Return whether each round passes one of some statements."""
        return 0 in nodes or (bool(nodes) and self.paths.always_passes(nodes))


def find_origins(paths: Paths) -> dict[str, set[str]]:
    """Return for each name that a body sets the names that it is made of, over several statements."""
    origins = dict[str, set[str]]()
    pairs = [pair for node in paths.nodes.values() for part in list_heads(node) for pair in list_settings(part)]
    loops = [node for node in paths.nodes.values() if isinstance(node, ast.For | ast.AsyncFor)]
    pairs += [(name, node.iter) for node in loops for name in list_names(node.target)]
    for _ in range(4):
        for key, value in pairs:
            sources = list_keys(value)
            origins.setdefault(key, set()).update(sources, *(origins.get(source, ()) for source in sources))
    return origins


@contract
def list_settings(part: ast.AST) -> list[tuple[str, ast.expr]]:
    """Return the names that a node sets, each with what it is set to."""
    pairs = list[tuple[str, ast.expr]]()
    for node in walk(part):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            pairs += [(ast.unparse(target), value) for target, value in pair_targets(node, node.value)]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            pairs += [(name, node.context_expr) for name in list_names(node.optional_vars)]
    return pairs


@contract
def list_sources(value: ast.expr, origins: dict[str, set[str]]) -> set[str]:
    """Return the names that a value is made of, and those that these are made of."""
    keys = list_keys(value)
    return keys.union(*(origins.get(key, ()) for key in keys))


@contract
def list_keys(value: ast.AST) -> set[str]:
    """Return the names, attributes and items that an expression reads, as they are written."""
    return {ast.unparse(node) for node in walk(value) if isinstance(node, ast.Name | ast.Attribute) or is_item(node)}


@contract
def list_names(target: ast.expr) -> list[str]:
    """Return the names that a target binds."""
    return [node.id for node in walk(target) if isinstance(node, ast.Name)]


def is_item(node: ast.AST) -> bool:
    """Return whether a node is an item with a constant key: state["i"]."""
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.UnaryOp)


@contract
def is_key(node: ast.expr) -> bool:
    """Return whether an expression is a name, an attribute, or an item with a constant key."""
    return isinstance(node, ast.Name | ast.Attribute) or is_item(node)


def pair_targets(node: ast.Assign | ast.AnnAssign | ast.NamedExpr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """Return what is assigned to what: tuples part by part where both sides are one, else each name with the whole."""
    pairs = list[tuple[ast.expr, ast.expr]]()
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        parts = [part.value if isinstance(part, ast.Starred) else part for part in parts]
        values = value.elts if isinstance(value, ast.Tuple | ast.List) and len(parts) > 1 else [value] * len(parts)
        pairs += zip(parts, values if len(values) == len(parts) else [value] * len(parts), strict=True)
    return pairs


def classify_operation(op: ast.operator, value: ast.expr) -> str:
    """Return what an operation with a value does to a number: UP or DOWN by a constant, STEP by what is not known."""
    number = read_number(value)
    if number is None:
        is_list = isinstance(value, ast.List | ast.ListComp)
        return (GROW if isinstance(value, ast.List) and value.elts else EXTEND) if is_list else STEP
    for table, rising, falling in ((RISING, UP, DOWN), (FALLING, DOWN, UP)):
        if type(op) in table and number != table[type(op)]:
            return rising if number > table[type(op)] else falling
    return "" if type(op) in {*RISING, *FALLING} else STEP


@contract
def read_number(value: ast.expr) -> float | None:
    """Return the number that an expression is; None for any other."""
    try:
        number = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return None
    return float(number) if isinstance(number, int | float) else None


@contract
def is_zero(node: ast.expr) -> bool:
    """Return whether an expression is 0."""
    return isinstance(node, ast.Constant) and node.value == 0


@contract
def calls_clock(value: ast.AST) -> bool:
    """Return whether an expression reads a clock."""
    return any(isinstance(node, ast.Call) and get_last_name(node) in CLOCKS for node in walk(value))


@contract
def classify_clock(value: ast.BinOp) -> str:
    """Return UP for `time() - start`, DOWN for `end - time()`; empty where no clock is read."""
    if isinstance(value.op, ast.Sub) and calls_clock(value.right):
        return DOWN
    return UP if calls_clock(value.left) else ""


def read_call(node: ast.Call, identity: int) -> Iterator[Change]:
    """Yield what a call does to what it is called on, or to the heap that it is given."""
    name = get_last_name(node)
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    if name in ("heappop", "heappush") and node.args:
        owner = node.args[0]
    if owner is None:
        return
    if name in TAKERS:  # `get(key)` of a mapping takes nothing away; that of a queue is told at most whether to wait
        is_lookup = name == "get" and any(getattr(key, "value", None) not in (True, False) for key in node.args[:1])
        yield Change(ast.unparse(owner), "" if is_lookup else TAKE, identity)
    elif name in GIVERS | EXTENDERS:
        yield Change(ast.unparse(owner), GROW if name in GIVERS else EXTEND, identity)
