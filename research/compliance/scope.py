"""Rule 6: the smallest scope. No global, no nonlocal, no mutable default, no variable of a module that changes."""

import ast
from collections.abc import Iterator

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.functions import get_last_name, list_functions
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 6
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter", "OrderedDict"}
MUTATORS = {"append", "extend", "add", "update", "insert", "setdefault", "pop", "popitem", "remove", "discard", "clear"}
LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def check(tree: Tree) -> RuleResult:
    """Return the functions and the bindings of modules whose state is wider than it needs to be."""
    findings, units = list[Finding](), 0
    for module in tree.modules:
        functions = list_functions(module)
        bindings = list_bindings(module)
        changed = find_changed(module, set(bindings))
        units += len(functions) + len(bindings)
        for function in functions:
            for line, message in find_wide(function.node):
                findings.append(Finding(module.path, line, RULE, function.unit, message))
        for name, (line, is_constant) in bindings.items():
            unit = f"{module.name}.{name}"
            if name in changed:
                message = f"{name} is changed after the import, line {changed[name]}; pass it on, or keep it in an object"
                findings.append(Finding(module.path, line, RULE, unit, message))
            elif not is_constant:
                message = f"{name} is a container that anybody may change; make it a constant in capitals, or a tuple"
                findings.append(Finding(module.path, line, RULE, unit, message))
    return RuleResult(RULE, units, findings, len({(f.path, f.unit) for f in findings}))


def find_wide(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
    """Yield the lines of a function that reach out of it, each with what is wrong."""
    for child in walk(node):
        if isinstance(child, ast.Global | ast.Nonlocal):
            word = "global" if isinstance(child, ast.Global) else "nonlocal"
            yield child.lineno, f"{word} {', '.join(child.names)}; return the value, or keep it in an object"
    for default in (*node.args.defaults, *node.args.kw_defaults):
        if default is not None and is_mutable(default):
            yield default.lineno, f"the default {ast.unparse(default)[:40]} is one object for all calls; give None or a tuple"


def is_mutable(node: ast.expr) -> bool:
    """Return whether an expression makes a container that can change."""
    return isinstance(node, LITERALS) or (isinstance(node, ast.Call) and get_last_name(node) in MUTABLE_CALLS)


def list_bindings(module: Module) -> dict[str, tuple[int, bool]]:
    """Return the names that a module binds to mutable containers: their line, and whether the name is a constant's."""
    bindings = dict[str, tuple[int, bool]]()
    for statement in module.syntax.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None and is_mutable(value):
                is_constant = target.id.lstrip("_").isupper() or target.id.startswith("__")
                bindings[target.id] = target.lineno, is_constant
    return bindings


def find_changed(module: Module, names: set[str]) -> dict[str, int]:
    """Return the names of a module that one of its functions changes, with the line."""
    changed = dict[str, int]()
    for function in list_functions(module):
        own = {argument.arg for argument in walk(function.node.args) if isinstance(argument, ast.arg)}
        own |= {n.id for n in walk(function.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in walk(function.node):
            name = get_changed(node)
            if name in names and name not in own:
                changed.setdefault(name, function.node.lineno)
    return changed


def get_changed(node: ast.AST) -> str:
    """Return the name of the container that a node changes; empty where it changes none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        node = node.func.value
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        node = node.value
    else:
        return ""
    return node.id if isinstance(node, ast.Name) else ""
