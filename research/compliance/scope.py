"""Rule 6: the smallest scope. No global, no nonlocal, no mutable default, no variable of a module or class that changes."""

import ast
from collections.abc import Iterator

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import get_last_name, list_functions
from research.compliance.syntax.names import read_imports
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 6
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter", "OrderedDict"}
MUTATORS = {"append", "extend", "add", "update", "insert", "setdefault", "pop", "popitem", "remove", "discard", "clear"}
LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


@contract
def check(tree: Tree) -> RuleResult:
    """Return the functions and the bindings of modules and classes whose state is wider than it needs to be."""
    findings, units = list[Finding](), 0
    changed = find_all_changed(tree)
    for module in tree.modules:
        functions = list_functions(module)
        bindings = list_bindings(module)
        units += len(functions) + len(bindings)
        for function in functions:
            for line, message in find_wide(function.node):
                findings.append(Finding(module.path, line, RULE, function.unit, message))
        for name, (line, is_constant) in bindings.items():
            unit = f"{module.name}.{name}"
            if unit in changed:
                message = f"{name} is changed after the import, {changed[unit]}; pass it on, or keep it in an object"
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
    """Return the names that a module or a class binds to mutable containers: the line, and whether it is a constant's name."""
    bindings, left = dict[str, tuple[int, bool]](), [("", statement) for statement in module.syntax.body]
    while left:
        prefix, statement = left.pop()
        if isinstance(statement, ast.ClassDef):
            left += [(f"{prefix}{statement.name}.", child) for child in statement.body]
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None and is_mutable(value):
                is_constant = target.id.lstrip("_").isupper() or target.id.startswith("__")
                bindings[f"{prefix}{target.id}"] = target.lineno, is_constant
    return bindings


def find_all_changed(tree: Tree) -> dict[str, str]:
    """Return the bindings of a tree that a function changes, in their own file or another, each with where."""
    names = {module.name: list_bindings(module) for module in tree.modules}
    bindings = {f"{module}.{name}" for module, own in names.items() for name in own}
    changed = dict[str, str]()
    for module in tree.modules:
        imports = read_imports(module, module.nodes)
        for function in list_functions(module):
            owner = function.name.rpartition(".")[0] if function.owner is not None else ""
            own = {argument.arg for argument in walk(function.node.args) if isinstance(argument, ast.arg)}
            own |= {n.id for n in walk(function.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            for node in walk(function.node):
                first, _, rest = get_changed(node).partition(".")
                if first in ("self", "cls") and first in own:
                    unit = f"{module.name}.{owner}.{rest}"
                elif first in own:
                    continue
                else:
                    unit = f"{imports.get(first, f'{module.name}.{first}')}.{rest}".rstrip(".")
                if unit in bindings:
                    changed.setdefault(unit, f"line {function.node.lineno} of {module.path}")
    return changed


def get_changed(node: ast.AST) -> str:
    """Return the name of the container that a node changes, as `a` or `a.b`; empty where it changes none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        node = node.func.value
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        node = node.value
    else:
        return ""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
