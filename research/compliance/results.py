"""Rule 7: what is given has types, what is returned is used, and no exception is swallowed.

A result may be dropped where the call is made for what else it does. So three kinds of calls are findings: the result says
whether it worked (bool, int, an error), nothing has run yet (a coroutine, a generator), or the function does nothing else.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.effects import LAZY, find_pure, runs_later
from research.compliance.syntax.functions import Function, FunctionNode, Visibility, get_last_name, is_none, walk_own
from research.compliance.syntax.names import read_imports
from research.compliance.syntax.tree import Module, Tree

RULE = 7
BROAD = {"Exception", "BaseException"}
STATUS = re.compile(r"(.*\.)?(bool|int|\w*(Error|Exception))")
FILE_METHODS = {"write", "seek", "truncate"}  # Python's own files return a number that nobody reads
MYPY_LINE = re.compile(r"(?P<path>[^:\n]+\.py):(?P<line>\d+)(?::\d+)*: error: ")
MYPY_END = re.compile(r"(?:Found \d+ errors? in .*checked|Success: no issues found in) (?P<count>\d+) source files?")


@contract
def check(tree: Tree, graph: CallGraph, mypy_lines: Sequence[str] | None = None) -> RuleResult:
    """Return the public functions without types, the results that are dropped, and the exceptions that are swallowed."""
    visibility, errors, pure = Visibility(tree), read_mypy(mypy_lines or (), tree.root), find_pure(graph)
    findings, units = list[Finding](), 0
    for key, function in graph.functions.items():
        path, unit = function.module.path, function.unit
        if visibility.is_public(function):
            units += 1
            if message := explain_types(function, errors):
                findings.append(Finding(path, function.node.lineno, RULE, unit, message))
        for node in walk_own(function.node):
            value = node.value if isinstance(node, ast.Expr) else None
            call = value.value if isinstance(value, ast.Await) else value
            if isinstance(call, ast.Call):
                units += 1
                if message := explain_dropped(key, call, graph, pure, call is not value):
                    findings.append(Finding(path, call.lineno, RULE, f"{unit}:{call.lineno}", message))
    for module in tree.modules:
        for line, message in iter_handlers(module):
            units += 1
            if message:
                findings.append(Finding(module.path, line, RULE, f"{module.name}:{line}", message, True))
    return RuleResult(RULE, units, findings)


def read_report(path: Path, tree: Tree) -> tuple[list[str], str]:
    """Return the lines that mypy printed for a tree, and what it has not looked at; empty where that is nothing.

    Raise ValueError where the file is no whole report, or one of other files than those of today.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    ends = [int(match["count"]) for match in filter(None, map(MYPY_END.match, lines))]
    if not ends:
        raise ValueError(f"--mypy-report {path}: the line of mypy on how many files it checked is missing; run mypy again")
    written = path.stat().st_mtime
    newer = [module.path for module in tree.modules if (tree.root / module.path).stat().st_mtime > written]
    if newer:
        raise ValueError(f"--mypy-report {path}: {newer[0]} has changed since; run mypy again")
    errors, lengths = read_mypy(lines, tree.root), {module.path: len(module.lines) for module in tree.modules}
    for name, numbers in errors.items():
        if max(numbers) > lengths.get(name, max(numbers)):
            raise ValueError(f"--mypy-report {path}: {name} has no line {max(numbers)}; run mypy again")
    missing = [match["path"] for match in filter(None, map(MYPY_LINE.match, lines)) if not is_file(match["path"], tree.root)]
    if missing:
        raise ValueError(f"--mypy-report {path}: there is no file {missing[0]}; run mypy in this folder")
    is_part = ends[-1] < len(tree.modules)
    return lines, f"mypy has looked at {ends[-1]} of {len(tree.modules)} files or fewer" if is_part else ""


@contract
def is_file(name: str, root: Path) -> bool:
    """Return whether a path in mypy's report is a file, from the current folder or from the tree's root."""
    return Path(name).is_file() or (root / name).is_file()


@contract
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
    read = [argument for argument in function.parameters if argument.arg.strip("_")]  # `*_` is not read
    annotations = [argument.annotation for argument in read if argument.annotation is not None]
    if annotations and all("Any" in list_types(annotation) for annotation in annotations):
        return "all parameters are Any, which no type checker looks at; say what they are"
    end = function.node.end_lineno or function.node.lineno
    lines = [line for line in errors.get(function.module.path, ()) if function.node.lineno <= line <= end]
    return f"mypy reports an error at line {min(lines)}; mend it" if lines else ""


