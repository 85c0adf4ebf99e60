"""Rule 5: two checks a public function. They can fail, and stay on under `python -O`.

A check is a `raise` under a condition, or a call of a function of the tree that exists to raise. A parameter whose class checks
itself counts as one, and so does one that a checker gets with `locals()`. A decorator that checks types counts as one for each
parameter and one for the result. All these together are at most two a function. Two are wanted on average, as Holzmann has it:
what a function has above counts for others, up to four.
"""

import ast
from collections.abc import Mapping

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.enforced import Enforcement
from research.compliance.syntax.functions import Function, Visibility, get_last_name, walk_own
from research.compliance.syntax.tree import Tree
from research.compliance.syntax.vacuous import explain_vacuous, find_constants

RULE = 5
WANTED = 2  # of a function, on average
MOST = 4  # that count of one function: a long one does not make up for many
CHECKERS = ("check", "require", "validate", "ensure", "verify", "refuse", "enforce")
BROAD = {"Exception", "BaseException", "ValueError", "TypeError"}
FIX = "raise an error for what it cannot take (an assert goes away under python -O)"


@contract
def check(tree: Tree, graph: CallGraph) -> RuleResult:
    """Return the public functions with fewer than two checks, and all checks that cannot fail."""
    visibility, findings, units, conforming = Visibility(tree), list[Finding](), 0, 0
    checkers = {unit for unit, function in graph.functions.items() if raises(function)}
    enforcement = Enforcement(graph)
    for unit, function in graph.functions.items():
        faults = list_vacuous(function)
        path, line = function.module.path, function.node.lineno
        findings += [Finding(path, number, RULE, function.unit, text, True) for number, text in faults]
        if not visibility.is_public(function) or not has_boundary(function):
            continue
        count = count_checks(unit, graph, checkers) + min(WANTED, count_boundary(function, enforcement, checkers))
        units, conforming = units + WANTED, conforming + min(MOST, count)
        if count < WANTED:
            text = f"{count} of {WANTED} checks of what it is given; {FIX}"
            findings.append(Finding(path, line, RULE, function.unit, text))
    return RuleResult(RULE, units, findings, max(0, units - conforming))


def has_boundary(function: Function) -> bool:
    """Return whether a function takes something, or changes its object: what does neither has nothing to check."""
    if function.is_property:
        return False
    nodes = walk_own(function.node)
    return bool(function.parameters) or any(isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) for n in nodes)


def list_raises(function: Function) -> set[str]:
    """Return the conditions under which a function raises, as texts: one that is written twice counts once.

    Left out is what cannot be reached, what a handler around it swallows, and what no condition decides.
    """
    constants, conditions = find_constants(function.node), set[str]()
    left = [(block, "", False) for block in [function.body]]
    while left:
        block, condition, is_swallowed = left.pop()
        for statement in cut_unreachable(block):
            if isinstance(statement, ast.Raise) and condition and not is_swallowed:
                conditions.add(condition)
            for inner, reason in list_inner(statement, constants):
                left.append((inner, reason or condition, is_swallowed or swallows(statement, inner)))
    return conditions


