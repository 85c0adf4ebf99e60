"""Rule 1, simple control flow: no recursion, few branches, shallow blocks.

Recursion is a cycle of the call graph, over files: direct, mutual, through a name handed on, super, an alias, or a lambda that
calls itself. What run time alone knows cannot be seen: getattr, a dict of functions, a method of an object of unknown class.
"""

import ast
from collections.abc import Iterator

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.functions import Function, FunctionNode, list_functions
from research.compliance.syntax.tree import Module, Tree, list_children, walk

RULE = 1
MAX_COMPLEXITY = 10  # McCabe (1976)
MAX_NESTING = 4  # blocks inside blocks
MAX_MESSAGE = 200
BLOCKS = ast.If | ast.For | ast.AsyncFor | ast.While | ast.Try | ast.TryStar | ast.With | ast.AsyncWith
BRANCHES = ast.If | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.match_case


def check(tree: Tree, graph: CallGraph) -> RuleResult:
    """Return the functions that call themselves, branch too often or nest too deep. A lambda counts where it calls itself."""
    findings, units = list[Finding](), 0
    cycles = find_paths(graph)
    for module in tree.modules:
        functions = list_functions(module)
        lambdas = [*find_recursive_lambdas(module)]
        units += len(functions) + len(lambdas)
        findings += lambdas
        for function in functions:
            findings += judge_shape(function)
    for unit, path in cycles.items():
        findings.append(report(graph.functions[unit], explain_cycle(path), is_critical=True))
    return RuleResult(RULE, units, sorted(findings))


def report(function: Function, message: str, is_critical: bool = False) -> Finding:
    """Return a finding about a function."""
    return Finding(function.module.path, function.node.lineno, RULE, function.unit, message, is_critical)


def judge_shape(function: Function) -> list[Finding]:
    """Return what is wrong with the branches and blocks of a function."""
    findings = list[Finding]()
    complexity, nesting = count_complexity(function.node), measure_nesting(function.node)
    if complexity > MAX_COMPLEXITY:
        findings.append(report(function, f"complexity {complexity} > {MAX_COMPLEXITY}; take branches out, or use a table"))
    if nesting > MAX_NESTING:
        findings.append(report(function, f"{nesting} blocks inside each other > {MAX_NESTING}; return early, or split it"))
    return findings


def count_complexity(node: FunctionNode) -> int:
    """Return the cyclomatic complexity of a function with those inside it, as ruff's C901 counts it."""
    complexity = 1
    for child in walk_body(node):
        if isinstance(child, BRANCHES | FunctionNode):
            complexity += 1
        elif isinstance(child, ast.Try | ast.TryStar):
            complexity += bool(child.orelse)
        elif isinstance(child, ast.Match):
            complexity -= is_else(child.cases[-1])
    return complexity


def walk_body(node: FunctionNode) -> Iterator[ast.AST]:
    """Yield all nodes of the statements of a function, those of functions inside it included."""
    left: list[ast.AST] = [*node.body]
    while left:
        child = left.pop()
        yield child
        left += list_children(child)


def is_else(case: ast.match_case) -> bool:
    """Return whether a case takes whatever is left."""
    return case.guard is None and isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None


def measure_nesting(node: FunctionNode) -> int:
    """Return how many blocks are inside each other at most. An elif is no deeper than its if; inner functions begin anew."""
    deepest = 0
    left = [(child, 0) for child in node.body]
    while left:
        child, depth = left.pop()
        if isinstance(child, FunctionNode | ast.ClassDef):
            continue
        inner = depth + isinstance(child, BLOCKS)
        deepest = max(deepest, inner)
        chain = [*child.orelse] if isinstance(child, ast.If) and is_elif(child) else []
        left += [(statement, inner) for statement in list_statements(child) if statement not in chain]
        left += [(statement, depth) for statement in chain]
    return deepest


def is_elif(node: ast.If) -> bool:
    """Return whether the else of an if is an elif: one more if, in the column of the first."""
    rest = node.orelse[0] if len(node.orelse) == 1 else None
    return isinstance(rest, ast.If) and rest.col_offset == node.col_offset


def list_statements(node: ast.AST) -> list[ast.stmt]:
    """Return the statements right inside a statement: those of handlers and cases are seen as its own."""
    parts = [node, *(child for child in list_children(node) if isinstance(child, ast.ExceptHandler | ast.match_case))]
    return [child for part in parts for child in list_children(part) if isinstance(child, ast.stmt)]


def find_paths(graph: CallGraph) -> dict[str, list[str]]:
    """Return a shortest way back to itself for each function that reaches itself."""
    paths = dict[str, list[str]]()
    for group in graph.find_cycles():
        members = {*group}
        for unit in group:
            paths[unit] = find_way_back(unit, {name: [to for to in graph.edges[name] if to in members] for name in members})
    return paths


def find_way_back(start: str, edges: dict[str, list[str]]) -> list[str]:
    """Return a shortest path from a node to itself, both ends included; empty where there is none."""
    origin = dict[str, str]()
    layer = [start]
    while layer and start not in origin:
        reached = [(child, node) for node in layer for child in edges[node]]
        layer = [*dict.fromkeys(child for child, _ in reached if child not in origin)]
        for child, node in reached:
            origin.setdefault(child, node)
    path = [start] if start in origin else []
    for _ in range(len(origin)):
        if not path or (len(path) > 1 and path[-1] == start):
            break
        path.append(origin[path[-1]])
    return path[::-1]


def explain_cycle(path: list[str]) -> str:
    """Return the message on a cycle of calls: shortened in the middle where it is long."""
    names = [".".join(unit.split(".")[-2:]) if unit.rpartition(".")[0] else unit for unit in path]
    end = "; make it a loop, or register its bound"
    text = " -> ".join(names)
    for kept in range(len(names) - 1, 1, -1):
        if len(text) + len(end) + len("recursion: ") <= MAX_MESSAGE:
            break
        text = " -> ".join([*names[: kept // 2], "...", *names[len(names) - (kept - kept // 2) :]])
    return f"recursion: {text}{end}"[:MAX_MESSAGE]


def find_recursive_lambdas(module: Module) -> Iterator[Finding]:
    """Yield a finding for each lambda that reads the name it is bound to."""
    for node in module.nodes:
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) or not isinstance(node.value, ast.Lambda):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        arguments = {argument.arg for argument in walk(node.value.args) if isinstance(argument, ast.arg)}
        names = {ast.unparse(target) for target in targets} - arguments
        reads = [child for child in walk(node.value.body) if isinstance(child, ast.Name | ast.Attribute)]
        if own := sorted(names & {ast.unparse(child) for child in reads}):
            unit = f"{module.name}.{own[0]}:{node.lineno}"
            yield Finding(module.path, node.lineno, RULE, unit, explain_cycle([own[0], own[0]]), True)
