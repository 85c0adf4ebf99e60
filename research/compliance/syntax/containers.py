"""What makes containers grow, and what bounds them: the methods, statements and constructors that do."""

import ast
from collections.abc import Iterator

from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import get_last_name, is_none
from research.compliance.syntax.tree import walk

SURE_GROWERS = {"append", "extend", "insert", "appendleft", "extendleft"}  # only containers have them
GROWERS = SURE_GROWERS | {"add", "update", "setdefault"}
SHRINKERS = {
    "clear", "pop", "popleft", "popitem", "remove", "discard", "difference_update", "intersection_update", "truncate",
}  # fmt: skip
HEAP_GROWERS = {"heappush", "insort", "insort_left", "insort_right"}  # functions that take the container first
HEAP_SHRINKERS = {"heappop"}
MAPPINGS = {"dict", "defaultdict", "OrderedDict", "Counter", "Dict", "DefaultDict", "MutableMapping"}
DEFAULTS = {"defaultdict", "Counter", "DefaultDict"}  # reading a key adds it
SEQUENCES = {"list", "set", "deque", "List", "Set", "Deque", "MutableSequence", "MutableSet", "bytearray"}
WRAPPERS = {"ClassVar", "Final", "Annotated", "Optional"}
MAX_WRAPS = 4  # of types and calls around a container
CONTAINERS = MAPPINGS | SEQUENCES
DISPLAYS = {ast.Dict: "dict", ast.DictComp: "dict", ast.List: "list", ast.ListComp: "list", ast.Set: "set", ast.SetComp: "set"}


@contract
def get_kind(value: ast.expr) -> str:
    """Return the kind of container that an expression makes or an annotation names; empty for anything else."""
    for _ in range(MAX_WRAPS):
        value = unwrap(value)
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return next((name for name in CONTAINERS if value.value.startswith(f"{name}[")), "")
    head = get_head(value)
    return DISPLAYS.get(type(value), head if head in CONTAINERS else "")


@contract
def unwrap(value: ast.expr) -> ast.expr:
    """Return what decides the kind of an expression: the factory of a field, the class of a call, the type in a ClassVar."""
    if isinstance(value, ast.Call):
        factories = [keyword.value for keyword in value.keywords if keyword.arg == "default_factory"]
        return [*factories, value.func][0]
    if isinstance(value, ast.Lambda):
        return value.body
    if isinstance(value, ast.Subscript) and get_head(value) in WRAPPERS:
        item = value.slice
        return item.elts[0] if isinstance(item, ast.Tuple) else item
    return value


@contract
def is_limited(value: ast.expr) -> bool:
    """Return whether an expression makes a container that drops what is too much: deque(maxlen=n)."""
    calls = [node for node in walk(value) if isinstance(node, ast.Call)]
    has_limit = any(word.arg == "maxlen" and not is_none(word.value) for call in calls for word in call.keywords)
    return has_limit or any(get_head(call.func) == "deque" and len(call.args) > 1 for call in calls)


@contract
def get_head(node: ast.expr) -> str:
    """Return the last name of `a.b[c]`: b."""
    return get_last_name(node.value if isinstance(node, ast.Subscript) else node)


