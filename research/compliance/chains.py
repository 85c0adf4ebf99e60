"""Rule 9: at most two steps from a name to what is read, and callables of a known type."""

import ast
from collections.abc import Iterator

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.dotted import list_module_names
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 9
MAX_STEPS = 2
OWN = {"self", "cls"}


def check(tree: Tree) -> RuleResult:
    """Return the chains of attributes and subscripts that reach too far."""
    findings, units = list[Finding](), 0
    for module in tree.modules:
        modules = list_module_names(module)
        for node in iter_chains(module):
            units += 1
            if (steps := count_steps(node, modules)) > MAX_STEPS:
                unit, text = f"{module.name}:{node.lineno}:{node.col_offset}", ast.unparse(node)[:60]
                message = f"{text} takes {steps} steps; give what is read there a name, or a method"
                findings.append(Finding(module.path, node.lineno, RULE, unit, message))
    return RuleResult(RULE, units, findings)


def iter_chains(module: Module) -> Iterator[ast.Attribute | ast.Subscript]:
    """Yield the outermost attributes and subscripts of a module. Annotations are types, and no chains."""
    inner, skipped = set[int](), set[int]()
    for node in module.nodes:
        if isinstance(node, ast.Attribute | ast.Subscript):
            inner.add(id(node.value))
        annotations = [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
        annotations += [node.returns] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        skipped |= {id(child) for annotation in annotations if annotation is not None for child in walk(annotation)}
    for node in module.nodes:
        if isinstance(node, ast.Attribute | ast.Subscript) and id(node) not in inner | skipped:
            yield node


def count_steps(node: ast.expr, modules: set[str]) -> int:
    """Return how many steps a chain takes from its first object. Names of modules, self and cls are no steps."""
    names = list[str]()
    while isinstance(node, ast.Attribute | ast.Subscript):
        names.append(node.attr if isinstance(node, ast.Attribute) else "[]")
        node = node.value
    names.reverse()
    if not isinstance(node, ast.Name):
        return len(names)
    if node.id in OWN:
        return len(names) - 1
    dotted = node.id
    while names and dotted in modules:
        dotted = f"{dotted}.{names.pop(0)}"
    return len(names)
