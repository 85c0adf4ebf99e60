"""Who calls whom, over all files of a tree: as far as names, imports and annotations say it.

A function that is handed on counts as called: `map(f, ...)` calls f. What cannot be resolved, as a method of an object of an
unknown class, has no edge; so recursion that only run time knows is not found.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from research.compliance.functions import Function, list_functions, walk_own
from research.compliance.tree import Module, Tree

MAX_HOPS = 8  # from a name to what it means, over imports and aliases
MAX_BASES = 50  # of a class that are looked at


@dataclass(frozen=True)
class Class:
    """A class of the tree."""

    module: str
    name: str  # dotted, within its module
    bases: tuple[ast.expr, ...]


@dataclass
class Names:
    """What the names of a module mean."""

    functions: dict[str, Function] = field(default_factory=dict)  # by their dotted name in the module
    classes: dict[str, Class] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # name here -> dotted name in the tree
    aliases: dict[str, str] = field(default_factory=dict)  # name = another name, at the top


class CallGraph:
    """The functions of a tree as edges from each to those that it calls."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.names = {module.name: read_names(module) for module in tree.modules}
        self.functions = {f.unit: f for names in self.names.values() for f in names.functions.values()}
        self.edges = {unit: sorted(self.find_callees(function)) for unit, function in self.functions.items()}

    def find_callees(self, function: Function) -> set[str]:
        """Return the units of the functions that a function calls or hands on."""
        types, callees = self.read_types(function), set[str]()
        nodes = [node for node in walk_own(function.node) if isinstance(node, ast.Name | ast.Attribute)]
        owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            if isinstance(node.ctx, ast.Load):
                units = self.resolve(function, node, types)
                # `f.cache_clear` and `f.__annotations__` read f and do not call it; a property is called wherever it is read.
                callees |= {unit for unit in units if id(node) not in owners or self.functions[unit].is_property}
        return callees

    def read_types(self, function: Function) -> dict[str, Class]:
        """Return the classes of the tree that parameters and variables of a function are of, by annotation or constructor."""
        types = dict[str, Class]()
        module = function.module.name
        for argument in function.parameters:
            if argument.annotation is not None and (found := self.find_class(module, argument.annotation)):
                types[argument.arg] = found
        for node in walk_own(function.node):
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
                continue
            if isinstance(name := node.targets[0], ast.Name) and (found := self.find_class(module, node.value.func)):
                types[name.id] = found
        if (owner := self.get_owner(function)) and function.node.args.args:
            types[function.node.args.args[0].arg] = owner
        return types

    def resolve(self, function: Function, node: ast.Name | ast.Attribute, types: dict[str, Class]) -> set[str]:
        """Return the units that a name in a function means: a function, or the constructor of a class."""
        module = function.module.name
        if isinstance(node, ast.Name):
            inner = self.find_nested(function, node.id)
            return {inner} if inner else self.look_up(module, node.id)
        value = node.value
        is_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
        if is_super and (own := self.get_owner(function)):
            return self.find_method(own, node.attr, skip_own=True)
        if isinstance(value, ast.Name) and value.id in types:
            return self.find_method(types[value.id], node.attr)
        if owner := self.find_class(module, value):
            return self.find_method(owner, node.attr)
        if dotted := self.to_dotted(module, node):
            return self.look_up_dotted(dotted)
        return set()

    def get_owner(self, function: Function) -> Class | None:
        """Return the class that a method is of; None for a function."""
        classes = self.names[function.module.name].classes
        return classes.get(function.name.rpartition(".")[0]) if function.owner is not None else None

    def find_nested(self, function: Function, name: str) -> str:
        """Return the unit of a function of that name inside this one or those around it; empty where there is none."""
        functions, parts = self.names[function.module.name].functions, function.name.split(".")
        for depth in range(len(parts), 0, -1):
            inner = functions.get(".".join([*parts[:depth], name]))
            outer = functions.get(".".join(parts[:depth]))
            if inner is not None and outer is not None:  # a class around them is no scope of names
                return inner.unit
        return ""

    def look_up(self, module: str, name: str, hops: int = MAX_HOPS) -> set[str]:
        """Return the units that a name at the top of a module means."""
        names = self.names.get(module)
        for _ in range(hops):
            if names is None:
                return set()
            if name in names.functions:
                return {names.functions[name].unit}
            if name in names.classes:
                return self.find_method(names.classes[name], "__init__")
            if names.aliases.get(name, name) != name:
                name = names.aliases[name]
                continue
            module, _, name = names.imports.get(name, "").rpartition(".")
            names = self.names.get(module)
        return set()

    def look_up_dotted(self, dotted: str) -> set[str]:
        """Return the units that a dotted name of the tree means."""
        module, _, name = dotted.rpartition(".")
        return self.look_up(module, name)

    def find_class(self, module: str, node: ast.expr) -> Class | None:
        """Return the class of the tree that an expression names: by name, as a text, or as `X | None`; None for none."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.find_class_by_name(module, node.value)
        if isinstance(node, ast.BinOp):
            sides = [side for side in (node.left, node.right) if not isinstance(side, ast.Constant)]
            return self.find_class(module, sides[0]) if len(sides) == 1 and not isinstance(sides[0], ast.BinOp) else None
        if isinstance(node, ast.Name):
            return self.find_class_by_name(module, node.id)
        dotted = self.to_dotted(module, node)
        home, _, name = dotted.rpartition(".")
        return self.find_class_by_name(home, name) if home else None

    def find_class_by_name(self, module: str, name: str) -> Class | None:
        """Return the class that a name at the top of a module means; None where it is none of the tree."""
        for _ in range(MAX_HOPS):
            names = self.names.get(module)
            if names is None:
                return None
            if name in names.classes:
                return names.classes[name]
            module, _, name = names.imports.get(name, "").rpartition(".")
        return None

    def find_method(self, owner: Class, name: str, skip_own: bool = False) -> set[str]:
        """Return the unit of a method of a class, or of the first of its bases that has it."""
        left, seen = [owner], list[Class]()
        while left and len(seen) < MAX_BASES:
            current = left.pop(0)
            seen.append(current)
            method = self.names[current.module].functions.get(f"{current.name}.{name}")
            if method is not None and not (skip_own and current == owner):
                return {method.unit}
            bases = filter(None, (self.find_class(current.module, base) for base in current.bases))
            left += [base for base in bases if base not in seen]
        return set()

    def to_dotted(self, module: str, node: ast.expr) -> str:
        """Return the dotted name in the tree of `module.name`, as its imports say; empty where it is not one."""
        parts = list[str]()
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.names[module].imports:
            return ""
        return ".".join([self.names[module].imports[node.id], *reversed(parts)])

    def find_cycles(self) -> list[list[str]]:
        """Return the groups of functions that reach themselves, each in the order of calls."""
        return [group for group in find_components(self.edges) if len(group) > 1 or group[0] in self.edges[group[0]]]


def read_names(module: Module) -> Names:
    """Return what the names of a module mean. Imports inside functions count as at the top."""
    names = Names({function.name: function for function in list_functions(module)})
    left: list[tuple[str, ast.AST]] = [("", module.syntax)]
    while left:
        prefix, parent = left.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                names.classes[f"{prefix}{node.name}"] = Class(module.name, f"{prefix}{node.name}", tuple(node.bases))
            inner = (
                f"{prefix}{node.name}." if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else prefix
            )
            left.append((inner, node))
    for node in ast.walk(module.syntax):
        if isinstance(node, ast.Import):
            names.imports |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                              for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            home = find_home(module, node)
            names.imports |= {alias.asname or alias.name: f"{home}.{alias.name}" for alias in node.names}
    for statement in module.syntax.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
            names.aliases |= {target.id: statement.value.id for target in statement.targets if isinstance(target, ast.Name)}
    return names


def find_home(module: Module, node: ast.ImportFrom) -> str:
    """Return the dotted name of the module that `from ... import` reads."""
    if not node.level:
        return node.module or ""
    is_package = module.path.split("/")[-1] == "__init__.py"
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


def find_components(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph: Tarjan (1972), without recursion."""
    index, low, on_stack = dict[str, int](), dict[str, int](), set[str]()
    stack, components = list[str](), list[list[str]]()
    for root in edges:
        if root in index:
            continue
        work = [(root, 0)]
        while work:
            node, position = work.pop()
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
                on_stack.add(node)
            children = [child for child in edges[node] if child in edges]
            descended = False
            for number in range(position, len(children)):
                child = children[number]
                if child not in index:
                    work += [(node, number), (child, 0)]
                    descended = True
                    break
                if child in on_stack:
                    low[node] = min(low[node], low[child])
            if descended:
                continue
            if low[node] == index[node]:
                start = stack.index(node)
                components.append(stack[start:])
                on_stack.difference_update(stack[start:])
                del stack[start:]
    return components
