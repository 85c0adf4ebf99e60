"""Rule 9: at most two steps from a name to what is read, and callables of a known type."""

import ast
from collections.abc import Iterator

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.contract import contract
from research.compliance.syntax.dotted import list_module_names
from research.compliance.syntax.functions import get_last_name
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 9
MAX_STEPS = 2
OWN = {"self", "cls"}
CHAIN = ast.Attribute | ast.Subscript | ast.Call


@contract
def check(tree: Tree) -> RuleResult:
    """Return the chains of attributes and subscripts that reach too far."""
    findings, units, names = list[Finding](), 0, {module.name for module in tree.modules}
    for module in tree.modules:
        modules = list_module_names(module, names)
        for node in iter_chains(module):
            units += 1
            if (steps := count_steps(node, modules)) > MAX_STEPS:
                unit, text = f"{module.name}:{node.lineno}:{node.col_offset}", ast.unparse(node)[:60]
                message = f"{text} takes {steps} steps; give what is read there a name, or a method"
                findings.append(Finding(module.path, node.lineno, RULE, unit, message))
    return RuleResult(RULE, units, findings)


def iter_chains(module: Module) -> Iterator[ast.Attribute | ast.Subscript | ast.Call]:
    """Yield the outermost attributes and subscripts of a module. Annotations are types, and no chains."""
    inner, skipped = set[int](), set[int]()
    for node in module.nodes:
        if isinstance(node, CHAIN) and (owner := get_owner(node)) is not None:
            inner.add(id(owner))
        annotations = [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
        annotations += [node.returns] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        skipped |= {id(child) for annotation in annotations if annotation is not None for child in walk(annotation)}
    for node in module.nodes:
        if isinstance(node, CHAIN) and id(node) not in inner and id(node) not in skipped and get_owner(node) is not None:
            yield node


@contract
def get_owner(node: ast.expr) -> ast.expr | None:
    """Return x of `x.a`, `x[a]`, `getattr(x, "a")` and `attrgetter("a")(x)`; None for any other expression."""
    if isinstance(node, ast.Attribute | ast.Subscript):
        return node.value
    if not isinstance(node, ast.Call) or not node.args:
        return None
    is_getattr = isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1
    is_getter = isinstance(node.func, ast.Call) and get_last_name(node.func) == "attrgetter" and bool(node.func.args)
    return node.args[0] if is_getattr or is_getter else None


def list_steps(node: ast.expr) -> list[str]:
    """Return the names of the steps that one link of a chain takes: several for `attrgetter("a.b")`."""
    if isinstance(node, ast.Attribute):
        return [node.attr]
    getter = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Call) else None
    name = getter.args[0] if getter is not None else node.args[1] if isinstance(node, ast.Call) else None
    return str(name.value).split(".")[::-1] if isinstance(name, ast.Constant) else ["[]"]


@contract
def count_steps(node: ast.expr, modules: set[str]) -> int:
    """Return how many steps a chain takes from its first object. Names of modules, self and cls are no steps."""
    names = list[str]()
    while (owner := get_owner(node)) is not None:
        names += list_steps(node)
        node = owner
    names.reverse()
    if not isinstance(node, ast.Name):
        return len(names)
    if node.id in OWN:
        return len(names) - 1
    dotted = node.id
    while names and dotted in modules:
        dotted = f"{dotted}.{names.pop(0)}"
    return len(names)
