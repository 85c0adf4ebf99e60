"""Which functions do nothing but return: dropping what they return makes the call useless."""

import ast
from collections import Counter

from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.functions import Function, get_last_name, is_none, walk_own

LAZY = {"map", "filter", "zip", "enumerate", "reversed", "sorted", "range", "isinstance", "issubclass", "callable", "hasattr"}
BUILTINS = LAZY | {
    "len", "str", "repr", "bool", "tuple", "list", "dict", "set", "frozenset", "sum", "any", "all", "min", "max", "abs",
    "round", "type", "id", "super", "format",
}  # fmt: skip
METHODS = {
    "join", "split", "strip", "lstrip", "rstrip", "lower", "upper", "startswith", "endswith", "replace", "format", "items",
    "keys", "values", "copy", "count", "partition", "rpartition", "removeprefix", "removesuffix", "splitlines", "title",
}  # fmt: skip
ACTS = (
    ast.Raise | ast.Assert | ast.Yield | ast.YieldFrom | ast.Await | ast.Global | ast.Nonlocal | ast.With | ast.AsyncWith,
    ast.Import | ast.ImportFrom | ast.Delete | ast.Try | ast.TryStar | ast.While | ast.FunctionDef | ast.ClassDef,
)  # what may do something, or end in an error
KEEPING = {"staticmethod", "classmethod"}  # decorators that leave a function as it is


def runs_later(function: Function) -> bool:
    """Return whether a call of a function only makes what runs later: a coroutine or a generator."""
    if {*function.decorators} - KEEPING:
        return False
    is_generator = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in walk_own(function.node))
    return is_generator or isinstance(function.node, ast.AsyncFunctionDef)


def find_pure(graph: CallGraph) -> set[str]:
    """Return the functions of a tree that return something and do nothing else, as far as can be seen."""
    often = Counter(function.node.name for function in graph.functions.values())  # one of several may be called in its place
    pure = {
        unit
        for unit, function in graph.functions.items()
        if often[function.node.name] == 1 and not function.decorators and not function.is_stub and returns_only(function)
    }
    for _ in range(len(pure)):
        acting = {unit for unit in pure if not all(is_pure_call(unit, call, graph, pure) for call in list_calls(graph, unit))}
        if not acting:
            break
        pure -= acting
    return pure


def list_calls(graph: CallGraph, unit: str) -> list[ast.Call]:
    """Return the calls of a function."""
    return [node for node in walk_own(graph.functions[unit].node) if isinstance(node, ast.Call)]


def returns_only(function: Function) -> bool:
    """Return whether a function has a result, and no statement of its own that does anything else."""
    nodes, taken = walk_own(function.node), {argument.arg for argument in function.parameters}
    results = [node.value for node in nodes if isinstance(node, ast.Return)]
    if not any(value is not None and not is_none(value) for value in results):
        return False
    for node in nodes:
        is_stored = isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)
        is_changed = isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id in taken
        if is_stored or is_changed or isinstance(node, ACTS):
            return False
    return True


def is_pure_call(unit: str, call: ast.Call, graph: CallGraph, pure: set[str]) -> bool:
    """Return whether a call in a function does nothing but return, as far as can be seen."""
    callees = graph.resolve_call(unit, call)
    if callees:
        return callees <= pure
    name = get_last_name(call)
    return name in (METHODS if isinstance(call.func, ast.Attribute) else BUILTINS - graph.bound[unit])
