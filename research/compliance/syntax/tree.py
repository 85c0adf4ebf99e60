"""The Python files of a tree: read, parsed, and those that no rule counts set apart."""

import ast
import os
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from research.compliance.findings import Finding
from research.compliance.syntax.contract import contract

SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "build", "dist", "outputs", "venv"}
TEST_FOLDERS = {"test", "tests", "testing"}  # not counted, as conf/ is
CONFIG_FOLDERS = {"conf", "config", "configs"}
TEST_NAMES = re.compile(r"(test_.*|.*_test|conftest)\.py")
GENERATED = "generated"
CODE = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.For | ast.While  # settings have none of them
GENERATED_NAMES = re.compile(r"(.*/)?(generated/.*|.*_pb2(_grpc)?\.py|_version\.py)")
LEAVES = {int, str, bytes, float, complex, bool, type(None), type(...), ast.Load, ast.Store, ast.Del}  # in a node: no nodes
GENERATED_LINE = re.compile(r"#.*\b(auto-?)?generated (by|with|from)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Module:
    """A file of Python."""

    path: str  # relative to the tree, with /
    name: str  # dotted, as others import it
    text: str
    syntax: ast.Module

    @cached_property
    def lines(self) -> list[str]:
        """Its lines, without their ends."""
        return self.text.splitlines()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of it."""
        return walk(self.syntax)


@dataclass(frozen=True)
class Tree:
    """All files of a tree: those whose units count, and those that are listed alone."""

    root: Path
    modules: tuple[Module, ...]
    excluded: dict[str, str] = field(default_factory=dict)  # path -> why its units do not count
    findings: tuple[Finding, ...] = ()  # files that cannot be read


def list_children(node: ast.AST) -> list[ast.AST]:
    """Return the nodes right below one, as ast.iter_child_nodes in a third of the time; without the marks of load and store."""
    children = list[ast.AST]()
    for value in vars(node).values():
        if type(value) is list:
            children += [item for item in value if type(item) not in LEAVES]
        elif type(value) not in LEAVES:
            children.append(value)
    return children


def walk(node: ast.AST) -> list[ast.AST]:
    """Return a node and all below it, the nearest first."""
    nodes = [node]
    for current in nodes:  # which grows, and ends with the leaves
        nodes += list_children(current)
    return nodes


@contract
def read_tree(root: Path) -> Tree:
    """Return the Python files of a folder, or the one file that `root` is.

    Raise ValueError where there is no Python file.
    """
    folder = root if root.is_dir() else root.parent
    paths = sorted(iter_files(root)) if root.is_dir() else [root] if root.suffix == ".py" and root.is_file() else []
    if not paths:
        raise ValueError(f"PATH={root}: there is no Python file; give a folder with some, or one of them")
    package, modules, findings = find_package(folder), list[Module](), list[Finding]()
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    excluded = {name: reason for name, path in names.items() if (reason := explain_exclusion(name, path))}
    left = [name for name in names if name not in excluded]
    apart = {to_dotted(name, package): name for name, reason in excluded.items() if reason != GENERATED}
    while left:
        name = left.pop()
        module = read_module(names[name], name, to_dotted(name, package))
        if isinstance(module, Finding):
            findings.append(module)
            continue
        modules.append(module)
        used = [apart.pop(dotted) for dotted in list_imported(module) & {*apart}]  # it counts, whatever its folder is called
        excluded = {name: reason for name, reason in excluded.items() if name not in used}
        left += used
    return Tree(folder, tuple(sorted(modules, key=lambda module: module.path)), excluded, tuple(sorted(findings)))


def read_module(path: Path, name: str, dotted: str) -> Module | Finding:
    """Return a file of Python, or a finding where it cannot be read."""
    try:
        with tokenize.open(path) as file:  # the encoding is the one that the file declares
            text = file.read()
        return Module(name, dotted, text, parse(text))
    except (SyntaxError, ValueError, LookupError, RecursionError, MemoryError, OSError) as error:
        line = (error.lineno if isinstance(error, SyntaxError) else None) or 1
        message = f"it cannot be read: {explain_error(error)}; mend it, or take it out of the tree"
        return Finding(name, line, 0, dotted, message, True)


def list_imported(module: Module) -> set[str]:
    """Return the dotted names that a file imports, those of modules and those of what is in them."""
    names = set[str]()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = find_home(module, node)
            names |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
    return names


@contract
def find_home(module: Module, node: ast.ImportFrom) -> str:
    """Return the dotted name of the module that `from ... import` reads."""
    if not node.level:
        return node.module or ""
    is_package = module.path.endswith("__init__.py")
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


@contract
def parse(text: str) -> ast.Module:
    """Return the syntax tree of a text. What Python would warn of, as of an unknown escape, is left to rule 10."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def explain_error(error: Exception) -> str:
    """Return why a file cannot be read: one short line without its path."""
    lines = str(error).splitlines() if not isinstance(error, OSError) else [error.strerror or ""]
    return (lines[0] if lines else "")[:120] or type(error).__name__


@contract
def find_package(folder: Path) -> str:
    """Return the dotted name of the package that a folder is; empty where it is none."""
    parts, resolved = list[str](), folder.resolve()
    for parent in (resolved, *resolved.parents):
        if not (parent / "__init__.py").is_file():
            break
        parts.append(parent.name)
    return ".".join(reversed(parts))


@contract
def iter_files(root: Path) -> Iterator[Path]:
    """Yield the Python files below a folder, without environments, caches and hidden folders. Links are not followed."""
    for folder, folders, files in os.walk(root):
        is_environment = {name for name in folders if (Path(folder) / name / "pyvenv.cfg").exists()}
        is_package = {name for name in folders if (Path(folder) / name / "__init__.py").exists()}
        skipped = is_environment | (SKIPPED_FOLDERS - is_package)
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        yield from (Path(folder) / name for name in files if name.endswith(".py") and not name.startswith("."))


def explain_exclusion(name: str, path: Path) -> str:
    """Return why the units of a file do not count: it is a test, a configuration or generated; empty where they do.

    A file counts as generated where its path says so, and a comment in its first five lines by what program. A test is what
    lies in a folder of tests, or has a name that a test runner collects. What counted files import counts nevertheless.
    """
    folders = set(name.split("/")[:-1])
    if folders & TEST_FOLDERS or TEST_NAMES.fullmatch(name.split("/")[-1]):
        return "test"
    if not path.is_file() or not (folders & CONFIG_FOLDERS or GENERATED_NAMES.fullmatch(name)):
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    if folders & CONFIG_FOLDERS:
        module = read_module(path, name, name)
        has_code = isinstance(module, Finding) or any(isinstance(node, CODE) for node in module.nodes)
        return "" if has_code or re.search(r"\b(eval|exec)\(", text) else "configuration"
    is_generated = GENERATED_NAMES.fullmatch(name) and any(map(GENERATED_LINE.match, text.splitlines()[:5]))
    return GENERATED if is_generated else ""


@contract
def to_dotted(path: str, package: str = "") -> str:
    """Return the name by which a file is imported: from the root of its tree, from src/ there, or as a part of `package`."""
    name = path if package else path.removeprefix("src/")
    name = name.removesuffix(".py").replace("/", ".")
    if package:
        return f"{package}.{name}".removesuffix(".__init__")
    return name.removesuffix(".__init__") or name
