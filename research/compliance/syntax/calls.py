"""Who calls whom, over all files of a tree: as far as names, imports and annotations say it.

A function that is handed on counts as called: `map(f, ...)` calls f, `g = f` and `partial(f)` too. What cannot be resolved, as
a method of an object of an unknown class, has no edge; so recursion that only run time knows is not found.
"""

import ast
from collections.abc import Iterator

from research.compliance.syntax.components import find_cycles
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import Function, get_last_name, is_none
from research.compliance.syntax.names import Class, list_bound, read_imports, read_names, to_key
from research.compliance.syntax.tree import Tree
from research.compliance.syntax.unread import list_unread, uses, walk_calls

MAX_HOPS = 8  # from a name to what it means, over imports and aliases
MAX_BASES = 50  # of a class that are looked at
CONTAINERS = {
    "list", "tuple", "set", "frozenset", "dict", "deque", "List", "Tuple", "Set", "Dict", "Sequence", "Iterable", "Iterator",
    "Collection", "Mapping", "MutableSequence", "MutableMapping", "defaultdict", "OrderedDict",
}  # fmt: skip


class CallGraph:
    """The functions of a tree as edges from each to those that it calls."""

    @contract
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.names = {module.name: read_names(module) for module in tree.modules}
        functions = {module: names.functions.items() for module, names in self.names.items()}
        self.functions = {f"{module}.{key}": function for module, pairs in functions.items() for key, function in pairs}
        self.walked = {unit: [*walk_calls(function.node)] for unit, function in self.functions.items()}
        self.bound = {unit: list_bound(function.node) for unit, function in self.functions.items()}
        self.imports = {unit: read_imports(f.module, self.walked[unit]) for unit, f in self.functions.items()}
        self.types = {unit: self.read_types(function) for unit, function in self.functions.items()}
        self.edges = {unit: sorted(self.find_callees(unit, function)) for unit, function in self.functions.items()}

    def get_functions(self, module: str) -> dict[str, Function]:
        """Return the functions of a module, by their names in it."""
        return self.names[module].functions

    def find_callees(self, unit: str, function: Function) -> set[str]:
        """Return the units of the functions that a function calls or hands on."""
        types, callees, walked = self.types[unit], set[str](), self.walked[unit]
        owners = {id(node.value) for node in walked if isinstance(node, ast.Attribute) and node.attr != "__call__"}
        unread = self.list_all_unread(function, walked, types)
        for node in walked:
            if not isinstance(node, ast.Name | ast.Attribute) or id(node) in unread:
                continue
            units = self.resolve(function, node, types)
            if isinstance(node.ctx, ast.Load):
                # `f.cache_clear` and `f.__annotations__` read f and do not call it; a property is called wherever it is read.
                callees |= {unit for unit in units if id(node) not in owners or self.functions[unit].is_property}
            elif isinstance(node, ast.Attribute):
                callees |= {f"{unit}.setter" for unit in units}
        callees |= {callee for node in walked for callee in self.find_hidden(unit, node)}
        return {callee for callee in callees if callee in self.functions}

    def find_hidden(self, unit: str, node: ast.AST) -> set[str]:
        """Return what a node calls by other means than a name: `TABLE[x](...)`, `getattr(x, "name")`, an object's __call__."""
        function, types = self.functions[unit], self.types[unit]
        names = self.names[function.module.name]
        if isinstance(node, ast.Subscript | ast.Attribute | ast.For | ast.Call):
            owner = node.iter if isinstance(node, ast.For) else node.func if isinstance(node, ast.Call) else node.value
            if isinstance(owner, ast.Name) and owner.id in names.tables and owner.id not in self.bound[unit]:
                return {part for name in names.tables[owner.id] for part in self.look_up(function.module.name, name)}
        if not isinstance(node, ast.Call):
            return set()
        if isinstance(node.func, ast.Name) and (kind := types.get(node.func.id)):
            return self.find_method(kind, "__call__")
        name = node.args[1] if get_last_name(node) == "getattr" and len(node.args) > 1 else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return self.resolve(function, ast.Attribute(node.args[0], name.value, ast.Load()), types)
        return set()

    def list_all_unread(self, function: Function, walked: list[ast.AST], types: dict[str, Class]) -> set[int]:
        """Return the identities of the nodes of a function that name a function without calling it or handing it on."""
        calls = [node for node in walked if isinstance(node, ast.Call) and node.args]
        inspected = [id(node) for call in calls for node in self.list_inspected(function, call, types)]
        return {*inspected, *(id(node) for parent in walked for node in list_unread(parent))}

    def list_inspected(self, function: Function, call: ast.Call, types: dict[str, Class]) -> Iterator[ast.expr]:
        """Yield the functions among the arguments of a call that what is called, a function of the tree, does not call."""
        named = [node for node in call.args if isinstance(node, ast.Name | ast.Attribute)]
        handed = [node for node in named if self.resolve(function, node, types)]
        if not handed or not isinstance(call.func, ast.Name | ast.Attribute):
            return
        for unit in self.resolve(function, call.func, types):
            callee = self.functions[unit]
            args = callee.node.args
            pairs = [*zip(call.args, callee.parameters[: len(args.args)], strict=False)]
            yield from (node for node, parameter in pairs if node in handed and not uses(callee.node, parameter.arg))

    @contract
    def resolve_call(self, unit: str, call: ast.Call) -> set[str]:
        """Return the units that a call in a function means."""
        name = call.func if isinstance(call.func, ast.Name | ast.Attribute) else None
        return self.resolve(self.functions[unit], name, self.types[unit]) if name else set()

    @contract
    def list_scopes(self, function: Function) -> Iterator[Function]:
        """Yield a function and then those around it."""
        functions, parts = self.get_functions(function.module.name), function.name.split(".")
        yield function
        for depth in range(len(parts) - 1, 0, -1):
            outer = functions.get(".".join(parts[:depth]))
            if outer is not None:
                yield outer

    def read_types(self, function: Function) -> dict[str, Class]:
        """Return the classes of the tree that the variables of a function are of: by annotation, constructor or loop."""
        types = dict[str, Class]()
        for scope in reversed([*self.list_scopes(function)]):  # a function sees what is around it
            types |= self.read_parameter_types(scope)
            for node in self.walked[f"{scope.module.name}.{to_key(scope)}"]:
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                    target, kind = node.targets[0], self.find_class(scope.module.name, node.value.func)
                elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                    target, kind = node.target, self.find_item_type(scope, node.iter, types)
                else:
                    continue
                if isinstance(target, ast.Name) and kind is not None:
                    types[target.id] = kind
        return types

    def read_parameter_types(self, function: Function) -> dict[str, Class]:
        """Return the classes of the tree that the parameters of a function are of; self and cls are of its own class."""
        annotated = [(arg.arg, arg.annotation) for arg in function.parameters if arg.annotation]
        pairs = [(name, self.find_class(function.module.name, annotation)) for name, annotation in annotated]
        types = {name: kind for name, kind in pairs if kind is not None}
        args = function.node.args
        named = [*args.posonlyargs, *args.args]
        if named and "staticmethod" not in function.decorators and (owner := self.get_owner(function)):
            types[named[0].arg] = owner
        return types

    def find_item_type(self, function: Function, node: ast.expr, types: dict[str, Class]) -> Class | None:
        """Return the class of what a loop over `names`, or over `x.names`, yields, as an annotation says; None if unknown."""
        module, annotation = function.module.name, None
        if isinstance(node, ast.Name):
            annotation = {arg.arg: arg.annotation for arg in function.parameters}.get(node.id)
        elif isinstance(node, ast.Attribute) and (owner := self.find_type(module, node.value, types)):
            module, annotation = owner.module, owner.attributes.get(node.attr)
        if not isinstance(annotation, ast.Subscript) or ast.unparse(annotation.value).split(".")[-1] not in CONTAINERS:
            return None
        item = annotation.slice
        return self.find_class(module, item.elts[0] if isinstance(item, ast.Tuple) and item.elts else item)

    def find_type(self, module: str, node: ast.expr, types: dict[str, Class]) -> Class | None:
        """Return the class of the tree of an object: `x`, `X()`, `type(x)`, `x.__class__`, `x.part`; None if unknown."""
        parts = list[str]()
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type" and len(node.args) == 1:
            node = node.args[0]
        if isinstance(node, ast.Call):
            kind = self.find_class(module, node.func)
        else:
            kind = types.get(node.id) if isinstance(node, ast.Name) else None
        for part in reversed(parts):
            if kind is not None and part != "__class__":
                kind = self.find_class(kind.module, kind.attributes[part]) if part in kind.attributes else None
        return kind

    @contract
    def resolve(self, function: Function, node: ast.Name | ast.Attribute, types: dict[str, Class]) -> set[str]:
        """Return the units that a name in a function means: a function, or the constructor of a class."""
        module = function.module.name
        if isinstance(node, ast.Name):
            return self.resolve_name(function, node.id)
        value = node.value
        is_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
        if is_super:
            own = next(filter(None, map(self.get_owner, self.list_scopes(function))), None)
            return self.find_method(own, node.attr, skip_own=True) if own else set()
        if kind := self.find_type(module, value, types) or self.find_class(module, value):
            return self.find_method(kind, node.attr)
        dotted = self.to_dotted(module, node)
        return self.look_up_dotted(dotted) if dotted else set()

    @contract
    def resolve_name(self, function: Function, name: str) -> set[str]:
        """Return the units that a plain name in a function means; none for one that the function binds itself."""
        if inner := self.find_nested(function, name):
            return {inner}
        for scope in self.list_scopes(function):
            key = f"{scope.module.name}.{to_key(scope)}"
            if name in self.imports[key]:
                return self.look_up_dotted(self.imports[key][name])
            if name in self.bound[key]:
                return set()
        return self.look_up(function.module.name, name)

    @contract
    def get_owner(self, function: Function) -> Class | None:
        """Return the class that a method is of; None for a function."""
        classes = self.names[function.module.name].classes
        return classes.get(function.name.rpartition(".")[0]) if function.owner is not None else None

    def find_nested(self, function: Function, name: str) -> str:
        """Return the unit of a function of that name inside this one or those around it; empty where there is none."""
        functions = self.get_functions(function.module.name)
        for scope in self.list_scopes(function):
            inner = functions.get(f"{scope.name}.{name}")  # a class around them is no scope of names
            if inner is not None:
                return inner.unit
        return ""

    @contract
    def look_up(self, module: str, name: str, hops: int = MAX_HOPS) -> set[str]:
        """Return the units that a name at the top of a module means."""
        names = self.names.get(module)
        for _ in range(hops):
            if names is None:
                return set()
            if function := names.functions.get(name):
                return {function.unit}
            if name in names.classes:
                return self.find_method(names.classes[name], "__init__")
            if names.aliases.get(name, name) not in ("", name):
                name = names.aliases[name]
                continue
            module, _, name = names.imports.get(name, "").rpartition(".")
            names = self.names.get(module)
        return set()

    @contract
    def look_up_dotted(self, dotted: str) -> set[str]:
        """Return the units that a dotted name of the tree means."""
        module, _, name = dotted.rpartition(".")
        return self.look_up(module, name)

    @contract
    def find_class(self, module: str, node: ast.expr) -> Class | None:
        """Return the class of the tree that an expression names: by name, as a text, or as `X | None`; None for none."""
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] == "Optional":
            node = node.slice
        if isinstance(node, ast.BinOp):
            sides = [side for side in (node.left, node.right) if not is_none(side)]
            node = sides[0] if len(sides) == 1 else node
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.find_class_by_name(module, node.value.removesuffix("| None").strip())
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

    @contract
    def find_method(self, owner: Class, name: str, skip_own: bool = False) -> set[str]:
        """Return the unit of a method of a class, or of the first of its bases that has it."""
        for kind in self.iter_bases(owner):
            functions, alias = self.get_functions(kind.module), kind.attributes.get(name)
            method = functions.get(f"{kind.name}.{name}")
            if method is None and isinstance(alias, ast.Name):  # `go = run`
                method = functions.get(f"{kind.name}.{alias.id}")
            if method is not None and not (skip_own and kind == owner):
                return {method.unit}
        return set()

    @contract
    def iter_bases(self, owner: Class) -> Iterator[Class]:
        """Yield a class and its bases in the tree, the nearest first."""
        left, seen = [owner], list[Class]()
        while left and len(seen) < MAX_BASES:
            current = left.pop(0)
            seen.append(current)
            yield current
            bases = filter(None, (self.find_class(current.module, base) for base in current.bases))
            left += [base for base in bases if base not in seen]

    @contract
    def to_dotted(self, module: str, node: ast.expr) -> str:
        """Return the dotted name in the tree of `module.name`, as its imports say; empty where it is not one."""
        parts = list[str]()
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        names = self.names[module]
        if not isinstance(node, ast.Name) or node.id not in names.imports:
            return ""
        return ".".join([names.imports[node.id], *reversed(parts)])

    def find_cycles(self) -> list[list[str]]:
        """Return the groups of functions that reach themselves."""
        return find_cycles(self.edges)
