"""What is checked around a function at run time: by a decorator, or by the class of a parameter.

A decorator of a library is known by its import. One of the tree is read: it must put a function around the one that it takes,
which calls that and can raise because of what it was called with. One that returns its argument unchanged checks nothing.
"""

import ast
from collections.abc import Iterator

from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.functions import Function, get_last_name, is_none, walk_own
from research.compliance.syntax.vacuous import explain_vacuous, find_constants

LIBRARIES = {"beartype.beartype", "typeguard.typechecked", "pydantic.validate_call"}
UNCHECKED = {"Any", "object", "Self", "IO", "TextIO", "BinaryIO", "Never", "NoReturn"}  # isinstance says nothing of these
SHAPELESS = {"TypeVar", "NewType", "ParamSpec"}  # what they make is for type checkers alone


class Enforcement:
    """What the decorators of a tree check."""

    def __init__(self, graph: CallGraph) -> None:
        self.graph = graph
        self.enforcers = {unit for unit, function in graph.functions.items() if enforces(function, graph)}
        self.unchecked = {module.name: UNCHECKED | list_unchecked(module.syntax) for module in graph.tree.modules}

    def is_enforced(self, function: Function) -> bool:
        """Return whether a decorator checks the calls of a function: its own, or that of its class."""
        nodes = [*function.node.decorator_list]
        if function.owner is not None and not {"staticmethod", "classmethod"} & {*function.decorators}:
            nodes += function.owner.decorator_list
        return self.has_enforcer(function.module.name, nodes)

    def has_enforcer(self, module: str, decorators: list[ast.expr]) -> bool:
        """Return whether one of some decorators, as a module names them, checks what is called."""
        for decorator in decorators:
            node = decorator.func if isinstance(decorator, ast.Call) else decorator
            dotted = self.graph.to_dotted(module, node)
            units = self.graph.look_up(module, node.id) if isinstance(node, ast.Name) else self.graph.look_up_dotted(dotted)
            if units & self.enforcers or (not units and dotted in LIBRARIES):
                return True
        return False

    def list_checked(self, function: Function) -> list[str]:
        """Return the parameters whose annotations say something that can be checked; `return` for the result."""
        variadic = {id(function.node.args.vararg), id(function.node.args.kwarg)}
        pairs = [(argument.arg, argument.annotation) for argument in function.parameters if id(argument) not in variadic]
        pairs.append(("return", function.node.returns))
        return [name for name, node in pairs if node is not None and self.says_something(function, node)]

    def says_something(self, function: Function, annotation: ast.expr) -> bool:
        """Return whether a value can be wrong for an annotation."""
        module = function.module.name
        if is_none(annotation):
            return False
        for node in iter_alternatives(annotation):
            kind = self.graph.find_class(module, node)
            is_protocol = kind is not None and any("Protocol" in ast.unparse(base) for base in kind.bases)
            if get_last_name(node) in self.unchecked[module] or is_protocol:
                return False
        return True


def iter_alternatives(annotation: ast.expr) -> Iterator[ast.expr]:
    """Yield the sides of `A | B | C`, each without what stands in its brackets; a text is read as what it says."""
    left = [annotation]
    while left:
        node = left.pop()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            left += read_text(node.value)
        elif isinstance(node, ast.BinOp):
            left += [node.left, node.right]
        else:
            yield node.value if isinstance(node, ast.Subscript) else node


def read_text(text: str) -> list[ast.expr]:
    """Return the expression that a text says; nothing where it says none."""
    try:
        return [ast.parse(text, mode="eval").body]
    except SyntaxError:
        return []


def list_unchecked(syntax: ast.Module) -> set[str]:
    """Return the names of a module that only type checkers know: type variables, and imports under TYPE_CHECKING."""
    names = set[str]()
    for node in syntax.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and get_last_name(node.value) in SHAPELESS:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If) and get_last_name(node.test) == "TYPE_CHECKING":
            imports = [child for child in node.body if isinstance(child, ast.Import | ast.ImportFrom)]
            names |= {alias.asname or alias.name for child in imports for alias in child.names}
    return names


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


def list_names(node: ast.AST) -> set[str]:
    """Return the plain names in an expression."""
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
