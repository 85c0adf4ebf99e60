"""Conditions on other keys, as optim == 'grokfast' and lr > 1e-3: comparisons in Python's syntax, and nothing else."""

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
    """A parsed condition: `holds` evaluates it, `names` are the keys that it depends on.

    Raises ValueError that names the setting for text that is no condition.
    """

    def __init__(self, source: str, setting: str) -> None:
        self.source, self.setting, self.names = str(source), setting, set[str]()
        try:
            self.tree = ast.parse(self.source, mode="eval").body
            self._validate(self.tree)
        except SyntaxError as error:
            message = "is not a condition: compare keys with values, as optim == 'grokfast' and lr > 1e-3"
            raise ValueError(f"{setting}={source} {message}") from error

    def _validate(self, node: ast.expr) -> None:
        """Collect the names; raise SyntaxError for what `_evaluate` does not know, calls above all."""
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
                self._validate(child)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Evaluate for these values; False where a key that it depends on is missing.

        Raises ValueError for values that cannot be compared.
        """
        if not self.names <= values.keys():
            return False
        try:
            return bool(self._evaluate(self.tree, values))
        except TypeError as error:
            raise ValueError(f"{self.setting}={self.source}: {error}") from error

    def _evaluate(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        if name := to_dotted_key(node):
            return values[name]
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple():
                return [self._evaluate(item, values) for item in node.elts]
            case ast.UnaryOp():
                value = self._evaluate(node.operand, values)
                return not value if isinstance(node.op, ast.Not) else -value
            case ast.BoolOp():
                combine = all if isinstance(node.op, ast.And) else any
                return combine(self._evaluate(item, values) for item in node.values)
            case ast.Compare():
                operands = [self._evaluate(item, values) for item in (node.left, *node.comparators)]
                pairs = zip(node.ops, operands, operands[1:], strict=False)
                return all(COMPARE[type(op)](left, right) for op, left, right in pairs)
        raise AssertionError("validated when it was parsed")


def to_dotted_key(node: ast.expr) -> str:
    """Return the dotted key that a node spells, as optim.lr; empty for any other node."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := to_dotted_key(node.value)):
        return f"{owner}.{node.attr}"
    return ""
