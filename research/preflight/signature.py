"""What a dotted `_target_` takes and returns, read from its source without importing it.

What the source does not say plainly is not checked: a missed mistake costs less than a false alarm.
"""

import ast
import typing
from dataclasses import dataclass
from functools import cache

from research import ranges
from research.preflight.source import (
    MAX_DEPTH,
    Module,
    TargetError,
    UnresolvedError,
    find_definition,
    find_member,
    find_source,
    resolve_name,
)
from research.preflight.value_types import ANY, ValueType

PARAMETERLESS_BASES = {"object", "Generic", "Protocol", "ABC"}  # bases that take no parameter


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component."""

    name: str
    required: bool
    annotation: str = ""  # as it stands in the source
    value_types: tuple[ValueType, ...] = (ANY,)

    def accepts(self, value: object) -> bool:
        """Return whether a value is of one of the annotated types."""
        return any(alternative.accepts(value) for alternative in self.value_types)


@dataclass(frozen=True)
class Signature:
    """The parameters of a component, and what it returns."""

    parameters: tuple[Parameter, ...]
    returns: str = ""  # as it stands in the source


@cache
def read_signature(target: str) -> Signature | None:
    """Return the signature of `target`; None where it cannot be read. Raises TargetError for a target that does not exist."""
    try:
        module, node = find_definition(target)
        ours = target.startswith("research.")
        if missing := [need for need in module.required_packages if ours and find_source(need) is None]:
            raise TargetError(f"{target} needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}")
        returns = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else ""
        return Signature(tuple(_read_parameters(module, node)), returns)
    except UnresolvedError:
        return None


def _read_parameters(module: Module, node: ast.stmt, depth: int = MAX_DEPTH) -> list[Parameter]:
    """Return the parameters in order: of a class those of `__init__`, else its dataclass fields, else those of its bases."""
    if isinstance(node, ast.FunctionDef):
        return _read_arguments(module, node.args)
    if not isinstance(node, ast.ClassDef) or not depth:
        raise UnresolvedError(module.name)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _read_arguments(module, statement.args)[1:]
    parameters: dict[str, Parameter] = {}
    for base in node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        if (name := ast.unparse(base)).split(".")[-1] not in PARAMETERLESS_BASES and not parameters:
            parameters = {p.name: p for p in _read_parameters(*resolve_name(module, name), depth - 1)}
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_field(field):
                parameters[field.target.id] = _read_parameter(module, field.target.id, field.annotation, field.value is None)
    return list(parameters.values())


def _is_field(statement: ast.AnnAssign) -> bool:
    """Return whether an annotation in a dataclass is a parameter of its constructor."""
    value = ast.unparse(statement.value) if statement.value else ""
    return "ClassVar" not in ast.unparse(statement.annotation) and "init=False" not in value


def _read_arguments(module: Module, arguments: ast.arguments) -> list[Parameter]:
    """Return the parameters of a function. Raises UnresolvedError for one with **kwargs, which takes any name."""
    if arguments.kwarg:
        raise UnresolvedError(module.name)
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = len(positional) - len(arguments.defaults)
    parameters = [_read_parameter(module, a.arg, a.annotation, i < optional) for i, a in enumerate(positional)]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return parameters + [_read_parameter(module, a.arg, a.annotation, default is None) for a, default in keywords]


def _read_parameter(module: Module, name: str, annotation: ast.expr | None, required: bool) -> Parameter:
    value_types = _parse_value_types(module, annotation) if annotation else [ANY]
    return Parameter(name, required, ast.unparse(annotation) if annotation else "", tuple(value_types))


def _parse_value_types(module: Module, annotation: ast.expr, depth: int = MAX_DEPTH) -> list[ValueType]:
    """Return the alternatives of an annotation."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _parse_value_types(module, left, depth) + _parse_value_types(module, right, depth)
        case ast.Constant(value=None):
            return [ValueType("null")]
        case ast.Constant(value=str(text)):
            return _parse_value_types(module, ast.parse(text, mode="eval").body, depth - 1) if depth else [ANY]
        case ast.Name(id="int" | "float" | "bool" | "str" | "list" | "tuple" as name):
            return [ValueType(name.replace("tuple", "list"))]
        case ast.Name(id=name):
            return _resolve_alias(module, name, depth)
        case ast.Subscript(value=ast.Name(id="list" | "tuple" | "Sequence")):
            return [ValueType("list")]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return [ValueType("choice", choices=tuple(_parse_literal(inner)))]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return [*_parse_value_types(module, inner, depth), ValueType("null")]
    return [ANY]


def _parse_literal(inner: ast.expr) -> list[object]:
    value = ast.literal_eval(inner)
    return list(value) if isinstance(inner, ast.Tuple) else [value]


def _resolve_alias(module: Module, name: str, depth: int) -> list[ValueType]:
    """Return the alternatives of a name that stands for an annotation, in this module or another of ours.

    Other packages are not followed, as their files are long to parse.
    """
    statement = module.names.get(name)
    if isinstance(statement, ast.ImportFrom) and not (statement.module or "").startswith("research"):
        return [ANY]
    try:
        member = find_member(module, name) if depth else None
    except UnresolvedError:
        return [ANY]
    if member is None or isinstance(member, Module):
        return [ANY]
    home, statement = member
    if home.name == ranges.__name__:
        base, note = typing.get_args(getattr(ranges, name))
        return [ValueType("path") if note[0] not in "[({" else ValueType("int" if base is int else "float", note)]
    return _parse_value_types(home, statement.value, depth - 1) if isinstance(statement, ast.Assign) else [ANY]
