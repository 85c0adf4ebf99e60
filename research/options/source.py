"""Finds the definition that a dotted path names by parsing source files: nothing is imported, so it costs milliseconds."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from research.contracts import contract
from research.options.renames import TARGETS, describe_rename

MAX_DEPTH = 12  # imports, aliases, bases that are followed


class TargetError(LookupError):
    """A target that certainly does not exist; the message names the missing part, and `near` targets that may be meant."""

    @contract
    def __init__(self, message: str, *near: str) -> None:
        super().__init__("\n".join([message, *([f"did you mean {' or '.join(near)} ?"] if near else [])]))
        self.message, self.near = message, near


class UnresolvedError(LookupError):
    """The source does not say what a target is: it is compiled, or made while a module runs."""


@dataclass(frozen=True, eq=False)
class Module:
    """The top level of a source file: the statement that binds each name, and the modules it takes all names from."""

    name: str
    path: Path
    names: dict[str, ast.stmt]
    star_imports: tuple[str, ...]
    required_packages: tuple[str, ...]  # packages that it cannot be imported without

    def list_public_names(self) -> set[str]:
        """Return the names that others may use; star imports are followed one step."""
        inherited = [load(star).names for star in self.star_imports if find_source(star)]
        files = {f.stem for f in self.path.parent.iterdir() if find_source(f"{self.name}.{f.stem}")}
        return {name for name in set(self.names).union(files, *inherited) if not name.startswith("_")}


Definition = tuple[Module, ast.stmt]  # with the module in which its names have their meaning
Member = Module | Definition


def _iter_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of the top level, and those inside its `if` and `try`."""
    left = [*reversed(body)]
    while left:
        statement = left.pop()
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            left += reversed([*statement.body, *statement.orelse])


def _list_bound_names(statement: ast.stmt) -> list[str]:
    """Return the names that a statement binds."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name.split(".")[0] for alias in aliases]
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _resolve_import(statement: ast.ImportFrom, module: str, path: Path) -> str:
    """Return the absolute name of the module that a `from X import Y` in `module` names."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)


def drop_bodies(source: bytes) -> bytes:
    """Return a source with ... in place of what functions do, which takes most of the time to parse."""
    lines, deeper, header = list[bytes](), b"", None
    for line in source.splitlines(keepends=True):
        if deeper and (line.startswith(deeper) or line.isspace()):
            continue
        deeper = b""
        lines.append(line)
        if match := re.match(rb"( *)(async )?def ", line):
            header = match[1]
        elif header is not None and re.match(rb" {0,%d}[^\s)\]]" % len(header), line):
            header = None  # that function was one line
        if header is not None and (end := re.search(rb"(:|\.\.\.)\s*(#.*)?$", line)):
            is_whole = end[1] == b"..."  # a stub; the ... of tuple[X, ...] is none
            deeper, header = b"" if is_whole else header + b" ", None
            lines += [] if is_whole else [deeper + b"...\n"]
    return b"".join(lines)


@cache
@contract
def find_source(name: str) -> Path | None:
    """Return the source file of a module; an empty path for compiled code, None where there is no such module."""
    top, *parts = name.split(".")
    home = find_package(top)
    for part in parts:
        if home is None or home.name != "__init__.py":
            return None
        folder, file = home.parent / part / "__init__.py", home.with_name(f"{part}.py")
        home = folder if folder.exists() else file if file.exists() else None
    return home


@cache
@contract
def find_package(name: str) -> Path | None:
    """Return the source file of a module at the top; an empty path for compiled code, None where there is none."""
    spec = importlib.util.find_spec(name) if name else None
    return Path(spec.origin or "") if spec else None


@cache
def load(name: str) -> Module:
    """Return the parsed module. Raise UnresolvedError where it has no source, TargetError where that cannot be parsed."""
    path = find_source(name)
    if path is None or path.suffix != ".py":
        raise UnresolvedError(name)
    source = path.read_bytes()
    try:
        body = ast.parse(drop_bodies(source)).body
    except SyntaxError:  # a text within it looks like a function
        try:
            body = ast.parse(source).body
        except SyntaxError as error:
            raise TargetError(f"{path}:{error.lineno}: {error.msg}") from error
    names = {bound: statement for statement in _iter_statements(body) for bound in _list_bound_names(statement)}
    froms = [s for s in _iter_statements(body) if isinstance(s, ast.ImportFrom)]
    stars = tuple(_resolve_import(s, name, path) for s in froms if s.names[0].name == "*")
    plain = [alias.name for s in body if isinstance(s, ast.Import) for alias in s.names]
    needs = [*plain, *(s.module for s in froms if s in body and not s.level and s.module)]
    return Module(name, path, names, stars, tuple(dict.fromkeys(need.split(".")[0] for need in needs)))


