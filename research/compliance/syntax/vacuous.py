"""Checks that cannot fail: their outcome is known before the program runs."""

import ast
from collections import Counter
from collections.abc import Mapping

from research.compliance.syntax.contract import contract
from research.compliance.syntax.folding import get_truth
from research.compliance.syntax.functions import FunctionNode, get_last_name, walk_own

ORDERED = (ast.Eq, ast.LtE, ast.GtE, ast.Is)


@contract
def find_constants(node: FunctionNode) -> dict[str, ast.Constant]:
    """Return the names that a function binds once, to a constant."""
    nodes = [*walk_own(node)]
    stores = Counter(child.id for child in nodes if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store))
    stores.update(argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg))
    return {
        target.id: child.value
        for child in nodes
        if isinstance(child, ast.Assign) and isinstance(child.value, ast.Constant)
        for target in child.targets
        if isinstance(target, ast.Name) and stores[target.id] == 1
    }


@contract
def explain_vacuous(test: ast.expr, constants: Mapping[str, ast.Constant]) -> str:
    """Return why the outcome of a test is known; empty where it is not."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test = test.operand
    if isinstance(test, ast.Tuple | ast.List) and test.elts:
        return "a filled tuple is always true"
    if isinstance(test, ast.Name) and test.id in constants:
        return f"{test.id} is a constant"
    if isinstance(test, ast.Name) and test.id == "__debug__":
        return "__debug__ is false under python -O"
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.NotEq) and is_same(test.left, test.comparators[0]):
        return ""  # `x != x` asks for NaN
    if get_truth(test) is not None:
        return "it tests constants"
    if isinstance(test, ast.Call):
        return explain_call(test)
    if isinstance(test, ast.BoolOp):
        return explain_alternatives(test)
    return explain_comparison(test, constants) if isinstance(test, ast.Compare) else ""


def explain_call(test: ast.Call) -> str:
    """Return why a call is always true; empty where it may be false."""
    name, arguments = get_last_name(test), test.args
    if name == "isinstance" and len(arguments) == 2 and get_last_name(arguments[1]) == "object":
        return "everything is an object"
    if name == "isinstance" and len(arguments) == 2 and ast.unparse(arguments[1]) == f"type({ast.unparse(arguments[0])})":
        return "everything is of its own type"
    if name == "hasattr" and isinstance(arguments[-1], ast.Constant) and str(arguments[-1].value).startswith("__"):
        return "every object has that attribute"
    if name == "bool" and arguments and isinstance(arguments[0], ast.Constant):
        return "it tests a constant"
    return ""


def explain_alternatives(test: ast.BoolOp) -> str:
    """Return why one of several alternatives always holds; empty where none may."""
    texts = [ast.unparse(value) for value in test.values]
    if any(f"not {text}" in texts for text in texts):
        return "it asks for a thing and its contrary"
    is_or = isinstance(test.op, ast.Or)
    if any(get_truth(value) is is_or for value in test.values):
        return "one part of it is a constant that decides"
    denied = [value.operand for value in test.values if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not)]
    decisive = denied if not is_or else [value for value in test.values if isinstance(value, ast.Call)]
    return next(filter(None, (explain_call(value) for value in decisive if isinstance(value, ast.Call))), "")


def explain_comparison(test: ast.Compare, constants: Mapping[str, ast.Constant]) -> str:
    """Return why a comparison is known; empty where it is not."""
    left, operator, right = test.left, test.ops[0], test.comparators[0]
    sides = (left, right)
    if is_same(left, right) and isinstance(operator, ORDERED) and not any(isinstance(s, ast.Call) for s in sides):
        return "both sides are the same"
    if all(isinstance(side, ast.Constant) or (isinstance(side, ast.Name) and side.id in constants) for side in sides):
        return "it compares constants"
    is_zero = isinstance(right, ast.Constant) and right.value == 0 and isinstance(right.value, int)
    is_size = isinstance(left, ast.Call) and get_last_name(left) in ("len", "abs")
    is_known = is_size and is_zero and isinstance(operator, ast.GtE | ast.Lt)
    return f"{get_last_name(left)} is never below 0" if is_known else ""


@contract
def is_same(left: ast.expr, right: ast.expr) -> bool:
    """Return whether two expressions are written alike, and are no constants."""
    return ast.dump(left) == ast.dump(right) and not isinstance(left, ast.Constant)
