"""Which functions do nothing but return: dropping what they return makes the call useless."""

import ast
from collections import Counter

from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import Function, is_none, walk_own

LAZY = {"map", "filter", "zip", "enumerate", "reversed", "sorted", "range", "isinstance", "issubclass", "callable", "hasattr"}
BUILTINS = LAZY | {
    "len", "str", "repr", "bool", "tuple", "list", "dict", "set", "frozenset", "sum", "any", "all", "min", "max", "abs",
    "round", "type", "id", "super", "format",
}  # fmt: skip
ACTS = (
    ast.Raise | ast.Assert | ast.Yield | ast.YieldFrom | ast.Await | ast.Global | ast.Nonlocal | ast.With | ast.AsyncWith,
    ast.AugAssign
    | ast.Import
    | ast.ImportFrom
    | ast.Delete
    | ast.Try
    | ast.TryStar
    | ast.While
    | ast.FunctionDef
    | ast.ClassDef,
)  # what may do something, or end in an error
KEEPING = {"staticmethod", "classmethod"}  # decorators that leave a function as it is


@contract
def runs_later(function: Function) -> bool:
    """Return whether a call of a function only makes what runs later: a coroutine or a generator."""
    if {*function.decorators} - KEEPING:
        return False
    is_generator = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in walk_own(function.node))
    return is_generator or isinstance(function.node, ast.AsyncFunctionDef)


@contract
def find_pure(graph: CallGraph) -> set[str]:
    """Return the functions of a tree that return something and do nothing else, as far as can be seen."""
    often = Counter(function.node.name for function in graph.functions.values())  # one of several may be called in its place
    single = {unit: function for unit, function in graph.functions.items() if often[function.node.name] == 1}
    return {unit for unit, function in single.items() if not function.decorators and returns_only(function, graph.bound[unit])}


def returns_only(function: Function, bound: frozenset[str]) -> bool:
    """Return whether a function has a result, and neither a statement nor a call that does anything else."""
    nodes = walk_own(function.node)
    results = [node.value for node in nodes if isinstance(node, ast.Return)]
    if not any(value is not None and not is_none(value) for value in results):
        return False
    for node in nodes:
        is_stored = isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)
        is_unknown = isinstance(node, ast.Call) and ast.unparse(node.func) not in BUILTINS - bound
        if is_stored or is_unknown or isinstance(node, ACTS):
            return False
    return True
