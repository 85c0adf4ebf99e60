"""What is checked around a function at run time: by a decorator, or by the class of a parameter.

A decorator of a library is known by its import. One of the tree is read: it must put a function around the one that it takes,
which calls that and can raise because of what it was called with. One that returns its argument unchanged checks nothing.
"""

import ast
from collections.abc import Iterator, Mapping

from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import Function, get_last_name, walk_own
from research.compliance.syntax.tree import walk
from research.compliance.syntax.vacuous import explain_vacuous, find_constants

LIBRARIES = {"beartype.beartype", "typeguard.typechecked", "pydantic.validate_call"}
UNCHECKED = {
    "Any",
    "object",
    "Self",
    "IO",
    "TextIO",
    "BinaryIO",
    "Never",
    "NoReturn",
    "TypeGuard",
    "TypeIs",
}  # isinstance is no test of them
SHAPELESS = {"TypeVar", "NewType", "ParamSpec"}  # what they make is for type checkers alone


class Enforcement:
    """What the decorators of a tree check."""

    @contract
    def __init__(self, graph: CallGraph) -> None:
        self.graph = graph
        self.enforcers = {unit for unit, function in graph.functions.items() if enforces(function, graph)}
        self.unknown = {module.name: list_unknown(module.syntax) for module in graph.tree.modules}
        made = {module.name: list_shapeless(module.syntax) for module in graph.tree.modules}
        self.shapeless = {name: UNCHECKED | made[name] | find_imported(graph.names[name].imports, made) for name in made}

    @contract
    def is_enforced(self, function: Function) -> bool:
        """Return whether a decorator checks the calls of a function: its own, or around its class, which leaves some out."""
        nodes = [*function.node.decorator_list]
        name, is_bound = function.node.name, {"staticmethod", "classmethod"} & {*function.decorators}
        is_public = name == "__init__" or not name.startswith("_")
        if function.owner is not None and is_public and not is_bound and not function.is_property:
            nodes += function.owner.decorator_list
        return self.has_enforcer(function.module.name, nodes)

    @contract
    def has_enforcer(self, module: str, decorators: list[ast.expr]) -> bool:
        """Return whether one of some decorators, as a module names them, checks what is called."""
        for decorator in decorators:
            node = decorator.func if isinstance(decorator, ast.Call) else decorator
            dotted = self.graph.to_dotted(module, node)
            units = self.graph.look_up(module, node.id) if isinstance(node, ast.Name) else self.graph.look_up_dotted(dotted)
            if units & self.enforcers or (not units and dotted in LIBRARIES):
                return True
        return False

    @contract
    def list_checked(self, function: Function) -> list[str]:
        """Return the parameters whose annotations say something that can be checked; `return` for the result."""
        variadic = {id(function.node.args.vararg), id(function.node.args.kwarg)}
        pairs = [(argument.arg, argument.annotation) for argument in function.parameters if id(argument) not in variadic]
        pairs.append(("return", function.node.returns))
        return [name for name, node in pairs if node is not None and self.says_something(function, node)]

    def says_something(self, function: Function, annotation: ast.expr) -> bool:
        """Return whether a value can be wrong for an annotation."""
        module = function.module.name
        node = read_text(annotation.value) if isinstance(annotation, ast.Constant) else annotation
        if node is None or list_names(node) & self.unknown[module]:
            return False
        kinds = [*iter_alternatives(node)]
        owners = [owner for kind in kinds if (owner := self.graph.find_class(module, kind)) is not None]
        is_protocol = any("Protocol" in ast.unparse(base) for owner in owners for base in owner.bases)
        return not is_protocol and not {get_last_name(kind) for kind in kinds} & self.shapeless[module]


@contract
def read_text(text: object) -> ast.expr | None:
    """Return the expression that an annotation in quotes says; None where it says none."""
    try:
        return ast.parse(str(text), mode="eval").body if isinstance(text, str) else None
    except SyntaxError:
        return None


@contract
def iter_alternatives(annotation: ast.expr) -> Iterator[ast.expr]:
    """Yield the sides of `A | B | C`, each without what stands in its brackets."""
    left = [annotation]
    while left:
        node = left.pop()
        if isinstance(node, ast.BinOp):
            left += [node.left, node.right]
        else:
            yield node.value if isinstance(node, ast.Subscript) else node


def list_shapeless(syntax: ast.Module) -> set[str]:
    """Return the names of a module that stand for types which no object has at run time, as type variables."""
    made = [node for node in syntax.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)]
    made = [node for node in made if get_last_name(node.value) in SHAPELESS]
    return {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}


def find_imported(imports: Mapping[str, str], made: Mapping[str, set[str]]) -> set[str]:
    """Return the names of a module that it imports from where they are made so."""
    pairs = [(name, *dotted.rpartition(".")[::2]) for name, dotted in imports.items()]
    return {name for name, home, original in pairs if original in made.get(home, ())}


def list_unknown(syntax: ast.Module) -> set[str]:
    """Return the names that a module imports for type checkers alone."""
    blocks = [node.body for node in syntax.body if isinstance(node, ast.If) and get_last_name(node.test) == "TYPE_CHECKING"]
    imports = [node for body in blocks for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def enforces(decorator: Function, graph: CallGraph) -> bool:
    """Return whether a function, or one that it calls, puts a check around the function that it takes."""
    if not decorator.parameters or decorator.is_nested or decorator.owner is not None:
        return False
    around = [decorator, *(graph.functions[unit] for unit in graph.edges[decorator.unit])]
    return any(is_guard(inner, outer) for top in around for inner, outer in list_nested(top, graph))


def list_nested(top: Function, graph: CallGraph) -> list[tuple[Function, Function]]:
    """Return the functions inside a function, each with the one that is next around it."""
    functions = graph.names[top.module.name].functions
    inner = [function for name, function in functions.items() if name.startswith(f"{top.name}.") and function.is_nested]
    pairs = [(function, functions.get(function.name.rpartition(".")[0])) for function in inner]
    return [(function, outer) for function, outer in pairs if outer is not None]


@contract
def is_guard(inner: Function, outer: Function) -> bool:
    """Return whether a function replaces the one that the function around it takes, calls it, and can refuse its arguments."""
    walked = [*walk_own(inner.node)]
    returned = [node.value for node in walk_own(outer.node) if isinstance(node, ast.Return) and node.value is not None]
    replaces = any(inner.node.name in list_names(value) for value in returned)
    calls = {node.func.id for node in walked if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    known, constants = list_derived(inner, walked), find_constants(inner.node)
    guards = [node for node in walked if isinstance(node, ast.If) and any(isinstance(child, ast.Raise) for child in node.body)]
    refuses = any(list_names(node.test) & known and not explain_vacuous(node.test, constants) for node in guards)
    return replaces and refuses and any(argument.arg in calls for argument in outer.parameters)


def list_derived(function: Function, walked: list[ast.AST]) -> set[str]:
    """Return the names in a function that hold its arguments, or what is made of them."""
    known = {argument.arg for argument in function.parameters}
    for node in sorted((node for node in walked if isinstance(node, ast.stmt)), key=lambda node: node.lineno):
        if isinstance(node, ast.Assign) and list_names(node.value) & known:
            known |= {name for target in node.targets for name in list_names(target)}
        elif isinstance(node, ast.For) and list_names(node.iter) & known:
            known |= list_names(node.target)
    return known


@contract
def list_names(node: ast.AST) -> set[str]:
    """Return the plain names in an expression."""
    return {child.id for child in walk(node) if isinstance(child, ast.Name)}