def cut_unreachable(block: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of a block up to the first that leaves it."""
    leaving = (index for index, node in enumerate(block) if isinstance(node, ast.Return | ast.Raise | ast.Break | ast.Continue))
    return block[: next(leaving, len(block)) + 1]


def list_inner(statement: ast.stmt, constants: Mapping[str, ast.Constant]) -> list[tuple[list[ast.stmt], str]]:
    """Return the blocks inside a statement, each with the condition that decides it; empty for none. None of a known test."""
    if isinstance(statement, ast.If | ast.While):
        if explain_vacuous(statement.test, constants):
            return []
        text = ast.unparse(statement.test)
        return [(statement.body, text), (statement.orelse, f"not {text}")]
    if isinstance(statement, ast.Match):
        return [(case.body, ast.unparse(case.pattern)) for case in statement.cases]
    if isinstance(statement, ast.Try | ast.TryStar):
        handlers = [(handler.body, f"except {ast.unparse(handler.type or handler)}") for handler in statement.handlers]
        return [(statement.body, ""), (statement.orelse, ""), (statement.finalbody, ""), *handlers]
    if isinstance(statement, ast.For | ast.AsyncFor | ast.With | ast.AsyncWith):
        return [(statement.body, "")]
    return []


def swallows(statement: ast.stmt, block: list[ast.stmt]) -> bool:
    """Return whether a try swallows what this block of it raises."""
    if not isinstance(statement, ast.Try | ast.TryStar) or block is not statement.body:
        return False
    return any(is_broad(handler.type) and not can_raise(handler) for handler in statement.handlers)


@contract
def is_broad(node: ast.expr | None) -> bool:
    """Return whether an except clause takes any exception, or those that checks raise."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(part is None or get_last_name(part) in BROAD for part in parts)


def can_raise(handler: ast.ExceptHandler) -> bool:
    """Return whether a handler may raise in its turn."""
    return any(isinstance(node, ast.Raise) for node in walk_own(handler))


def raises(function: Function) -> bool:
    """Return whether a function exists to raise: it is named so, and can."""
    return function.name.split(".")[-1].lstrip("_").startswith(CHECKERS) and bool(list_raises(function))


def count_checks(unit: str, graph: CallGraph, checkers: set[str]) -> int:
    """Return how many checks the body of a function has: conditions under which it raises, and checkers that it calls."""
    function = graph.functions[unit]
    calls = [node for node in walk_own(function.node) if isinstance(node, ast.Call) and not hands_on_all(node)]
    made = {ast.unparse(call) for call in calls if checkers & graph.resolve_call(unit, call)}  # the same call twice is one
    return len(list_raises(function)) + len(made)


def hands_on_all(call: ast.Call) -> bool:
    """Return whether a call hands on all that a function has: `check(locals())` checks each parameter."""
    return any(isinstance(node, ast.Call) and get_last_name(node) == "locals" for node in call.args)


def count_boundary(function: Function, enforcement: Enforcement, checkers: set[str]) -> int:
    """Return how many parameters a decorator or their own class checks; the result that a decorator checks is one more."""
    if enforcement.is_enforced(function):
        return len(enforcement.list_checked(function))
    calls = [node for node in walk_own(function.node) if isinstance(node, ast.Call) and hands_on_all(node)]
    if any(checkers & enforcement.graph.resolve_call(function.unit, call) for call in calls):
        return len({*enforcement.list_checked(function)} - {"return"})
    return sum(checks_itself(function, argument, enforcement, checkers) for argument in function.parameters)


def checks_itself(function: Function, argument: ast.arg, enforcement: Enforcement, checkers: set[str]) -> bool:
    """Return whether the class of a parameter checks what it is made of."""
    graph, module = enforcement.graph, function.module.name
    owner = graph.find_class(module, argument.annotation) if argument.annotation is not None else None
    if owner is None:
        return False
    units = {unit for name in ("__init__", "__post_init__") for unit in graph.find_method(owner, name)}
    is_checked = bool(owner.attributes) and enforcement.has_enforcer(owner.module, owner.decorators)
    return is_checked or any(count_checks(unit, graph, checkers) for unit in units)


def list_vacuous(function: Function) -> list[tuple[int, str]]:
    """Return the checks of a function that cannot fail, by line."""
    constants, faults = find_constants(function.node), list[tuple[int, str]]()
    for node in walk_own(function.node):
        is_check = isinstance(node, ast.If) and any(isinstance(child, ast.Raise) for child in node.body)
        test = node.test if isinstance(node, ast.Assert) or (isinstance(node, ast.If) and is_check) else None
        if test is not None and (reason := explain_vacuous(test, constants)):
            faults.append((test.lineno, f"this check cannot fail: {reason}; check what may be wrong"))
    return faults
