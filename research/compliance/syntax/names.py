"""What the names of a module mean: its functions, its classes with the types of their attributes, its imports and aliases."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import PROPERTIES, Function, FunctionNode, list_functions
from research.compliance.syntax.tree import Module, find_home, list_children, walk

WRITERS = PROPERTIES - {"property", "cached_property", "getter"}  # the second functions of a property's name


@dataclass(frozen=True)
class Class:
    """A class of the tree."""

    module: str
    name: str  # dotted, within its module
    bases: tuple[ast.expr, ...]
    attributes: dict[str, ast.expr] = field(default_factory=dict, compare=False)  # name -> annotation, or the class called
    decorators: list[ast.expr] = field(default_factory=list, compare=False)


@dataclass
class Names:
    """What the names of a module mean."""

    functions: dict[str, Function] = field(default_factory=dict)  # by their dotted name in the module
    classes: dict[str, Class] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # name here -> dotted name in the tree
    aliases: dict[str, str] = field(default_factory=dict)  # name = another name, at the top
    tables: dict[str, set[str]] = field(default_factory=dict)  # the names in a dict, a list or a lambda at the top


@contract
def read_names(module: Module) -> Names:
    """Return what the names of a module mean. Imports inside functions count as at the top."""
    names = Names(index_functions(module))
    left: list[tuple[str, ast.AST]] = [("", module.syntax)]
    while left:
        prefix, parent = left.pop()
        for node in list_children(parent):
            inner = prefix
            if isinstance(node, ast.ClassDef):
                name = f"{prefix}{node.name}"
                names.classes[name] = Class(module.name, name, tuple(node.bases), read_attributes(node), node.decorator_list)
            if isinstance(node, ast.ClassDef | FunctionNode):
                inner = f"{prefix}{node.name}."
            if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
                left.append((inner, node))
    names.imports = read_imports(module, module.nodes)
    for statement in module.syntax.body:
        if isinstance(statement, ast.Assign):
            targets = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            names.aliases |= dict.fromkeys(targets, read_alias(statement.value))
            if isinstance(statement.value, ast.Dict | ast.List | ast.Tuple | ast.Lambda):
                parts = [node.id for node in walk(statement.value) if isinstance(node, ast.Name)]
                names.tables |= {target: {*parts} for target in targets}
    return names


def index_functions(module: Module) -> dict[str, Function]:
    """Return the functions of a module by their keys; of several with one name the last, the others with their line."""
    functions = dict[str, Function]()
    for function in list_functions(module):
        key = to_key(function)
        if earlier := functions.get(key):
            functions[f"{key}:{earlier.node.lineno}"] = earlier
        functions[key] = function
    return functions


@contract
def to_key(function: Function) -> str:
    """Return the name a function is kept under: its own, with .setter for the one that writes a property."""
    return f"{function.name}.setter" if WRITERS & {*function.decorators} else function.name


def read_alias(value: ast.expr) -> str:
    """Return the name that a value is another word for: of `f`, and of `partial(f, ...)`; empty for others."""
    is_partial = isinstance(value, ast.Call) and ast.unparse(value.func).endswith("partial") and value.args
    value = value.args[0] if isinstance(value, ast.Call) and is_partial else value
    return value.id if isinstance(value, ast.Name) else ""


@contract
def read_imports(module: Module, nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Return the dotted names in the tree that the imports among some nodes bind, by the names they bind."""
    imports = dict[str, str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                imports[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            home = find_home(module, node)
            imports |= {alias.asname or alias.name: f"{home}.{alias.name}" for alias in node.names}
    return imports


def read_attributes(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Return the annotations of a class's attributes, or the class that its constructor calls for them, by name."""
    annotated = dict[str, ast.expr]()
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotated[statement.target.id] = statement.annotation
        elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
            annotated |= {target.id: statement.value for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, FunctionNode) and statement.name == "__init__":
            annotated |= read_constructor(statement)
    return annotated


def read_constructor(node: FunctionNode) -> dict[str, ast.expr]:
    """Return what a constructor says of the types of attributes: `self.x: X`, `self.x = X()`, `self.x = x`."""
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = {arg.arg: arg.annotation for arg in args if arg.annotation is not None}
    annotated = dict[str, ast.expr]()
    for child in walk(node):
        if not isinstance(child, ast.Assign | ast.AnnAssign):
            continue
        target = child.target if isinstance(child, ast.AnnAssign) else child.targets[0]
        if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
            continue
        if isinstance(child, ast.AnnAssign):
            annotated[target.attr] = child.annotation
        elif isinstance(child.value, ast.Call):
            annotated.setdefault(target.attr, child.value.func)
        elif isinstance(child.value, ast.Name) and child.value.id in annotations:
            annotated.setdefault(target.attr, annotations[child.value.id])
    return annotated


@lru_cache(maxsize=32768)  # of functions: several rules look at each
@contract
def list_bound(node: FunctionNode) -> frozenset[str]:
    """Return the names that a function binds itself: parameters, also those of its lambdas, and what it assigns."""
    bound, unbound, left = set[str](), set[str](), list[ast.AST]([*node.body, node.args])
    while left:
        child = left.pop()
        if isinstance(child, ast.arg):
            bound.add(child.arg)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            bound.add(child.id)
        elif isinstance(child, ast.Global | ast.Nonlocal):
            unbound.update(child.names)
        elif isinstance(child, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and child.name:
            bound.add(child.name)
        if not isinstance(child, FunctionNode | ast.ClassDef):
            left += list_children(child)
    return frozenset(bound - unbound)
