"""What a dotted `_target_` takes and gives, read from its source: nothing is imported, so asking costs milliseconds.

Where the source does not say something plainly it counts as not checked: silence is better than a false alarm.
"""

import ast
import importlib.util
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from research import ranges
from research.preflight.value_types import ANY, ValueType

MAX_DEPTH = 12  # imports, aliases, bases that are followed
PARAMETERLESS_BASES = {"object", "Generic", "Protocol", "ABC"}  # bases that take no parameter


class TargetError(LookupError):
    """A target that surely does not exist; says which part, and what is near."""


class UnresolvedError(LookupError):
    """A target of which the source does not tell."""


@dataclass(frozen=True)
class Parameter:
    name: str
    required: bool
    annotation: str = ""  # as it stands in the source
    value_types: tuple[ValueType, ...] = (ANY,)

    def accepts(self, value: object) -> bool:
        return any(kind.accepts(value) for kind in self.value_types)


@dataclass(frozen=True)
class Signature:
    parameters: tuple[Parameter, ...]
    returns: str = ""  # as it stands in the source


@dataclass(frozen=True, eq=False)
class Module:
    """The top level of a source file: the statement that binds each name, and the modules it takes all names from."""

    name: str
    path: Path
    names: dict[str, ast.stmt]
    star_imports: tuple[str, ...]
    required_packages: tuple[str, ...]  # packages that it cannot be imported without

    def list_public_names(self) -> set[str]:
        """Those that others may use; of stars, one step far."""
        inherited = [load(star).names for star in self.star_imports if _find_source(star)]
        files = {f.stem for f in self.path.parent.iterdir() if _find_source(f"{self.name}.{f.stem}")}
        return {name for name in set(self.names).union(files, *inherited) if not name.startswith("_")}


Definition = tuple[Module, ast.stmt]  # with the module in which its names have their meaning
Member = Module | Definition


def _iter_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The top level, and what stands below its `if` and `try`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _iter_statements([*statement.body, *statement.orelse])


def _list_bound_names(statement: ast.stmt) -> list[str]:
    """The names that a statement binds."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name.split(".")[0] for alias in aliases]
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _resolve_import(statement: ast.ImportFrom, module: str, path: Path) -> str:
    """The absolute name of the module that a `from X import Y` in `module` names."""
    if not statement.level:
        return statement.module or ""
    parents = module.split(".")
    parents = parents[: len(parents) - statement.level + (path.name == "__init__.py")]
    return ".".join([*parents, statement.module] if statement.module else parents)


@cache
def _find_source(name: str) -> Path | None:
    """Where a module's source would be: empty for compiled code, None where there is nothing. Nothing is imported."""
    parent, _, part = name.rpartition(".")
    if not parent:
        spec = importlib.util.find_spec(part) if part else None
        return Path(spec.origin or "") if spec else None
    home = _find_source(parent)
    if home is None or home.name != "__init__.py":
        return None
    folder, file = home.parent / part / "__init__.py", home.with_name(f"{part}.py")
    return folder if folder.exists() else file if file.exists() else None


@cache
def load(name: str) -> Module:
    """The module. Raises UnreadError where there is no source for it."""
    path = _find_source(name)
    if path is None or path.suffix != ".py":
        raise UnresolvedError(name)
    body = ast.parse(path.read_bytes()).body
    names = {bound: statement for statement in _iter_statements(body) for bound in _list_bound_names(statement)}
    froms = [s for s in _iter_statements(body) if isinstance(s, ast.ImportFrom)]
    stars = tuple(_resolve_import(s, name, path) for s in froms if s.names[0].name == "*")
    plain = [alias.name for s in body if isinstance(s, ast.Import) for alias in s.names]
    needs = [*plain, *(s.module for s in froms if s in body and not s.level and s.module)]
    return Module(name, path, names, stars, tuple(dict.fromkeys(need.split(".")[0] for need in needs)))


def find_member(module: Module, name: str, depth: int = MAX_DEPTH) -> Member | None:
    """What `name` means in `module`; None: nothing. Raises UnreadError where only running the module could tell."""
    statement, submodule = module.names.get(name), f"{module.name}.{name}"
    if not depth:
        raise UnresolvedError(submodule)
    match statement:
        case None if _find_source(submodule):
            return load(submodule)
        case None if "__getattr__" in module.names:
            raise UnresolvedError(submodule)
        case None:
            starred = (find_member(load(star), name, depth - 1) for star in module.star_imports)
            return next((found for found in starred if found), None)
        case ast.Import(names=aliases):
            return load(next(a.name if a.asname else name for a in aliases if name in (a.asname, a.name.split(".")[0])))
        case ast.ImportFrom(names=aliases):
            source = _resolve_import(statement, module.name, module.path)
            original = next(a.name for a in aliases if name in (a.asname, a.name))
            inner = f"{source}.{original}"  # first: a package's own file may be long to read
            return load(inner) if _find_source(inner) else find_member(load(source), original, depth - 1)
        case ast.Assign(value=ast.Name(id=other)) if other != name and other in module.names:
            return find_member(module, other, depth - 1)
        case _:
            return module, statement


