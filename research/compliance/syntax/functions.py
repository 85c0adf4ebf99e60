"""The functions and classes of a tree, and which of them are public."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from research.compliance.syntax.contract import contract
from research.compliance.syntax.tree import Module, Tree, list_children

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
STUBS = {"overload", "abstractmethod"}  # decorators of what has no body of its own
BLOCKS = ast.stmt | ast.ExceptHandler | ast.match_case
PROPERTIES = {"property", "cached_property", "setter", "getter", "deleter"}


@dataclass(frozen=True)
class Function:
    """A function or a method."""

    module: Module
    node: FunctionNode
    name: str  # dotted, within its module: Class.method, or outer.inner
    owner: ast.ClassDef | None  # the class it is a method of
    is_nested: bool  # inside another function

    @property
    def unit(self) -> str:
        """Its dotted name in the tree."""
        return f"{self.module.name}.{self.name}"

    @cached_property
    def decorators(self) -> list[str]:
        """The last names of its decorators: `property`, `cache`."""
        return [get_last_name(decorator) for decorator in self.node.decorator_list]

    @cached_property
    def body(self) -> list[ast.stmt]:
        """Its statements without the docstring."""
        return drop_docstring(self.node.body)

    @property
    def is_stub(self) -> bool:
        """True where there is nothing to judge: an overload, an abstract method, a method of a protocol."""
        if STUBS & {*self.decorators}:
            return True
        return all(is_empty(statement) for statement in self.body)

    @cached_property
    def parameters(self) -> list[ast.arg]:
        """What callers give: without self and cls, with *args and **kwargs."""
        args = self.node.args
        named = [*args.posonlyargs, *args.args]
        if self.owner is not None and "staticmethod" not in self.decorators:
            named = named[1:]
        return [*named, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]

    @property
    def is_property(self) -> bool:
        """True for what is read like an attribute."""
        return bool(PROPERTIES & {*self.decorators})


@contract
def get_last_name(node: ast.expr) -> str:
    """Return the last part of a dotted name, that of what is called where it is a call; empty for any other expression."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@contract
def is_none(node: ast.expr) -> bool:
    """Return whether an expression is None."""
    return isinstance(node, ast.Constant) and node.value is None


def drop_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return statements without a text in front."""
    is_text = bool(body) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    return body[1:] if is_text else body


@contract
def is_empty(statement: ast.stmt) -> bool:
    """Return whether a statement says that there is no body: pass, ..., raise NotImplementedError."""
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return (
        isinstance(statement, ast.Raise) and statement.exc is not None and get_last_name(statement.exc) == "NotImplementedError"
    )


@lru_cache(maxsize=4096)  # of files
@contract
def list_functions(module: Module) -> list[Function]:
    """Return all functions of a module, those in classes and functions included, in the order of their lines."""
    functions = list[Function]()
    left: list[tuple[ast.AST, str, ast.ClassDef | None, bool]] = [(node, "", None, False) for node in module.syntax.body]
    while left:
        node, prefix, owner, is_nested = left.pop()
        if isinstance(node, FunctionNode):
            function = Function(module, node, f"{prefix}{node.name}", owner, is_nested)
            functions.append(function)
            left += [(child, f"{function.name}.", None, True) for child in node.body]
        elif isinstance(node, ast.ClassDef):
            left += [(child, f"{prefix}{node.name}.", node, is_nested) for child in node.body]
        else:  # a block, as the two halves of an `if`
            blocks = [child for child in list_children(node) if isinstance(child, BLOCKS)]
            left += [(child, prefix, owner, is_nested) for child in blocks]
    return sorted(functions, key=lambda function: (function.node.lineno, function.node.col_offset))


@lru_cache(maxsize=32768)  # of functions: several rules look at each
@contract
def walk_own(node: ast.AST) -> tuple[ast.AST, ...]:
    """Return the nodes of a function that run when it is called: not the bodies of functions and classes inside it."""
    left = [*(node.body if isinstance(node, FunctionNode) else list_children(node))]
    nodes = list[ast.AST]()
    while left:
        child = left.pop()
        nodes.append(child)
        if isinstance(child, FunctionNode | ast.ClassDef):
            left += child.decorator_list
        elif not isinstance(child, ast.Lambda):
            left += list_children(child)
    return tuple(nodes)


@contract
def walk_top(syntax: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: with the bodies of classes, without those of functions."""
    left: list[ast.AST] = [syntax]
    while left:
        node = left.pop()
        yield node
        left += [child for child in list_children(node) if not isinstance(child, FunctionNode)]


@lru_cache(maxsize=4096)
@contract
def count_names(module: Module) -> Counter[str]:
    """Return how often a module mentions each name: reads it, takes it as an attribute, or imports it."""
    names = Counter[str]()
    for node in module.nodes:
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.Attribute):
            names[node.attr] += 1
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names)
    return names


class Visibility:
    """Which functions others call.

    A function is public where its name has no leading underscore, it is in no other function and no private class, and another
    file mentions it, or its own file never does. What only its own file uses is a private helper, whatever its name. The
    constructor of a public class is public, other methods of Python's own protocols are not.
    """

    @contract
    def __init__(self, tree: Tree) -> None:
        self.names = {module.path: count_names(module) for module in tree.modules}
        self.files = Counter(name for names in self.names.values() for name in names)  # in how many files a name is

    @contract
    def is_public(self, function: Function) -> bool:
        """Return whether a function is public. A stub is not: there is nothing to judge."""
        parts = function.name.split(".")
        name = parts[-2] if parts[-1] in ("__init__", "__call__", "__post_init__") and len(parts) > 1 else parts[-1]
        if function.is_nested or function.is_stub or any(part.startswith("_") for part in {*parts[:-1], name}):
            return False
        own = self.names[function.module.path][name]
        return self.files[name] > bool(own) or not own