def find_member(module: Module, name: str, depth: int = MAX_DEPTH) -> Member | None:
    """Return what `name` means in `module`, or None. Raise UnresolvedError where only running the module could tell."""
    statement, submodule = module.names.get(name), f"{module.name}.{name}"
    if not depth:
        raise UnresolvedError(submodule)
    match statement:
        case None if find_source(submodule):
            return load(submodule)
        case None if "__getattr__" in module.names:
            raise UnresolvedError(submodule)
        case None:
            candidates = (find_member(load(star), name, depth - 1) for star in module.star_imports)
            return next((member for member in candidates if member), None)
        case ast.Import(names=aliases):
            return load(next(a.name if a.asname else name for a in aliases if name in (a.asname, a.name.split(".")[0])))
        case ast.ImportFrom(names=aliases):
            source = _resolve_import(statement, module.name, module.path)
            original = next(a.name for a in aliases if name in (a.asname, a.name))
            # A submodule comes first, since a package's own file may be long to parse.
            inner = f"{source}.{original}"
            return load(inner) if find_source(inner) else find_member(load(source), original, depth - 1)
        case ast.Assign(value=ast.Name(id=other)) if other != name and other in module.names:
            return find_member(module, other, depth - 1)
        case _:
            return module, statement


def check_path(target: str) -> None:
    """Raise TargetError for an old name, and for what is no dotted path."""
    if target in TARGETS:
        raise TargetError(describe_rename(target, TARGETS[target]), TARGETS[target])
    if "." not in target or not all(map(str.isidentifier, target.split("."))):
        raise TargetError(f"{target} is no dotted path to a class or a function, as mine.Net of mine.py")


@contract
def find_bare_folder(target: str) -> list[str]:
    """Return that a folder of the user's own on the way to a target is no package, and what to do; nothing without one."""
    folder = Path.cwd()
    for part in target.split(".")[:-1]:
        folder /= part
        if not folder.is_dir():
            break
        if not (file := folder / "__init__.py").exists():
            return [f"{folder} has no __init__.py, so no module in it is taken for yours", f"make an empty file {file}"]
    return []


@cache
def find_definition(target: str) -> Definition:
    """Return the class or function that a dotted path names. Raise TargetError or UnresolvedError."""
    check_path(target)
    top, *rest = target.split(".")
    if find_source(top) is None:
        near = get_close_matches(top, ("research", "torch"), n=1, cutoff=0.7)
        hint = "" if near or not rest else f"\npip install {top}, if that is the package's name"
        raise TargetError(f"there is no package '{top}' in this environment{hint}", *(".".join([top, *rest]) for top in near))
    # A package may hold a function with the name of one of its modules: files come first.
    home = top
    while len(rest) > 1 and find_source(f"{home}.{rest[0]}"):
        home = f"{home}.{rest.pop(0)}"
    module = load(home)
    member: Member | None = module
    if rest:
        member = find_member(module, rest[0]) if len(rest) == 1 or rest[0] in module.names else None
        while len(rest) > 1 and isinstance(member, Module):  # one that the file imports
            member = find_member(member, rest.pop(1))
    if member is None:
        near = get_close_matches(rest[0], sorted(module.list_public_names()), n=2, cutoff=0.5)
        raise TargetError(f"'{target}' does not exist: {home} has no '{rest[0]}'", *(f"{home}.{name}" for name in near))
    if len(rest) > 1:
        raise UnresolvedError(target)  # an attribute of a class
    if isinstance(member, Module):
        raise TargetError(f"'{target}' is a module, not a class or a function")
    is_installed = {"site-packages", "dist-packages"} & set(member[0].path.parts)  # whose requirements pip knows
    missing = [package for package in member[0].required_packages if not is_installed and find_source(package) is None]
    if missing:
        raise TargetError(f"{target} needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}")
    return member
