"""Rule 7: what is given has types, what is returned is used, and no exception is swallowed."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.functions import Function, Visibility, get_last_name, walk_own
from research.compliance.syntax.tree import Tree, walk

RULE = 7
BROAD = {"Exception", "BaseException"}
NOTHING = {"None", "NoReturn", "Never", "Self"}  # a result that may be dropped: methods that return self are chained
MYPY_LINE = re.compile(r"(?P<path>[^:\n]+\.py):(?P<line>\d+)(?::\d+)*: error: ")


def check(tree: Tree, graph: CallGraph, mypy_lines: Sequence[str] | None = None) -> RuleResult:
    """Return the public functions without types, the results that are dropped, and the exceptions that are swallowed."""
    visibility, errors = Visibility(tree), read_mypy(mypy_lines or (), tree.root)
    findings, units = list[Finding](), 0
    for key, function in graph.functions.items():
        path, unit = function.module.path, function.unit
        if visibility.is_public(function):
            units += 1
            if message := explain_types(function, errors):
                findings.append(Finding(path, function.node.lineno, RULE, unit, message))
        for node in walk_own(function.node):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                units += 1
                if message := explain_dropped(key, node.value, graph):
                    findings.append(Finding(path, node.lineno, RULE, f"{unit}:{node.lineno}", message))
    for module in tree.modules:
        for line, message in find_swallowed(module.syntax):
            findings.append(Finding(module.path, line, RULE, f"{module.name}:{line}", message, True))
        nodes = module.nodes
        units += sum(isinstance(n, ast.ExceptHandler) or (isinstance(n, ast.Call) and is_suppress(n)) for n in nodes)
    return RuleResult(RULE, units, findings)


def read_mypy(lines: Sequence[str], root: Path) -> dict[str, set[int]]:
    """Return the lines with an error of each file of a tree in mypy's own report.

    Mypy names files from the folder where it ran: that is the current one, or the tree's root.
    """
    errors: dict[str, set[int]] = {}
    for match in filter(None, map(MYPY_LINE.match, lines)):
        path = Path(match["path"]).resolve()
        name = path.relative_to(root.resolve()).as_posix() if path.is_relative_to(root.resolve()) else match["path"]
        for candidate in {name, match["path"]}:
            errors.setdefault(candidate, set()).add(int(match["line"]))
    return errors


def explain_types(function: Function, errors: dict[str, set[int]]) -> str:
    """Return what the types of a public function lack; empty where nothing does."""
    bare = [argument.arg for argument in function.parameters if argument.annotation is None]
    if bare:
        return f"{', '.join(bare)} {'has' if len(bare) == 1 else 'have'} no type; annotate it"
    if function.node.returns is None and not function.name.endswith("__init__"):
        return "the result has no type; annotate it"
    annotations = [argument.annotation for argument in function.parameters if argument.annotation is not None]
    if annotations and all(get_last_name(annotation) == "Any" for annotation in annotations):
        return "all parameters are Any, which no type checker looks at; say what they are"
    end = function.node.end_lineno or function.node.lineno
    lines = [line for line in errors.get(function.module.path, ()) if function.node.lineno <= line <= end]
    return f"mypy reports an error at line {min(lines)}; mend it" if lines else ""


def explain_dropped(unit: str, call: ast.Call, graph: CallGraph) -> str:
    """Return the message for a call whose result is thrown away; empty where it has none, or where it is not known."""
    callees = [graph.functions[callee] for callee in graph.resolve_call(unit, call)]
    for callee in callees:
        if (returns := callee.node.returns) is None or callee.name.endswith("__init__"):
            continue
        if not NOTHING & set(ast.unparse(returns).split(" | ")):
            return f"the result of {callee.name} is dropped; use it, or assign it to _"
    return ""


def find_swallowed(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the lines where any exception is swallowed, each with what to do."""
    for node in walk(tree):
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type) and all(map(is_nothing, node.body)):
            yield node.lineno, "any exception is swallowed; name the exception that is meant, or log it"
        if isinstance(node, ast.Call) and is_suppress(node) and any(map(is_broad, node.args)):
            yield node.lineno, "suppress swallows any exception; name the one that is meant"


def is_suppress(node: ast.Call) -> bool:
    """Return whether a call is that of contextlib.suppress."""
    return get_last_name(node) == "suppress"


def is_broad(node: ast.expr | None) -> bool:
    """Return whether an except clause takes any exception."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(part is None or get_last_name(part) in BROAD for part in parts)


def is_nothing(statement: ast.stmt) -> bool:
    """Return whether a statement does nothing about an exception."""
    if isinstance(statement, ast.Return):
        return statement.value is None or (isinstance(statement.value, ast.Constant) and statement.value.value is None)
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, ast.Pass | ast.Continue | ast.Break)
