"""A condition of other keys, as optim == 'grokfast' and lr > 1e-3: Python's comparisons, and nothing that could do harm."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class Condition:
    """`holds` says whether it is so for these values; `names` are the keys that it asks for."""

    def __init__(self, source: str, setting: str) -> None:
        self.source, self.setting, self.names = str(source), setting, set[str]()
        try:
            self.tree = ast.parse(self.source, mode="eval").body
            self._check(self.tree)
        except SyntaxError as error:
            told = "is not a condition: compare keys with values, as optim == 'grokfast' and lr > 1e-3"
            raise ValueError(f"{setting}={source} {told}") from error

    def _check(self, node: ast.expr) -> None:
        """Only what `_value` knows. Raises SyntaxError for the rest."""
        if name := to_dotted_key(node):
            self.names.add(name)
            return
        if not isinstance(node, ast.Constant | ast.BoolOp | ast.UnaryOp | ast.Compare | ast.List | ast.Tuple):
            raise SyntaxError
        if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not | ast.USub):
            raise SyntaxError
        if isinstance(node, ast.Compare) and any(type(op) not in COMPARE for op in node.ops):
            raise SyntaxError
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._check(child)

    def holds(self, known: Mapping[str, Any]) -> bool:
        """Not where a key that it asks for is itself left out."""
        if not self.names <= known.keys():
            return False
        try:
            return bool(self._evaluate(self.tree, known))
        except TypeError as error:
            raise ValueError(f"{self.setting}={self.source}: {error}") from error

    def _evaluate(self, node: ast.expr, known: Mapping[str, Any]) -> Any:
        if name := to_dotted_key(node):
            return known[name]
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple():
                return [self._evaluate(each, known) for each in node.elts]
            case ast.UnaryOp():
                value = self._evaluate(node.operand, known)
                return not value if isinstance(node.op, ast.Not) else -value
            case ast.BoolOp():
                judge = all if isinstance(node.op, ast.And) else any
                return judge(self._evaluate(each, known) for each in node.values)
            case ast.Compare():
                values = [self._evaluate(each, known) for each in (node.left, *node.comparators)]
                pairs = zip(node.ops, values, values[1:], strict=False)
                return all(COMPARE[type(op)](left, right) for op, left, right in pairs)
        raise AssertionError("checked when it was read")


def to_dotted_key(node: ast.expr) -> str:
    """A key with its dots; empty where the node is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := to_dotted_key(node.value)):
        return f"{owner}.{node.attr}"
    return ""