def _find_definition(target: str) -> Definition:
    """What a dotted path leads to. Raises TargetError or UnreadError."""
    top, *rest = target.split(".")
    if _find_source(top) is None:
        near = get_close_matches(top, ("research", "torch"), n=1, cutoff=0.7)
        hint = f"did you mean {'.'.join([*near, *rest])} ?" if near else f"pip install {top}, if that is the package's name"
        raise TargetError(f"there is no package '{top}' in this environment\n{hint}")
    home = top
    while len(rest) > 1 and _find_source(f"{home}.{rest[0]}"):  # a package may hold a function of a module's name: files first
        home = f"{home}.{rest.pop(0)}"
    module = load(home)
    found = find_member(module, rest[0]) if rest and (len(rest) == 1 or rest[0] in module.names) else None if rest else module
    if found is None:
        near = get_close_matches(rest[0], sorted(module.list_public_names()), n=2, cutoff=0.5)
        hint = f"\ndid you mean {' or '.join(f'{home}.{name}' for name in near)} ?" if near else ""
        raise TargetError(f"'{target}' does not exist: {home} has no '{rest[0]}'{hint}")
    if len(rest) > 1:
        raise UnresolvedError(target)  # an attribute of a class
    if isinstance(found, Module):
        raise TargetError(f"'{target}' is a module, not a class or a function")
    return found


@cache
def read_signature(target: str) -> Signature | None:
    """What `target` takes and gives; None: not checked. Raises TargetError for a target that does not exist."""
    try:
        module, node = _find_definition(target)
        missing = (
            [need for need in module.required_packages if _find_source(need) is None] if target.startswith("research.") else []
        )
        if missing:
            raise TargetError(f"{target} needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}")
        returns = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else ""
        return Signature(tuple(_read_parameters(module, node)), returns)
    except UnresolvedError:
        return None


def _read_parameters(module: Module, node: ast.stmt, depth: int = MAX_DEPTH) -> list[Parameter]:
    """In order; those of a class are its `__init__`'s, else its dataclass fields, else its bases'."""
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
            parameters = {p.name: p for p in _read_parameters(*_resolve_name(module, name), depth - 1)}
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_field(field):
                parameters[field.target.id] = _read_parameter(module, field.target.id, field.annotation, field.value is None)
    return list(parameters.values())


def _is_field(statement: ast.AnnAssign) -> bool:
    value = ast.unparse(statement.value) if statement.value else ""
    return "ClassVar" not in ast.unparse(statement.annotation) and "init=False" not in value


def _resolve_name(module: Module, dotted: str) -> Definition:
    """The definition that a name such as `nn.Module` has in `module`."""
    found: Member | None = module
    for part in dotted.split("."):
        found = find_member(found, part) if isinstance(found, Module) else None
    if found is None or isinstance(found, Module):
        raise UnresolvedError(dotted)
    return found


def _read_arguments(module: Module, arguments: ast.arguments) -> list[Parameter]:
    """Raises UnreadError for **kwargs: any name may be meant."""
    if arguments.kwarg:
        raise UnresolvedError(module.name)
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = len(positional) - len(arguments.defaults)
    found = [_read_parameter(module, a.arg, a.annotation, i < optional) for i, a in enumerate(positional)]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return found + [_read_parameter(module, a.arg, a.annotation, default is None) for a, default in keywords]


def _read_parameter(module: Module, name: str, annotation: ast.expr | None, required: bool) -> Parameter:
    kinds = _parse_value_types(module, annotation) if annotation else [ANY]
    return Parameter(name, required, ast.unparse(annotation) if annotation else "", tuple(kinds))


def _parse_value_types(module: Module, annotation: ast.expr, depth: int = MAX_DEPTH) -> list[ValueType]:
    """The alternatives of an annotation."""
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
    """A name that stands for an annotation, in this module or another of ours; others' files are long to read."""
    statement = module.names.get(name)
    if isinstance(statement, ast.ImportFrom) and not (statement.module or "").startswith("research"):
        return [ANY]
    try:
        found = find_member(module, name) if depth else None
    except UnresolvedError:
        return [ANY]
    if found is None or isinstance(found, Module):
        return [ANY]
    home, statement = found
    if home.name == ranges.__name__:
        base, note = typing.get_args(getattr(ranges, name))
        return [ValueType("path") if note[0] not in "[({" else ValueType("int" if base is int else "float", note)]
    return _parse_value_types(home, statement.value, depth - 1) if isinstance(statement, ast.Assign) else [ANY]