@contract
def get_base(node: ast.expr) -> ast.expr:
    """Return what is subscripted: x of `x[a][b]`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


@contract
def list_targets(node: ast.AST) -> list[ast.expr]:
    """Return what a statement assigns to, with the parts of tuples."""
    if isinstance(node, ast.Assign | ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        targets = [node.target]
    else:
        return []
    return [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple | ast.List) else [target])]


@contract
def iter_grown(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Yield the containers that a node makes larger, each with what it does: the method, `[key] =`, `[key] +=` or `+=`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in GROWERS:
        yield get_base(node.func.value), node.func.attr
    elif isinstance(node, ast.Call) and get_last_name(node) in HEAP_GROWERS and node.args:
        yield node.args[0], "append"
    elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.BitOr):
        is_key = isinstance(node.target, ast.Subscript)
        if not is_key or is_variable(node.target):
            yield get_base(node.target), "[key] +=" if is_key else "+="
    elif isinstance(node, ast.Assign):
        yield from ((get_base(target), "[key] =") for target in list_targets(node) if is_variable(target))
        yield from ((target, "= itself and more") for target in list_targets(node) if is_extended(target, node.value))


@contract
def is_extended(target: ast.expr, value: ast.expr) -> bool:
    """Return whether a value is what it is assigned to and more: `x + [row]`, `[*x, row]`, `{**x, key: row}`."""
    parts = [value.left, value.right] if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add | ast.BitOr) else []
    if isinstance(value, ast.List | ast.Set | ast.Tuple):
        parts = [part.value for part in value.elts if isinstance(part, ast.Starred)]
    elif isinstance(value, ast.Dict):
        parts = [item for key, item in zip(value.keys, value.values, strict=True) if key is None]
    return ast.unparse(target) in map(ast.unparse, parts)


def is_variable(target: ast.expr) -> bool:
    """Return whether a target is a subscript that may be new each time: not a constant, not a slice."""
    return isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Constant | ast.Slice | ast.UnaryOp)


@contract
def iter_bounded(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the containers that a node makes smaller, replaces or measures: pop, del, `x = ...`, `len(x) < n`."""
    if isinstance(node, ast.Call):
        yield from list_shrunk(node)
    elif isinstance(node, ast.Delete):
        yield from map(get_base, list_targets(node))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        yield from (get_base(target) for target in list_targets(node) if is_replaced(target, node.value))
    elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Sub | ast.BitAnd):
        yield node.target
    elif isinstance(node, ast.Compare):
        yield from list_measured(node)


def list_shrunk(call: ast.Call) -> list[ast.expr]:
    """Return the container that a call takes from."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in SHRINKERS:
        return [get_base(call.func.value)]
    return call.args[:1] if get_last_name(call) in HEAP_SHRINKERS else []


def list_measured(node: ast.Compare) -> list[ast.expr]:
    """Return the containers whose length a comparison measures; to ask whether there is anything is no bound."""
    sides = [node.left, *node.comparators]
    if any(isinstance(side, ast.Constant | ast.UnaryOp) and ast.unparse(side) in ("0", "1", "-1") for side in sides):
        return []
    calls = [call for side in sides for call in walk(side) if isinstance(call, ast.Call)]
    return [call.args[0] for call in calls if get_last_name(call) == "len" and call.args]


@contract
def is_replaced(target: ast.expr, value: ast.expr | None) -> bool:
    """Return whether an assignment puts something fresh where a container was, or where a slice of it was."""
    if isinstance(target, ast.Subscript):
        return isinstance(target.slice, ast.Slice)
    return value is not None and not is_extended(target, value)


@contract
def list_known_keys(nodes: list[ast.AST]) -> set[str]:
    """Return the items that are there already, as `x[key]`: read before they are written, or of a loop over x itself.

    Where a `key in x` or a KeyError asks whether an item is there, reading it says nothing.
    """
    reads, writes, doubted = dict[str, int](), dict[str, int](), set[str]()
    known = set[str]()
    for node in nodes:
        if isinstance(node, ast.Subscript):
            lines = reads if isinstance(node.ctx, ast.Load) else writes
            lines[ast.unparse(node)] = min(node.lineno, lines.get(ast.unparse(node), node.lineno))
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            doubted |= {ast.unparse(get_owner(node.comparators[0]))}
        elif isinstance(node, ast.For) and (names := [n.id for n in walk(node.target) if isinstance(n, ast.Name)]):
            known.add(f"{ast.unparse(get_owner(node.iter))}[{names[0]}]")
        elif isinstance(node, ast.ExceptHandler) and node.type is not None and "KeyError" in ast.unparse(node.type):
            return known
    return known | {
        text for text, line in writes.items() if reads.get(text, line + 1) <= line and text[: text.rindex("[")] not in doubted
    }


@contract
def get_owner(node: ast.expr) -> ast.expr:
    """Return x of `x`, `x.items()`, `x.keys()`, `list(x)` and `sorted(x.items())`."""
    for _ in range(2):
        if isinstance(node, ast.Call) and get_last_name(node) in ("list", "tuple", "sorted", "set") and node.args:
            node = node.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("items", "keys"):
            node = node.func.value
    return node
