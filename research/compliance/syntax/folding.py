"""Values of nested expressions from those of their parts, without recursion: whether a test holds, whether an iterator ends."""

import ast
from collections.abc import Callable, Sequence
from typing import TypeVar

from research.compliance.syntax.contract import contract

T = TypeVar("T")
N = TypeVar("N")


@contract
def fold(root: N, expand: Callable[[N], Sequence[N]], combine: Callable[[N, list[T]], T]) -> T:
    """Return the value of a node: that which `combine` gives for it and the values of its parts, from the leaves up."""
    nodes, parents, left = list[N](), list[int](), [(root, -1)]
    while left:
        node, parent = left.pop()
        left += [(part, len(nodes)) for part in reversed(expand(node))]
        parents.append(parent)
        nodes.append(node)
    values: list[list[T]] = [[] for _ in range(len(nodes) + 1)]  # of the parts of a node; the last list is for the root
    for index in range(len(nodes) - 1, -1, -1):
        values[parents[index]].insert(0, combine(nodes[index], values[index]))
    return values[-1][0]


@contract
def get_truth(test: ast.expr) -> bool | None:
    """Return whether a test always holds or never does: `True`, `1`, `not ""`, `x or True`; None where it depends."""
    return fold(test, expand_test, combine_truth)


def expand_test(test: ast.expr) -> list[ast.expr]:
    """Return the parts of a test that and, or and not combine."""
    if isinstance(test, ast.BoolOp):
        return test.values
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return [test.operand]
    return [test.value] if isinstance(test, ast.NamedExpr) else []


def combine_truth(test: ast.expr, parts: list[bool | None]) -> bool | None:
    """Return the truth of a test from that of its parts."""
    if isinstance(test, ast.BoolOp):
        decisive = isinstance(test.op, ast.Or)
        return decisive if decisive in parts else (None if None in parts else not decisive)
    if parts:
        return parts[0] if isinstance(test, ast.NamedExpr) or parts[0] is None else not parts[0]
    if isinstance(test, ast.Tuple | ast.List | ast.Set):
        return bool(test.elts)
    if isinstance(test, ast.Dict):
        return bool(test.keys)
    return compare_constants(test) if isinstance(test, ast.Compare) else read_constant(test)


def read_constant(test: ast.expr) -> bool | None:
    """Return the truth of a constant; a lambda is always true. None for what is no constant."""
    if isinstance(test, ast.Lambda):
        return True
    return bool(test.value) if isinstance(test, ast.Constant) else None


def compare_constants(test: ast.Compare) -> bool | None:
    """Return what a comparison of two constants gives, or of a name with itself; None for any other."""
    left, right, op = test.left, test.comparators[0], type(test.ops[0])
    if len(test.ops) > 1 or op not in COMPARISONS:
        return None
    if isinstance(left, ast.Name) and isinstance(right, ast.Name) and left.id == right.id:
        return COMPARISONS[op](0, 0)
    try:
        return COMPARISONS[op](ast.literal_eval(left), ast.literal_eval(right))
    except (ValueError, TypeError):
        return None


def equals(left: object, right: object) -> bool:
    """Return whether two values are equal."""
    return left == right


def is_less(left: object, right: object) -> bool:
    """Return whether one number is smaller than another.

    Raise TypeError for what is no number.
    """
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        raise TypeError("only numbers are compared")
    return left < right


COMPARISONS: dict[type[ast.cmpop], Callable[[object, object], bool]] = {
    ast.Eq: equals,
    ast.Is: equals,
    ast.NotEq: lambda left, right: not equals(left, right),
    ast.IsNot: lambda left, right: not equals(left, right),
    ast.Lt: is_less,
    ast.Gt: lambda left, right: is_less(right, left),
    ast.LtE: lambda left, right: not is_less(right, left),
    ast.GtE: lambda left, right: not is_less(left, right),
}


@contract
def judge_test(test: ast.expr, is_wanted: bool, judge: Callable[[ast.expr, bool], bool]) -> bool:
    """Return whether a loop ends that goes on while a test is `is_wanted`: of an `and` one part is enough, of an `or` all end.

    `judge` says it of a single comparison, and of whether that is wanted to be true.
    """

    def expand(node: tuple[ast.expr, bool]) -> list[tuple[ast.expr, bool]]:
        part, positive = node
        if isinstance(part, ast.NamedExpr):
            return []
        is_not = isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not)
        return [(child, positive != is_not) for child in expand_test(part)]

    def combine(node: tuple[ast.expr, bool], parts: list[bool]) -> bool:
        part, positive = node
        if isinstance(part, ast.BoolOp):
            return any(parts) if isinstance(part.op, ast.And) == positive else all(parts)
        return parts[0] if parts else judge(part, positive)

    return fold((test, is_wanted), expand, combine)