def list_types(annotation: ast.expr) -> set[str]:
    """Return the types that an annotation allows, as texts: those of a union, of an Optional, of a text."""
    text = annotation.value if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str) else None
    parts = (text or ast.unparse(annotation)).split(" | ")
    return {re.sub(r"^(\w+\.)*Optional\[(.*)\]$", r"\2", part).removeprefix("typing.").removeprefix("t.") for part in parts}


def explain_dropped(unit: str, call: ast.Call, graph: CallGraph, pure: set[str], is_awaited: bool) -> str:
    """Return the message for a call whose result must not be thrown away; empty where it may be, or is not known."""
    if isinstance(call.func, ast.Name) and call.func.id in LAZY and call.func.id not in graph.bound[unit]:
        return f"the result of {call.func.id} is all that it does, and it is dropped; use it, or delete the call"
    for key in graph.resolve_call(unit, call):
        callee = graph.functions[key]
        if callee.name.endswith("__init__"):
            continue
        if runs_later(callee) and not is_awaited:
            return f"{callee.name} has not run: what it returns is dropped; await it, or loop over it"
        is_status = any(map(STATUS.fullmatch, list_types(callee.node.returns))) if callee.node.returns else False
        if is_status and callee.node.name not in FILE_METHODS:
            return f"the result of {callee.name} says whether it worked and is dropped; use it, or assign it to _"
        if key in pure:
            return f"the result of {callee.name} is all that it does, and it is dropped; use it, or delete the call"
    return ""


def iter_handlers(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the line of all that catches exceptions, each with what is wrong where it swallows any; empty where it does not."""
    imports = read_imports(module, module.nodes)
    quiet = {"suppress", *(name for name, dotted in imports.items() if dotted == "contextlib.suppress")}
    broad = list_broad(module)
    for node in module.nodes:
        if isinstance(node, ast.ExceptHandler):
            is_bad = is_broad(node.type, broad) and all(map(is_nothing, node.body))
            yield node.lineno, "any exception is swallowed; name the exception that is meant, or log it" if is_bad else ""
        elif isinstance(node, ast.Call) and get_last_name(node) in quiet:
            is_bad = any(is_broad(argument, broad) for argument in node.args)
            yield node.lineno, "suppress swallows any exception; name the one that is meant" if is_bad else ""
        elif isinstance(node, ast.Try | ast.TryStar) and any(map(leaves, node.finalbody)):
            yield min(part.lineno for part in node.finalbody), "leaving a finally swallows any exception; leave after it"
        elif isinstance(node, FunctionNode) and node.name in ("__exit__", "__aexit__"):
            yield node.lineno, "it swallows any exception: it returns True whatever it gets" if is_deaf(node) else ""


def list_broad(module: Module) -> set[str]:
    """Return the names that mean any exception in a module: its own, and those that are set to it at the top."""
    names = set(BROAD)
    for node in module.syntax.body:
        if isinstance(node, ast.Assign) and is_broad(node.value, names):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@contract
def is_broad(node: ast.expr | None, names: set[str]) -> bool:
    """Return whether an except clause takes any exception."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
    values = [part.value if isinstance(part, ast.Starred) else part for part in parts]
    return any(part is None or (not isinstance(part, ast.Call) and get_last_name(part) in names) for part in values)


@contract
def is_nothing(statement: ast.stmt) -> bool:
    """Return whether a statement does nothing about an exception."""
    if isinstance(statement, ast.Return):
        return statement.value is None or is_none(statement.value)
    if isinstance(statement, ast.Assign):
        names = [target.id if isinstance(target, ast.Name) else "read" for target in statement.targets]
        return not any(name.strip("_") for name in names) and isinstance(statement.value, ast.Name | ast.Constant)
    is_idle = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant | ast.Name | ast.Attribute)
    return is_idle or isinstance(statement, ast.Pass | ast.Continue | ast.Break | ast.Delete)


@contract
def leaves(statement: ast.stmt) -> bool:
    """Return whether a statement ends what is around it: a return, or a break or continue of a loop around it."""
    nodes = [statement, *walk_own(ast.Module([statement], []))]
    is_loop = any(isinstance(node, ast.For | ast.AsyncFor | ast.While) for node in nodes)
    return any(isinstance(node, ast.Return | ast.Break | ast.Continue if not is_loop else ast.Return) for node in nodes)


@contract
def is_deaf(node: FunctionNode) -> bool:
    """Return whether an __exit__ says of all exceptions that they are dealt with."""
    values = [child.value for child in walk_own(node) if isinstance(child, ast.Return)]
    return bool(values) and all(isinstance(value, ast.Constant) and value.value is True for value in values)
