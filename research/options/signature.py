"""What a dotted `_target_` takes and returns, read from its source without importing it.

What the source does not say plainly is not checked: a missed mistake costs less than a false alarm.
"""

import ast
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from research import ranges
from research.contracts import contract
from research.options.renames import PLAIN_LOSS
from research.options.source import MAX_DEPTH, Definition, Module, TargetError, UnresolvedError, find_definition, find_member
from research.ranges import ANY, ValueType

MAX_PARTS = 100  # of an annotation, with those of the names in it
PLAIN_NAMES = {"int", "float", "bool", "str", "list", "tuple"}
PARAMETERLESS_BASES = {"object", "Generic", "Protocol", "ABC"}  # bases that take no parameter


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component."""

    name: str
    annotation: str = ""  # as it stands in the source
    value_types: tuple[ValueType, ...] = (ANY,)
    is_needed: bool = False  # it has no default


@dataclass(frozen=True)
class Signature:
    """The parameters of a component, and what it returns."""

    parameters: tuple[Parameter, ...] = ()
    returns: str = ""  # as it stands in the source

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in order."""
        return [parameter.name for parameter in self.parameters]

    @contract
    def get_annotation(self, index: int) -> str:
        """Return a parameter's annotation as its source has it; empty where it is not known."""
        return self.parameters[index].annotation if index < len(self.parameters) else ""

    def parse_shape(self) -> str:
        """Return the S of a data set that returns Dataset[S] or MemoryDataset[S]; empty for any other."""
        match = re.fullmatch(r"(?:[\w.]+\.)?(?:Memory)?Dataset\[(\w+)\]", self.returns)
        return match[1] if match else ""

    def parse_axes(self) -> tuple[str, str]:
        """Return the axes of logits and targets that a loss takes, as "batch classes"; empty for any, or where it says none."""
        texts = (re.fullmatch(r"[\w.]+\[[\w.]+, ['\"]([^'\"]*)['\"]\]", self.get_annotation(index)) for index in (0, 1))
        logits, targets = ("" if not text or re.search(r"\*|\.\.\.", text[1]) else text[1] for text in texts)
        return logits, targets


@cache
@contract
def read_signature(target: str) -> Signature | None:
    """Return the signature of `target`; None where there is no such target, or its source does not say."""
    try:
        module, node = find_definition(target)
        returns = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else ""
        return Signature(tuple(_read_parameters(module, node)), returns)
    except (TargetError, UnresolvedError):
        return None


@contract
def list_plain_settings(loss: Mapping[str, Any]) -> list[str]:
    """Return the settings of a loss that are left over, at their defaults, from the option whose target was replaced."""
    signature = read_signature(str(loss.get("_target_")))
    return [k for k, v in PLAIN_LOSS.items() if signature and k not in signature.names and k in loss and loss[k] == v]


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
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if name.split(".")[-1] not in PARAMETERLESS_BASES and not parameters:
            parameters = {p.name: p for p in _read_parameters(*_find_base(module, name), depth - 1)}
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        for field in node.body:
            match field:
                case ast.AnnAssign(target=ast.Name(id=name)) if not re.search("ClassVar|init=False", ast.unparse(field)):
                    parameters[name] = _read_parameter(module, name, field.annotation)
    return list(parameters.values())


def _find_base(module: Module, name: str) -> Definition:
    """Return the definition of a base class, which may be named as `nn.Module` is. Raise UnresolvedError for none."""
    member: Module | Definition | None = module
    for part in name.split("."):
        member = find_member(member, part) if isinstance(member, Module) else None
    if member is None or isinstance(member, Module):
        raise UnresolvedError(name)
    return member


def _read_arguments(module: Module, arguments: ast.arguments) -> list[Parameter]:
    """Return the parameters of a function. Raise UnresolvedError for one with **kwargs, which takes any name."""
    if arguments.kwarg:
        raise UnresolvedError(module.name)
    nodes = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    with_default = {node.arg for node in nodes[len(nodes) - len(arguments.kwonlyargs) - len(arguments.defaults) :]}
    with_default -= {node.arg for node, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default}
    read = [_read_parameter(module, node.arg, node.annotation) for node in nodes]
    return [replace(parameter, is_needed=parameter.name not in with_default) for parameter in read]


def _read_parameter(module: Module, name: str, annotation: ast.expr | None) -> Parameter:
    if annotation is None:
        return Parameter(name)
    return Parameter(name, ast.unparse(annotation), tuple(_parse_value_types(module, annotation)))


def _parse_value_types(module: Module, annotation: ast.expr) -> list[ValueType]:
    """Return the alternatives of an annotation; any value where its names lead to each other."""
    types, left = list[ValueType](), [(module, annotation)]
    for _ in range(MAX_PARTS):
        if not left:
            return types
        home, node = left.pop()
        match node:
            case ast.BinOp(left=first, op=ast.BitOr(), right=second):
                left += [(home, second), (home, first)]
            case ast.Constant(value=str(text)):
                left.append((home, ast.parse(text, mode="eval").body))
            case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
                left += [(home, ast.Constant(None)), (home, inner)]
            case ast.Name(id=name) if name not in PLAIN_NAMES:
                resolved = _resolve_alias(home, name)
                types += resolved if isinstance(resolved, list) else []
                left += [resolved] if isinstance(resolved, tuple) else []
            case _:
                types += _parse_plain_type(node)
    return [ANY]


def _parse_plain_type(annotation: ast.expr) -> list[ValueType]:
    """Return what a part of an annotation takes that holds no other one."""
    match annotation:
        case ast.Constant(value=None):
            return [ValueType("null")]
        case ast.Name(id="list" | "tuple") | ast.Subscript(value=ast.Name(id="list" | "tuple" | "Sequence")):
            return [ValueType("list")]
        case ast.Name(id=name):
            return [ValueType(name)]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            choices = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return [ValueType("choice", choices=tuple(map(ast.literal_eval, choices)))]
    return [ANY]


def _resolve_alias(module: Module, name: str) -> list[ValueType] | tuple[Module, ast.expr]:
    """Return what a name takes that stands for an annotation; or that annotation, with the module it stands in.

    Other packages are not followed, as their files are long to parse.
    """
    statement = module.names.get(name)
    if isinstance(statement, ast.ImportFrom) and statement.module == ranges.__name__ and name in vars(ranges):
        return [*ranges.parse_annotation(getattr(ranges, name))]
    is_foreign = isinstance(statement, ast.ImportFrom) and not (statement.module or "").startswith("research")
    with suppress(UnresolvedError):
        match None if is_foreign else find_member(module, name):
            case (Module(name=ranges.__name__), _):
                return [*ranges.parse_annotation(getattr(ranges, name))]
            case (Module() as home, ast.Assign(value=value)):
                return home, value
    return [ANY]
