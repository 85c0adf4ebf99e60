"""Rule 4, short functions: at most 60 lines of code, without docstring, blank lines and comments.

Statements behind a `;` count each, and so does what a very long line holds. What is split off to pass the rule counts where it
came from: a part of the same name that takes many of its caller's variables, or a function inside that is called once.
"""

import ast
import math
import re
from collections import Counter
from itertools import pairwise

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import FunctionNode, Visibility, get_last_name
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 4
MAX_LINES = 60
DEFINITION = FunctionNode | ast.ClassDef
MAX_COLUMNS = 160  # a longer line counts as more
LINE = 120  # columns that count as one line where a line is longer
MIN_HANDED = 6  # variables of the caller that make a part of a function with its name
MAX_HANDED = 10  # those that make one, whatever its name
WORDS = "part|rest|cont|continued?|tail|end|next|more|half|second|third|again|stage|phase"
PART = re.compile(rf"_?({WORDS})?_?\d*|_[a-z]")  # what a split function adds to its name
PART_END = re.compile(rf"_({WORDS})?_?\d*$|\d+$")


@contract
def check(tree: Tree, graph: CallGraph) -> RuleResult:
    """Return the functions that are too long. Parts of a function that was split to pass count as one unit with it."""
    weights = {module.name: weigh_lines(module) for module in tree.modules}
    sizes = {key: size for module in tree.modules for key, size in measure_module(module, graph, weights[module.name]).items()}
    homes = find_homes(tree, graph)
    totals, parts = Counter[str](), Counter[str]()
    for key, size in sizes.items():
        home = follow(key, homes)
        totals[home] += size
        parts[home] += 1
    findings = list[Finding]()
    for key, lines in totals.items():
        if lines > MAX_LINES:
            function = graph.functions[key]
            message = f"{lines} lines of code > {MAX_LINES}{explain(key, parts, homes)}; split it by what it does"
            findings.append(Finding(function.module.path, function.node.lineno, RULE, function.unit, message[:200]))
    tops = {module: lines for module in tree.modules if (lines := measure_top(module, weights[module.name]))}
    for module, lines in tops.items():
        if lines > MAX_LINES:
            message = f"{lines} lines of code > {MAX_LINES} in blocks outside of functions; make functions of them"
            findings.append(Finding(module.path, 1, RULE, module.name, message))
    return RuleResult(RULE, len(totals) + len(tops), sorted(findings))


@contract
def explain(key: str, parts: Counter[str], homes: dict[str, str]) -> str:
    """Return what else a function's lines include, as text; empty where there is nothing."""
    names = [part.rpartition(".")[2] for part in homes if follow(part, homes) == key]
    return f" with {', '.join(names[:3])}, which {'are parts' if parts[key] > 2 else 'is a part'} of it" if names else ""


@contract
def follow(key: str, homes: dict[str, str]) -> str:
    """Return the function that a part of a part of a function belongs to."""
    for _ in range(len(homes)):
        if key not in homes:
            break
        key = homes[key]
    return key


def measure_top(module: Module, weights: list[int]) -> int:
    """Return the lines of code in blocks at the top of a module or a class, as in `if` and `for`: not those of functions."""
    bodies = [module.syntax.body, *(node.body for node in module.nodes if isinstance(node, ast.ClassDef))]
    spans = [span(node) for body in bodies for node in body if list_blocks(node) and not isinstance(node, DEFINITION)]
    inner = {line for node in module.nodes if spans and isinstance(node, FunctionNode) for line in span(node)}
    return sum(weights[line] for line in {line for lines in spans for line in lines} - inner)


