"""What names a function without calling it: comparisons, annotations, what inspects it."""

import ast
from collections.abc import Iterable, Iterator

from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import FunctionNode, get_last_name
from research.compliance.syntax.tree import list_children, walk

INSPECTORS = {
    "isinstance", "issubclass", "cast", "super", "type", "hasattr", "getattr", "setattr", "id", "repr", "str", "callable",
    "wraps", "signature", "get_type_hints", "unwrap", "getsource", "getdoc", "getmodule", "iscoroutinefunction",
}  # fmt: skip  # they read a function or a class and do not call it


@contract
def walk_calls(node: FunctionNode) -> Iterator[ast.AST]:
    """Yield the nodes of a function, its lambdas included: not the bodies of functions and classes inside it."""
    left: list[ast.AST] = [*node.body]
    while left:
        child = left.pop()
        yield child
        left += child.decorator_list if isinstance(child, FunctionNode | ast.ClassDef) else list_children(child)


@contract
def list_unread(node: ast.AST) -> list[ast.AST]:
    """Return the nodes below one that name a function or a class and neither call it nor hand it on."""
    if isinstance(node, ast.Compare):  # `kind is A`
        return [node.left, *node.comparators]
    if isinstance(node, ast.If | ast.IfExp):
        return [node.test]
    if isinstance(node, ast.Subscript):
        return [node.slice]
    if isinstance(node, ast.AnnAssign):
        return [*walk(node.annotation)]
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        return [*walk(node.type)]
    is_named = isinstance(node, ast.Call) and not isinstance(node.func, ast.Call)  # `type(x)(map(f, x))` calls f
    if isinstance(node, ast.Call) and is_named and get_last_name(node) in INSPECTORS:
        return list_outside_calls(node.args)
    return []


def list_outside_calls(nodes: Iterable[ast.expr]) -> list[ast.AST]:
    """Return the nodes of some expressions that are not in a call: `cast(X, f(x))` calls f."""
    left, outside = [*nodes], list[ast.AST]()
    while left:
        node = left.pop()
        if not isinstance(node, ast.Call):
            outside.append(node)
            left += [child for child in list_children(node) if isinstance(child, ast.expr)]
    return outside


@contract
def uses(node: FunctionNode, name: str) -> bool:
    """Return whether a function calls a parameter of it, or hands it on to what may."""
    walked = [*walk_calls(node)]
    unread = {id(child) for parent in walked for child in list_unread(parent)}
    return any(isinstance(child, ast.Name) and child.id == name and id(child) not in unread for child in walked)
