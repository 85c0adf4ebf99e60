"""Stand-ins for rules that are written elsewhere: enough to try what is around the rules."""

import ast
from dataclasses import dataclass

from research.compliance.findings import Finding, RuleResult
from research.compliance.functions import Function, list_functions, walk_own
from research.compliance.tree import Tree


@dataclass(frozen=True)
class StandIn:
    """A rule whose unit is the function: it refuses `while True` as rule 2, eval as rule 8, `global` as rule 6."""

    rule: int

    def check(self, tree: Tree, *others: object) -> RuleResult:
        """Return what the rule says of a tree."""
        functions = [function for module in tree.modules for function in list_functions(module)]
        return RuleResult(self.rule, len(functions), [f for function in functions for f in self.find(function)])

    def find(self, function: Function) -> list[Finding]:
        """Return the findings of a function."""
        message = {2: "no bound: while True; count", 6: "global; hand it on", 8: "eval; write the code"}.get(self.rule, "")
        nodes = [node for node in walk_own(function.node) if is_wrong(self.rule, node)]
        lines = [node.lineno for node in nodes if isinstance(node, ast.stmt | ast.expr)]
        return [Finding(function.module.path, line, self.rule, function.unit, message, self.rule != 6) for line in lines]


def is_wrong(rule: int, node: ast.AST) -> bool:
    """Return whether a node is what a rule refuses."""
    if rule == 2:
        return isinstance(node, ast.While) and isinstance(node.test, ast.Constant)
    if rule == 6:
        return isinstance(node, ast.Global)
    return rule == 8 and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "eval"


flow, loops, growth, length, checks, scope, results, dynamic, chains, analysers = (StandIn(rule) for rule in range(1, 11))
