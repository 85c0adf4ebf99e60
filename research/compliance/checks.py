"""Rule 5: two checks a public function. They can fail, and stay on under `python -O`.

A check is a `raise` under a condition, or a call of a function of the tree that exists to raise. A parameter whose class checks
itself counts as one, and a decorator that checks types as one a parameter: both together at most two a function.
"""

import ast

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.functions import Function, Visibility, get_last_name, walk_own
from research.compliance.syntax.tree import Tree
from research.compliance.syntax.vacuous import explain_vacuous, find_constants

RULE = 5
WANTED = 2  # of each function
CHECKERS = ("check", "require", "validate", "ensure", "verify", "refuse", "enforce")
DECORATORS = {"beartype", "typechecked", "validate_call"}  # of libraries that check types at each call
UNCHECKED = {"Any", "object", "Self", "TypeVar"}
ASSERT = "an assert goes away under python -O; raise an error"


def check(tree: Tree, graph: CallGraph) -> RuleResult:
    """Return the public functions with fewer than two checks, and all checks that cannot fail."""
    visibility, findings, units, missing = Visibility(tree), list[Finding](), 0, 0
    checkers = {unit for unit, function in graph.functions.items() if raises(function)}
    for function in graph.functions.values():
        faults = list_vacuous(function)
        findings += [Finding(function.module.path, line, RULE, function.unit, text, True) for line, text in faults]
        if not visibility.is_public(function) or not has_boundary(function):
            continue
        units += WANTED
        count = min(WANTED, count_checks(function, graph, checkers) + min(WANTED, count_boundary(function, graph, checkers)))
        if lacking := WANTED - count:
            missing += lacking
            text = f"{count} of {WANTED} checks of what it is given; raise an error for what it cannot take"
            findings.append(Finding(function.module.path, function.node.lineno, RULE, function.unit, text))
    return RuleResult(RULE, units, findings, missing)


def has_boundary(function: Function) -> bool:
    """Return whether a function takes something, or changes its object: what does neither has nothing to check."""
    if function.is_property:
        return False
    nodes = walk_own(function.node)
    return bool(function.parameters) or any(isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) for n in nodes)


def list_raises(function: Function) -> list[ast.Raise]:
    """Return the raise statements of a function that a condition decides, and that can be reached."""
    constants, raises_ = find_constants(function.node), list[ast.Raise]()
    left: list[tuple[ast.stmt, bool]] = [(statement, False) for statement in function.body]
    while left:
        statement, is_conditional = left.pop()
        if isinstance(statement, ast.Raise):
            raises_ += [statement] if is_conditional else []
            continue
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        is_dead = isinstance(statement, ast.If | ast.While) and bool(explain_vacuous(statement.test, constants))
        decides = not is_dead and isinstance(statement, ast.If | ast.While | ast.Match | ast.Try | ast.For | ast.AsyncFor)
        children = [child for child in ast.walk(statement) if isinstance(child, ast.stmt) and child is not statement]
        own = [child for child in children if not any(child in ast.walk(other) and child is not other for other in children)]
        left += [(child, is_conditional or decides) for child in own if not is_dead]
    return raises_


def raises(function: Function) -> bool:
    """Return whether a function exists to raise: it is named so, and can."""
    return function.name.split(".")[-1].lstrip("_").startswith(CHECKERS) and bool(list_raises(function))


def count_checks(function: Function, graph: CallGraph, checkers: set[str]) -> int:
    """Return how many checks the body of a function has."""
    types, count = graph.read_types(function), len(list_raises(function))
    for node in walk_own(function.node):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            count += bool(checkers & graph.resolve(function, node.func, types))
    return count


def count_boundary(function: Function, graph: CallGraph, checkers: set[str]) -> int:
    """Return how many parameters a decorator or their own class checks."""
    typed = [argument for argument in function.parameters if argument.annotation is not None]
    typed = [argument for argument in typed if get_last_name(argument.annotation) not in UNCHECKED]  # type: ignore[arg-type]
    if DECORATORS & {*function.decorators} and not DECORATORS & {*graph.names[function.module.name].functions}:
        return len(typed)
    return sum(checks_itself(function, argument, graph, checkers) for argument in typed)


def checks_itself(function: Function, argument: ast.arg, graph: CallGraph, checkers: set[str]) -> bool:
    """Return whether the class of a parameter checks what it is made of."""
    owner = graph.find_class(function.module.name, argument.annotation) if argument.annotation is not None else None
    if owner is None:
        return False
    units = {unit for name in ("__init__", "__post_init__") for unit in graph.find_method(owner, name)}
    makers = [graph.functions[unit] for unit in units]
    return any(list_raises(maker) or count_checks(maker, graph, checkers) for maker in makers)


def list_vacuous(function: Function) -> list[tuple[int, str]]:
    """Return the checks of a function that cannot fail, by line."""
    constants, faults = find_constants(function.node), list[tuple[int, str]]()
    for node in walk_own(function.node):
        is_check = isinstance(node, ast.If) and any(isinstance(child, ast.Raise) for child in node.body)
        test = node.test if isinstance(node, ast.Assert) or (isinstance(node, ast.If) and is_check) else None
        if test is not None and (reason := explain_vacuous(test, constants)):
            faults.append((test.lineno, f"this check cannot fail: {reason}; check what may be wrong"))
    return faults