@contract
def span(node: ast.stmt) -> range:
    """Return the numbers of the lines of a statement."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def measure_module(module: Module, graph: CallGraph, weights: list[int]) -> dict[str, int]:
    """Return the lines of code of each function of a module, by its key in the graph: inner functions have their own."""
    functions = {f"{module.name}.{key}": function for key, function in graph.get_functions(module.name).items()}
    spans = {key: span(function.node) for key, function in functions.items()}
    sizes = {key: sum(weights[line] for line in span) for key, span in spans.items()}
    whole = {**sizes}
    for key, function in functions.items():
        outer = next((scope for scope in [*graph.list_scopes(function)][1:]), None)
        if outer is not None and f"{module.name}.{outer.name}" in sizes:
            sizes[f"{module.name}.{outer.name}"] -= whole[key]
    return sizes


def weigh_lines(module: Module) -> list[int]:
    """Return how many lines of code each line of a file counts as, by its number from 1."""
    weights = [0, *(weigh(line) for line in module.lines), 0]
    comments = {number for number, line in enumerate(module.lines, 1) if line.lstrip().startswith("#")}
    nodes = module.nodes
    for node in nodes:
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:  # a # in a text is no comment
            comments.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for line in comments:
        weights[line] = 0
    for node in nodes:
        if isinstance(node, DEFINITION):
            drop_text(node.body[0], weights)
        for block in list_blocks(node) if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case) else []:
            add_packed(node, block, weights)
    return weights


def weigh(line: str) -> int:
    """Return how many lines one line is: none where it is blank, more where it is very long."""
    if not line.strip():
        return 0
    return math.ceil(len(line.rstrip()) / LINE) if len(line.rstrip()) > MAX_COLUMNS else 1


def drop_text(statement: ast.stmt, weights: list[int]) -> None:
    """Take the lines of a docstring away."""
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    if is_text and isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str):
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1):
            weights[line] = 0


def list_blocks(node: ast.AST) -> list[list[ast.stmt]]:
    """Return the blocks of statements right inside a node."""
    blocks = [getattr(node, name, None) for name in ("body", "orelse", "finalbody")]
    return [block for block in blocks if isinstance(block, list) and block]


def add_packed(node: ast.AST, block: list[ast.stmt], weights: list[int]) -> None:
    """Count the statements that share a line with the one before them, or with the head of their block."""
    for first, second in pairwise(block):
        if second.lineno == first.end_lineno:
            weights[second.lineno] += 1
    is_docstring = isinstance(block[0], ast.Expr) and isinstance(block[0].value, ast.Constant)
    if block[0].lineno == getattr(node, "lineno", 0) and not is_docstring:
        weights[block[0].lineno] += 1


def find_homes(tree: Tree, graph: CallGraph) -> dict[str, str]:
    """Return the functions that count as a part of another one, each with that one."""
    visibility, mentions, homes = Visibility(tree), Counter[str](), dict[str, str]()
    for names in visibility.names.values():
        mentions.update(names)
    for caller, walked in graph.walked.items():
        names = Counter(node.id for node in walked if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
        for call in walked:
            name = get_last_name(call.func) if isinstance(call, ast.Call) else ""
            if not isinstance(call, ast.Call) or 1 not in (mentions[name], names[name]):
                continue
            callees = graph.resolve_call(caller, call) - {caller}
            if is_inner(graph, caller, callees):
                homes |= dict.fromkeys(callees, caller)
            elif mentions[name] == 1:
                homes |= {callee: caller for callee in callees if is_part(graph, visibility, callee, caller, call)}
    return homes


def is_inner(graph: CallGraph, caller: str, callees: set[str]) -> bool:
    """Return whether what a function calls is a function inside it that only this call mentions."""
    inner = [callee for callee in callees if callee.startswith(f"{caller}.")]
    names = [callee.rpartition(".")[2] for callee in inner]
    function = graph.functions[caller]
    around = [node for node in walk(function.node) if isinstance(node, ast.Name)] if inner else []
    return bool(inner) and sum(node.id in names for node in around) == 1


@contract
def is_part(graph: CallGraph, visibility: Visibility, callee: str, caller: str, call: ast.Call) -> bool:
    """Return whether a function that is called once is only a part of its caller."""
    function = graph.functions[callee]
    if visibility.is_public(function):
        return False
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    if any(isinstance(node, ast.Call) and get_last_name(node) == "locals" for node in values):
        return True
    handed = {node.id for value in values for node in walk(value) if isinstance(node, ast.Name)}
    own, other = function.name.rpartition(".")[2].strip("_"), caller.rpartition(".")[2].strip("_")
    root = PART_END.sub("", other) or other
    is_same = any(own.startswith(name) and own != name and PART.fullmatch(own[len(name) :]) for name in (other, root))
    count = len(handed & graph.bound[caller])
    return count >= MAX_HANDED or (is_same and count >= MIN_HANDED)
