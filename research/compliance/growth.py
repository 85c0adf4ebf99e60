"""Rule 3, no allocation after the start: what a method or a function fills, something empties or bounds.

A container of an object or a module must not grow without end once it is set up. A unit is a method, or a function that touches
a container of its module. This is what can be read; a run whose memory stays flat is what a test has to show.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.containers import (
    DEFAULTS,
    MAPPINGS,
    SURE_GROWERS,
    get_kind,
    is_limited,
    iter_bounded,
    iter_grown,
    list_known_keys,
    list_targets,
)
from research.compliance.syntax.contract import contract
from research.compliance.syntax.folding import get_truth
from research.compliance.syntax.functions import Function, count_names, get_last_name, is_empty, is_none, list_functions
from research.compliance.syntax.names import Class, to_key
from research.compliance.syntax.tree import Module, Tree, list_children, walk

RULE = 3
SETUP = ("__init__", "__new__", "__post_init__", "__enter__", "__aenter__", "__init_subclass__", "__set_name__", "__setstate__")
SETUP_NAMES = re.compile(r"_*(set_?up|init(iali[sz]e)?|configure)(_\w*)?|_*(setUp|build|reset|prepare)_*")
FIX = "clear it, give it a maxlen, or check its len()"
KINDS = (
    ast.Call
    | ast.Assign
    | ast.AnnAssign
    | ast.AugAssign
    | ast.Delete
    | ast.Compare
    | ast.Subscript
    | ast.For
    | ast.ExceptHandler
)
UNKNOWN = "unknown"  # a container whose kind nothing says


Setting = tuple[list[str], ast.expr | None, ast.expr | None]  # names, the annotation and the value that they get


@dataclass(frozen=True)
class Store:
    """The containers of a class or a module."""

    kinds: dict[str, str] = field(default_factory=dict)  # name -> list, dict, ..., or empty for no container
    bounded: frozenset[str] = frozenset()  # names that something empties, replaces or measures

    @property
    def names(self) -> set[str]:
        """The names of its containers."""
        return {name for name, kind in self.kinds.items() if kind}


def build_store(settings: list[Setting], bounded: set[str]) -> Store:
    """Return the containers among names that are set: the first word on their kind holds."""
    kinds = dict[str, str]()
    limited = {name for names, _, value in settings if value is not None and is_limited(value) for name in names}
    for names, annotation, value in settings:
        for source in filter(None, (annotation, value)):
            if not is_none(source) and (source is annotation or not isinstance(source, ast.Name)):
                kinds |= {name: kinds.get(name) or get_kind(source) for name in names}
    return Store(kinds, frozenset(bounded | limited))


@dataclass
class Reader:
    """Reads the containers of a file's classes and of the file."""

    module: Module
    graph: CallGraph
    mentions: Counter[str]  # how often the tree names something

    @cached_property
    def functions(self) -> list[Function]:
        """The functions of the file that are in no other one."""
        return [function for function in list_functions(self.module) if not function.is_nested]

    @cached_property
    def nodes(self) -> dict[int, list[ast.AST]]:
        """The nodes of each function that matter here, with those of the functions inside it, by its identity."""
        return {id(f.node): [node for node in walk_live(f.node) if isinstance(node, KINDS)] for f in self.functions}

    @contract
    def list_nodes(self, function: Function) -> list[ast.AST]:
        """Return the nodes of a function that matter here."""
        return self.nodes[id(function.node)]

    def may_run(self, function: Function) -> bool:
        """Return whether something may call a function: not a private one whose name no file mentions."""
        name = function.node.name
        return not name.startswith("_") or name.endswith("__") or bool(self.mentions[name] or function.decorators)

    @contract
    def list_bound(self, function: Function) -> frozenset[str]:
        """Return the names that a function binds itself."""
        return self.graph.bound[f"{self.module.name}.{to_key(function)}"]

    @cached_property
    def globals(self) -> Store:
        """The containers of the file."""
        settings, bounded = list_settings(self.module.syntax.body), set[str]()
        for function in filter(self.may_run, self.functions):
            containers = {c.id for node in self.list_nodes(function) for c in iter_bounded(node) if isinstance(c, ast.Name)}
            bounded |= containers - self.list_bound(function)
        return build_store(settings, bounded)

    @cached_property
    def classes(self) -> dict[str, Store]:
        """The containers of each class, by its dotted name."""
        settings, bounded = dict[str, list[Setting]](), dict[str, set[str]]()
        for function in self.functions:
            if function.owner is not None:
                name = function.name.rpartition(".")[0]
                settings.setdefault(name, list_settings(function.owner.body)).extend(self.list_attributes(function))
                bounded.setdefault(name, set()).update(self.find_bounded(function) if self.may_run(function) else ())
        return {name: build_store(settings[name], bounded[name]) for name in settings}

    def list_attributes(self, function: Function) -> list[Setting]:
        """Return what a method sets the attributes of its object to."""
        arguments, settings = {argument.arg: argument.annotation for argument in function.parameters}, list[Setting]()
        for node in self.list_nodes(function):
            if isinstance(node, ast.Assign | ast.AnnAssign):
                names = list(filter(None, (get_attribute(target, {}) for target in list_targets(node))))
                handed = arguments.get(node.value.id) if isinstance(node.value, ast.Name) else None
                settings.append((names, getattr(node, "annotation", handed), node.value))
        return settings

    def find_bounded(self, function: Function) -> set[str]:
        """Return the attributes that a method empties, replaces or measures; to set one up is no replacement."""
        is_start, containers = function.node.name in SETUP, set[str]()
        aliases = find_aliases(self.list_nodes(function))
        for node in self.list_nodes(function):
            is_setting = isinstance(node, ast.Assign | ast.AnnAssign)
            if not is_start or not is_setting:  # `rows = self.rows` sets no attribute
                containers |= {get_attribute(container, {} if is_setting else aliases) for container in iter_bounded(node)}
        return containers - {""}


