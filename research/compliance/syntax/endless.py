"""Which iterators never end: itertools' count, cycle and repeat, iter(f, sentinel), and generators that yield for ever."""

import ast
from dataclasses import dataclass

from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.folding import fold, get_truth
from research.compliance.syntax.functions import Function, get_last_name, is_none
from research.compliance.syntax.names import to_key
from research.compliance.syntax.paths import Paths
from research.compliance.syntax.tree import walk

WRAPPERS = {
    "enumerate", "iter", "filter", "reversed", "starmap", "accumulate", "chain", "from_iterable", "list", "tuple", "set",
    "sorted", "batched", "pairwise", "tqdm", "trange", "track", "dropwhile", "compress", "zip_longest", "filterfalse", "tee",
}  # fmt: skip  # they end where what they are given ends
FACTORIES = {"int", "str", "list", "dict", "float", "bool", "tuple", "object", "set"}  # what they return never changes
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


@dataclass
class Endless:
    """What is known of iterators in a function, or at the top of a module."""

    graph: CallGraph
    module: str
    function: Function | None
    assigned: dict[str, ast.expr]  # names that are set once, with what they are set to
    generators: frozenset[str]  # the functions of the tree that yield for ever

    @contract
    def never_ends(self, node: ast.expr) -> bool:
        """Return whether a loop over an expression has no end of its own."""
        return fold(node, self.expand, self.combine)

    @contract
    def expand(self, node: ast.expr) -> list[ast.expr]:
        """Return the iterators that decide whether an expression ends."""
        if isinstance(node, ast.Name) and self.assigned.get(node.id) is not None:
            value = self.assigned[node.id]
            return [value] if isinstance(value, ast.Call | COMPREHENSIONS) and not reads(value, node.id) else []
        if isinstance(node, COMPREHENSIONS):
            return [generator.iter for generator in node.generators]
        if isinstance(node, ast.Starred):
            return [node.value]
        if isinstance(node, ast.IfExp):
            return [node.body, node.orelse]
        return self.expand_call(node) if isinstance(node, ast.Call) else []

    def expand_call(self, node: ast.Call) -> list[ast.expr]:
        """Return the arguments of a call that decide whether what it returns ends."""
        name = get_last_name(node)
        if name in ("map", "takewhile"):
            return node.args[1:]
        is_open = name == "islice" and len(node.args) > 1 and is_none(node.args[min(2, len(node.args) - 1)])
        is_sentinel = name == "iter" and len(node.args) == 2
        return node.args if (name in {*WRAPPERS, "zip"} and not is_sentinel) or is_open else []

    @contract
    def combine(self, node: ast.expr, parts: list[bool]) -> bool:
        """Return whether an expression ends, from whether its parts do."""
        name = get_last_name(node) if isinstance(node, ast.Call) else ""
        if name in ("zip", "map") or (isinstance(node, ast.Call) and name == "islice"):
            return bool(parts) and (parts[0] if name == "islice" else all(parts))
        if name == "takewhile" and isinstance(node, ast.Call):
            test = node.args[0]
            return any(parts) and isinstance(test, ast.Lambda) and bool(get_truth(test.body))
        return any(parts) or (isinstance(node, ast.Call) and self.is_source(node, name))

    def is_source(self, node: ast.Call, name: str) -> bool:
        """Return whether a call makes an iterator without end."""
        if name == "iter":
            return len(node.args) == 2
        dotted = self.graph.to_dotted(self.module, node.func)
        if dotted.startswith("itertools."):
            has_times = len(node.args) > 1 or any(keyword.arg == "times" for keyword in node.keywords)
            name = dotted.rpartition(".")[2]
            return name in ("count", "cycle") or (name == "repeat" and not has_times)
        if not isinstance(node.func, ast.Name | ast.Attribute):
            return False
        if kind := self.graph.find_class(self.module, node.func):
            return any(map(self.never_stops, self.graph.find_method(kind, "__next__")))
        if self.function is None:
            units = self.graph.look_up(self.module, name) if isinstance(node.func, ast.Name) else set()
        else:
            units = self.graph.resolve_call(f"{self.module}.{to_key(self.function)}", node)
        return bool(units & self.generators)

    def never_stops(self, unit: str) -> bool:
        """Return whether a __next__ neither raises nor asks anything else for the next one."""
        return not any(isinstance(node, ast.Raise | ast.Call) for node in self.graph.walked[unit])


@contract
def find_generators(graph: CallGraph) -> frozenset[str]:
    """Return the functions of a tree that are generators with a `while True` that yields and has no way out."""
    loops = [(unit, node) for unit, nodes in graph.walked.items() for node in nodes if isinstance(node, ast.While)]
    return frozenset(unit for unit, loop in loops if is_endless_loop(loop))


def is_endless_loop(loop: ast.While) -> bool:
    """Return whether a loop yields and never leaves."""
    if not get_truth(loop.test) or not any(isinstance(node, ast.Yield | ast.YieldFrom) for node in walk(loop)):
        return False
    statements = Paths(loop).nodes.values()
    inner = {id(child) for node in statements if isinstance(node, ast.For | ast.AsyncFor | ast.While) for child in walk(node)}
    leaves = [node for node in statements if isinstance(node, ast.Return | ast.Raise)]
    breaks = [node for node in statements if isinstance(node, ast.Break) and id(node) not in inner]
    return not leaves and not breaks


@contract
def reads(value: ast.expr, name: str) -> bool:
    """Return whether an expression reads a name."""
    return any(isinstance(node, ast.Name) and node.id == name for node in walk(value))


@contract
def is_same_for_ever(node: ast.expr) -> bool:
    """Return whether an iterator that never ends is one by intent: not `iter(read, b"")`, which ends with a file."""
    if not isinstance(node, ast.Call) or get_last_name(node) != "iter" or len(node.args) != 2:
        return True
    source = node.args[0]
    return get_last_name(source) in FACTORIES or isinstance(getattr(source, "body", None), ast.Constant)


@contract
def find_assigned(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """Return the names that some statements set once, each with what it is set to."""
    values, often = dict[str, ast.expr](), set[str]()
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    often |= {target.id} & {*values}
                    values[target.id] = node.value
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            often.add(node.target.id)
    return {name: value for name, value in values.items() if name not in often}
