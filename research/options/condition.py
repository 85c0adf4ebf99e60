"""Conditions on other keys, as optim == 'grokfast' and lr > 1e-3: comparisons in Python's syntax, and nothing else."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from research.contracts import contract
from research.ranges import MAX_NESTING

FUNCTIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.And: all,
    ast.Or: any,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


@contract
class Condition:
    """A parsed condition: `holds` evaluates it, `names` are the keys that it depends on.

    Raise ValueError that names the setting for text that is no condition.
    """

    def __init__(self, source: object, setting: str) -> None:
        self.source, self.setting, self.names = str(source), setting, set[str]()
        try:
            self._evaluate = self._compile(ast.parse(self.source, mode="eval").body)
        except (SyntaxError, KeyError) as error:
            message = "is not a condition: compare keys with values, as optim == 'grokfast' and lr > 1e-3"
            raise ValueError(f"{setting}={source} {message}") from error

    def _compile(self, node: ast.expr, depth: int = MAX_NESTING) -> Callable[[Mapping[str, Any]], Any]:
        """Return a function of the values; collect the names.

        Raise SyntaxError or KeyError for other syntax, as calls, and for parts of parts deeper than `depth`.
        """
        if not depth:
            raise SyntaxError
        if name := to_dotted_key(node):
            self.names.add(name)
            return operator.itemgetter(name)
        match node:
            case ast.Constant(value=value):
                return lambda values: value
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                items = [self._compile(element, depth - 1) for element in elements]
                return lambda values: [item(values) for item in items]
            case ast.UnaryOp(op=op, operand=inner):
                apply, operand = FUNCTIONS[type(op)], self._compile(inner, depth - 1)
                return lambda values: apply(operand(values))
            case ast.BoolOp(op=op, values=parts):
                combine, conditions = FUNCTIONS[type(op)], [self._compile(part, depth - 1) for part in parts]
                return lambda values: combine(condition(values) for condition in conditions)
            case ast.Compare(left=left, ops=ops, comparators=others):
                comparisons, sides = (
                    [FUNCTIONS[type(op)] for op in ops],
                    [self._compile(side, depth - 1) for side in (left, *others)],
                )
                pairs = list(zip(comparisons, sides, sides[1:], strict=False))
                return lambda values: all(compare(a(values), b(values)) for compare, a, b in pairs)
        raise SyntaxError

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Evaluate for these values; False where a key that it depends on is missing.

        Raise ValueError for values that cannot be compared.
        """
        try:
            return self.names <= values.keys() and bool(self._evaluate(values))
        except TypeError as error:
            raise ValueError(f"{self.setting}={self.source}: {error}") from error


def to_dotted_key(node: ast.expr) -> str:
    """Return the dotted key that a node spells, as optim.lr; empty for any other node."""
    parts = list[str]()
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
