"""Rule 2, loops with a bound: something finite to loop over, a counter that each round steps, or a deadline.

A `while` has to test a name that each way through its body steps, or a container that each round takes from, or a clock; so has
the way out of a `while True` and of a `for` over an iterator without end. What only a called function does is not seen.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.bounds import Judge
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.endless import COMPREHENSIONS, Endless, find_assigned, find_generators, is_same_for_ever
from research.compliance.syntax.folding import get_truth
from research.compliance.syntax.functions import Function, get_last_name, walk_top
from research.compliance.syntax.paths import Loop
from research.compliance.syntax.tree import Module, Tree

RULE = 2
COMPREHENSION = "a comprehension over what may never end; take islice of it, or zip it with what ends"
ENDLESS_FOR = "it loops over what may never end; take islice of it, or leave by a count or a deadline on each way"
WHILE_TRUE = "`while True` without a counted or timed way out of each round; count the rounds, or set a deadline"
WHILE = "its test has no counter that each round steps, nothing that it takes from, no deadline; count the rounds"


@dataclass
class Scope:
    """A function, or the top of a module or class, with the loops of its own."""

    module: Module
    function: Function | None
    nodes: list[ast.AST]
    endless: Endless
    values: dict[str, ast.expr]  # of the names that the function or the module sets once

    @contract
    def report(self, node: ast.AST, message: str, is_critical: bool) -> Finding:
        """Return a finding about a loop."""
        line = getattr(node, "lineno", 1)
        unit = self.function.unit if self.function else self.module.name
        return Finding(self.module.path, line, RULE, f"{unit}:{line}", message, is_critical)


@contract
def check(tree: Tree, graph: CallGraph) -> RuleResult:
    """Return the loops without a bound, and the comprehensions over what never ends."""
    units, findings = 0, list[Finding]()
    for scope in iter_scopes(tree, graph):
        loops = [node for node in scope.nodes if isinstance(node, Loop)]
        findings += filter(None, (judge_loop(scope, loop) for loop in loops))
        endless = [*find_comprehensions(scope)]
        findings += endless
        units += len(loops) + len(endless)
    return RuleResult(RULE, units, sorted(findings))


def iter_scopes(tree: Tree, graph: CallGraph) -> Iterator[Scope]:
    """Yield the functions of a tree, and the tops of its modules."""
    generators = find_generators(graph)
    for module in tree.modules:
        top = [*walk_top(module.syntax)]
        names = find_assigned(top)
        yield Scope(module, None, top, Endless(graph, module.name, None, names, generators), names)
        for key, function in graph.get_functions(module.name).items():
            nodes = graph.walked[f"{module.name}.{key}"]
            own = find_assigned(nodes)
            yield Scope(module, function, nodes, Endless(graph, module.name, function, own, generators), names | own)


def find_comprehensions(scope: Scope) -> Iterator[Finding]:
    """Yield a finding for each comprehension over what never ends, but where zip, islice or takewhile end it."""
    ended = {id(argument) for node in scope.nodes if isinstance(node, ast.Call)
             and get_last_name(node) in ("zip", "islice", "takewhile") for argument in node.args}  # fmt: skip
    for node in scope.nodes:
        if isinstance(node, COMPREHENSIONS) and id(node) not in ended:
            endless = [part.iter for part in node.generators if scope.endless.never_ends(part.iter)]
            if endless:
                yield scope.report(node, COMPREHENSION, any(map(is_same_for_ever, endless)))


def judge_loop(scope: Scope, loop: Loop) -> Finding | None:
    """Return a finding about a loop without a bound; None for one that has one."""
    judge = Judge(loop, scope.values)
    if isinstance(loop, ast.While):
        is_endless = bool(get_truth(loop.test))
        return None if judge.is_bounded() else scope.report(loop, WHILE_TRUE if is_endless else WHILE, is_endless)
    is_growing = isinstance(loop.iter, ast.Name | ast.Attribute) and judge.grows(loop.iter)
    if not is_growing and (not scope.endless.never_ends(loop.iter) or judge.is_bounded()):
        return None
    return scope.report(loop, ENDLESS_FOR, is_growing or is_same_for_ever(loop.iter))