def walk_live(node: ast.AST) -> list[ast.AST]:
    """Return a node and those below it that matter: not a branch that never runs, nor a test that nothing follows from."""
    nodes = [node]
    for current in nodes:
        truth = get_truth(current.test) if isinstance(current, ast.If) else None
        if isinstance(current, ast.If) and truth is not None:
            nodes += current.body if truth else current.orelse
        elif isinstance(current, ast.If) and not current.orelse and all(map(is_empty, current.body)):
            continue
        elif not isinstance(current, ast.Expr) or not isinstance(current.value, ast.Compare):
            nodes += list_children(current)
    return nodes


@contract
def list_settings(body: list[ast.stmt]) -> list[Setting]:
    """Return what the statements of a class or a module set names to."""
    settings = list[Setting]()
    for statement in body:
        if isinstance(statement, ast.AnnAssign | ast.Assign):
            names = [target.id for target in list_targets(statement) if isinstance(target, ast.Name)]
            settings.append((names, getattr(statement, "annotation", None), statement.value))
    return settings


def get_attribute(node: ast.expr, aliases: dict[str, str]) -> str:
    """Return the name of an attribute of self or cls, or of one that a local name is another word for; empty for others."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, "")
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    return node.attr if is_own and isinstance(node, ast.Attribute) else ""


def find_aliases(nodes: list[ast.AST]) -> dict[str, str]:
    """Return the local names of a method that are another word for an attribute: `rows = self.rows`."""
    pairs = [(node.targets[0], node.value) for node in nodes if isinstance(node, ast.Assign)]
    return {target.id: name for target, value in pairs if isinstance(target, ast.Name) and (name := get_attribute(value, {}))}


@contract
def check(tree: Tree, graph: CallGraph) -> RuleResult:
    """Return the methods and functions that make a container grow which nothing empties or bounds."""
    mentions = Counter[str]()
    for module in tree.modules:
        mentions.update(count_names(module))
    readers = {module.name: Reader(module, graph, mentions) for module in tree.modules}
    units, findings = 0, list[Finding]()
    for reader in readers.values():
        for function in reader.functions:
            is_method, is_cached = function.owner is not None, bool({"cache", "lru_cache"} & {*function.decorators})
            units += is_method or is_cached or touches(reader, function)
            faults = [*judge_globals(reader, function), *judge_cache(function)]
            if is_method and not is_setup(function):
                faults += judge_attributes(readers, graph, function)
            findings += [Finding(function.module.path, line, RULE, function.unit, message) for line, message in faults[:1]]
    return RuleResult(RULE, units, sorted(findings))


def touches(reader: Reader, function: Function) -> bool:
    """Return whether a function reads a container of its module."""
    names = reader.globals.names
    return any(isinstance(node, ast.Name) and node.id in names for node in (walk(function.node) if names else ()))


def is_setup(function: Function) -> bool:
    """Return whether a method is called while an object is set up."""
    name = function.node.name
    return name in SETUP or bool(SETUP_NAMES.fullmatch(name))


def judge_attributes(readers: dict[str, Reader], graph: CallGraph, function: Function) -> Iterator[tuple[int, str]]:
    """Yield the lines where a method makes a container of its object grow that nothing bounds, with a message."""
    owner = graph.get_owner(function)
    reader = readers[function.module.name]
    stores = [*find_stores(readers, graph, owner)] if owner else []
    nodes = reader.list_nodes(function)
    aliases, known = find_aliases(nodes), list_known_keys(nodes)
    bounded = {name for store in stores for name in store.bounded}
    for node in nodes:
        for container, act in iter_grown(node):
            name = get_attribute(container, aliases)
            if name and name not in bounded and grows(stores, name, act) and not is_known(node, known):
                yield getattr(node, "lineno", 0), f"self.{name} grows ({act}) and nothing empties or bounds it; {FIX}"


def is_known(node: ast.AST, known: set[str]) -> bool:
    """Return whether a node only replaces items that are there already."""
    return isinstance(node, ast.Assign) and all(ast.unparse(target) in known for target in list_targets(node))


def find_stores(readers: dict[str, Reader], graph: CallGraph, owner: Class) -> Iterator[Store]:
    """Yield the containers of a class and of its bases in the tree."""
    for kind in graph.iter_bases(owner):
        reader = readers[kind.module]
        yield reader.classes.get(kind.name, Store())


@contract
def grows(stores: list[Store], name: str, act: str) -> bool:
    """Return whether an act makes a container of that name larger, as far as its kind is known."""
    kinds = [store.kinds[name] for store in stores if name in store.kinds]
    kind = next(filter(None, kinds), "" if kinds else UNKNOWN)
    if kind == UNKNOWN:
        return act in SURE_GROWERS
    if act == "[key] =":
        return kind in MAPPINGS
    return bool(kind) and (act != "[key] +=" or kind in DEFAULTS)


def judge_globals(reader: Reader, function: Function) -> Iterator[tuple[int, str]]:
    """Yield the lines where a function makes a container of its module grow that nothing bounds, with a message."""
    nodes, store = reader.list_nodes(function), reader.globals
    names = store.names - store.bounded - reader.list_bound(function)
    known = list_known_keys(nodes) if names else set[str]()
    for node in nodes if names else []:
        for container, act in iter_grown(node):
            name = container.id if isinstance(container, ast.Name) else ""
            if name in names and grows([store], name, act) and not is_known(node, known):
                yield getattr(node, "lineno", 0), f"{name} of the module grows ({act}) and nothing bounds it; {FIX}"


def find_cache(function: Function) -> ast.expr | None:
    """Return the decorator that keeps the results of a function without a bound; None where there is none."""
    for decorator in function.node.decorator_list:
        name = get_last_name(decorator)
        sizes = list_sizes(decorator) if isinstance(decorator, ast.Call) else []
        if name == "cache" or (name == "lru_cache" and any(map(is_none, sizes[:1]))):
            return decorator
    return None


def list_sizes(call: ast.Call) -> list[ast.expr]:
    """Return the size that a call of lru_cache gives."""
    return [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "maxsize")]


def judge_cache(function: Function) -> Iterator[tuple[int, str]]:
    """Yield the line of a cache without a bound on a function with parameters, with a message."""
    decorator = find_cache(function)
    args = function.node.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    few = [argument for argument in named if argument.annotation is not None and is_small(argument.annotation)]
    if decorator is not None and len(few) < len(named):
        yield decorator.lineno, "a cache without a bound on a function with parameters; give lru_cache a maxsize"


def is_small(annotation: ast.expr) -> bool:
    """Return whether a type has few values: bool, or a Literal."""
    return ast.unparse(annotation).split("[")[0].split(".")[-1] in ("bool", "Literal")
