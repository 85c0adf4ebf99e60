"""Rule 6: the smallest scope. No global, no nonlocal, no mutable default, no state that a module or a class shares."""

import ast
from collections.abc import Iterator, Mapping
from typing import TypeGuard

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.containers import CONTAINERS, DISPLAYS, GROWERS, SHRINKERS, get_base, get_head, list_targets
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import BLOCKS, Function, FunctionNode, get_last_name, list_functions, walk_own
from research.compliance.syntax.names import list_bound, read_imports
from research.compliance.syntax.tree import Module, Tree, list_children, walk

RULE = 6
MUTATORS = {*GROWERS, *SHRINKERS, "sort", "reverse", "rotate", "__setitem__", "symmetric_difference_update"}
READ_ONLY = {"Mapping", "Sequence", "Collection", "Iterable", "Container", "AbstractSet", "Final", "ClassVar"}
COPIED = {"BaseModel", "BaseSettings", "SQLModel", "Struct", "Protocol"}  # bases that give each object its own default
CLASSES = {"self.__class__", "type(self)", "cls"}  # other words for the class of a method
HOOKS = {"__init_subclass__", "__new__", "__set_name__"}  # they set a class up
Bindings = dict[str, tuple[int, bool]]  # dotted name in the tree -> its line, and whether it is marked as a constant


@contract
def check(tree: Tree) -> RuleResult:
    """Return the functions and the bindings of modules and classes whose state is wider than it needs to be."""
    findings, units = list[Finding](), 0
    bindings = {module.name: list_bindings(module) for module in tree.modules}
    known = {name for names in bindings.values() for name in names}
    changed = dict[str, str]()
    for module in tree.modules:
        functions, imports = list_functions(module), read_imports(module, module.nodes)
        shared = list_shared(module, imports, {*bindings})
        units += len(functions)
        for function in functions:
            for line, message in [*find_wide(function.node), *find_shared(function, shared)]:
                findings.append(Finding(module.path, line, RULE, function.unit, message))
            for name in find_changed(function, imports) & known:
                changed.setdefault(name, f"{module.path}:{function.node.lineno}")
    for module in tree.modules:
        units += len(bindings[module.name])
        for unit, (line, is_constant) in bindings[module.name].items():
            name = unit.rpartition(".")[2]
            if unit in changed:
                message = f"{name} is changed after the import, {changed[unit]}; pass it on, or keep it in an object"
                findings.append(Finding(module.path, line, RULE, unit, message))
            elif not is_constant:
                message = f"{name} is a container that anybody may change; make it a constant in capitals, or a tuple"
                findings.append(Finding(module.path, line, RULE, unit, message))
    return RuleResult(RULE, units, findings, len({(f.path, f.unit) for f in findings}))


def find_wide(node: FunctionNode) -> Iterator[tuple[int, str]]:
    """Yield the lines of a function that reach out of it, each with what is wrong."""
    arguments = [node.args, *(child.args for child in walk_own(node) if isinstance(child, ast.Lambda))]
    for child in walk_own(node):
        if isinstance(child, ast.Global | ast.Nonlocal):
            word = "global" if isinstance(child, ast.Global) else "nonlocal"
            yield child.lineno, f"{word} {', '.join(child.names)}; return the value, or keep it in an object"
    for default in (part for args in arguments for part in (*args.defaults, *args.kw_defaults)):
        if default is not None and is_mutable(default):
            yield default.lineno, f"the default {ast.unparse(default)[:40]} is one object for all calls; give None or a tuple"


def find_shared(function: Function, names: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines where a function sets an attribute of what all share: a class, a function, an object of a module."""
    own = list_bound(function.node)
    for node in walk_own(function.node):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        owner = ast.unparse(node.value)
        is_class = owner in CLASSES and function.owner is not None and function.node.name not in HOOKS
        if is_class or owner in names - own:
            yield node.lineno, f"{owner}.{node.attr} is set for everybody; return the value, or keep it in an object"


def list_shared(module: Module, imports: Mapping[str, str], modules: set[str]) -> set[str]:
    """Return the names of a module that mean one object for all of the tree: what it defines or sets, what it imports of it."""
    names = {name for name, dotted in imports.items() if {dotted, dotted.rpartition(".")[0]} & modules}
    names |= {node.id for part in iter_top(module.syntax.body) for node in list_targets(part) if isinstance(node, ast.Name)}
    return names | {node.name for node in module.syntax.body if isinstance(node, FunctionNode | ast.ClassDef)}


def is_mutable(node: ast.expr) -> bool:
    """Return whether an expression makes a container that can change."""
    return type(node) in DISPLAYS or (isinstance(node, ast.Call) and get_head(node.func) in CONTAINERS)


def iter_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module or class with those in its blocks, as in a `try`; not those of a script alone."""
    left: list[ast.AST] = [*body]
    while left:
        node = left.pop(0)
        if isinstance(node, ast.stmt):
            yield node
        is_script = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        if not is_script and not isinstance(node, FunctionNode | ast.ClassDef):
            left += [child for child in list_children(node) if isinstance(child, BLOCKS)]


def list_bindings(module: Module) -> Bindings:
    """Return the names that a module or one of its classes binds to mutable containers."""
    bindings: Bindings = {}
    left = [(module.name, module.syntax.body)]
    while left:
        prefix, body = left.pop()
        for statement in iter_top(body):
            if isinstance(statement, ast.ClassDef) and not COPIED & {*map(get_last_name, statement.bases)}:
                left.append((f"{prefix}.{statement.name}", statement.body))
            value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
            annotation = statement.annotation if isinstance(statement, ast.AnnAssign) else None
            targets = list_targets(statement) if value is not None and is_mutable(value) else []
            for target in (target for target in targets if isinstance(target, ast.Name)):
                is_constant = target.id.lstrip("_").isupper() or target.id.endswith("_")
                is_constant |= annotation is not None and get_head(annotation) in READ_ONLY
                bindings[f"{prefix}.{target.id}"] = target.lineno, is_constant
    return bindings


def find_changed(function: Function, imports: Mapping[str, str]) -> set[str]:
    """Return the dotted names of what a function changes outside of itself: containers of modules and of classes."""
    own, module = list_bound(function.node), function.module.name
    owner = f"{module}.{function.name.rpartition('.')[0]}" if function.owner is not None else ""
    changed = set[str]()
    for node in walk_own(function.node):
        target = get_changed(node)
        text = ast.unparse(target) if target is not None else ""
        first, _, rest = text.partition(".")
        if function.owner is not None and first in ("self", "cls") and rest:
            changed |= {f"{owner}.{rest}"} - {f"{owner}.{node.attr}" for node in walk(function.owner) if is_set(node, text)}
        elif text and first not in own:
            changed |= {f"{module}.{text}", ".".join(filter(None, [imports.get(first, first), rest]))}
    return changed


@contract
def is_set(node: ast.AST, text: str) -> TypeGuard[ast.Attribute]:
    """Return whether a node sets an attribute that is written so."""
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node) == text


def get_changed(node: ast.AST) -> ast.Name | ast.Attribute | None:
    """Return the container that a node changes, or the one around it: x of `x.append(1)`, `x[1] = 2` and `x[1].pop()`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        base = get_base(node.func.value)
    elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        base = get_base(node)
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
        base = node.target
    else:
        return None
    return base if isinstance(base, ast.Name | ast.Attribute) else None
