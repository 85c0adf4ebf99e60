"""Rule 8: a program is what its text says. No eval, no dynamic names, no keywords handed on unread, no patched modules.

A name that a loop takes from a table of texts is no dynamic name: the text shows which attributes are meant.
"""

import ast
from collections.abc import Iterator

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import FunctionNode, get_last_name, list_functions, walk_own, walk_top
from research.compliance.syntax.names import list_bound, read_imports
from research.compliance.syntax.tables import find_shown
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 8
EVALUATORS = {"eval", "exec", "compile"}
RUNNERS = {"run_path", "run_module", "FunctionType", "CodeType"}  # of runpy and types
DYNAMIC = {
    **{"getattr": 1, "setattr": 1, "delattr": 1, "__import__": 0, "import_module": 0, "attrgetter": 0, "methodcaller": 0},
    **{"__getattribute__": 0, "__setattr__": 0, "__delattr__": 0},
}  # -> where the name stands; one later for `object.__setattr__(x, name, value)`
SPACES = {"globals", "locals", "vars"}
WRITERS = {"update", "setdefault", "pop", "__setitem__", "clear"}
Fault = tuple[int, str, bool]


@contract
def check(tree: Tree) -> RuleResult:
    """Return the functions and module bodies whose meaning is only known when they run."""
    findings, units = list[Finding](), 0
    for module in tree.modules:
        imports = read_imports(module, module.nodes)
        top = [*walk_top(module.syntax)]
        shadowed = list_shadowed(module, top, imports)
        bodies: list[tuple[str, FunctionNode | None]] = [(module.name, None)]
        bodies += [(function.unit, function.node) for function in list_functions(module)]
        units += len(bodies)
        for unit, body in bodies:
            own, nodes = (list_bound(body), list_nodes(body)) if body is not None else (frozenset[str](), top)
            faults = [*find_evaluators(nodes, imports, own | shadowed), *find_names(nodes, find_shown(module, nodes))]
            faults += [*find_patches(nodes, {name: to for name, to in imports.items() if name not in own})]
            faults += [*(find_spaces(nodes) if not unit.endswith(".__setstate__") else ())]
            faults += [*(find_handed_on(body) if body is not None else ())]
            findings += [Finding(module.path, line, RULE, unit, message, bad) for line, message, bad in faults]
    return RuleResult(RULE, units, findings, len({(f.path, f.unit) for f in findings}))


@contract
def list_nodes(body: FunctionNode) -> list[ast.AST]:
    """Return the nodes of a function with those of its lambdas, its defaults and its decorators."""
    outer = [*body.args.defaults, *body.args.kw_defaults, *body.decorator_list]
    nodes = [child for part in outer if part is not None for child in walk(part)]
    return nodes + [child for node in walk_own(body) for child in (walk(node) if isinstance(node, ast.Lambda) else [node])]


def list_shadowed(module: Module, top: list[ast.AST], imports: dict[str, str]) -> set[str]:
    """Return the names at the top of a module that are no longer Python's own: a function named eval, say."""
    names = {name for name, dotted in imports.items() if not dotted.startswith("builtins.")}
    names |= {node.id for node in top if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.name for node in module.syntax.body if isinstance(node, FunctionNode | ast.ClassDef)}


def find_evaluators(nodes: list[ast.AST], imports: dict[str, str], shadowed: frozenset[str]) -> Iterator[Fault]:
    """Yield the places that name eval, exec or compile: to call them, to hand them on, or to give them another name."""
    for node in nodes:
        name = ""
        if isinstance(node, ast.Name) and node.id not in shadowed:
            name = imports.get(node.id, node.id).removeprefix("builtins.")
        elif isinstance(node, ast.Attribute) and is_builtins(node.value, imports):
            name = node.attr
        elif isinstance(node, ast.Call) and get_last_name(node) == "getattr" and is_builtins(node.args[0], imports):
            name = get_text(node.args[1])
        elif isinstance(node, ast.Subscript) and (is_builtins(node.value, imports) or get_last_name(node.value) in SPACES):
            name = get_text(node.slice)
        if name in EVALUATORS:
            line = getattr(node, "lineno", 0)
            yield line, f"{name} makes a program of a text; parse it, as by ast.literal_eval or json", name != "compile"


def is_builtins(node: ast.expr, imports: dict[str, str]) -> bool:
    """Return whether an expression is the module of Python's own names: builtins, __builtins__, vars(builtins)."""
    if isinstance(node, ast.Call) and get_last_name(node) == "vars" and node.args:
        node = node.args[0]
    return isinstance(node, ast.Name) and (imports.get(node.id) == "builtins" or node.id == "__builtins__")


@contract
def get_text(node: ast.expr) -> str:
    """Return the text that a constant is; empty for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def find_names(nodes: list[ast.AST], shown: set[int]) -> Iterator[Fault]:
    """Yield the places of a body that read or set a name which its text does not show."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield node.lineno, "import * binds names that no reader sees; name them", False
        if isinstance(node, ast.Call) and is_dynamic(node, shown):
            yield node.lineno, f"{get_last_name(node)} with a name that is a value; use a mapping, or write the name", False
        elif isinstance(node, ast.Call) and get_last_name(node) in RUNNERS:
            yield node.lineno, f"{get_last_name(node)} makes a program of what it is given; import it, or write it", False


def is_dynamic(call: ast.Call, shown: set[int]) -> bool:
    """Return whether a call reads or sets a name that is a value."""
    name, arguments = get_last_name(call), call.args
    index = DYNAMIC.get(name, len(arguments))
    if name.startswith("__") and isinstance(call.func, ast.Attribute):
        index += get_last_name(call.func.value) == "object"
    elif isinstance(call.func, ast.Attribute) and get_last_name(call.func.value) not in ("builtins", "importlib", "operator"):
        return False  # a method of one's own
    named = arguments[index] if index < len(arguments) else None
    return named is not None and not isinstance(named, ast.Constant) and id(named) not in shown


def find_patches(nodes: list[ast.AST], imports: dict[str, str]) -> Iterator[Fault]:
    """Yield the places of a body that set an attribute of what is imported."""
    extended = {id(node.target) for node in nodes if isinstance(node, ast.AugAssign)}  # `os.environ |= x` is no other object
    for node in nodes:
        owner, name = None, ""
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            owner, name = node.value, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            owner, name = node.args[0], ast.unparse(node.args[1])
        if isinstance(owner, ast.Name) and owner.id in imports and not (id(node) in extended and name == "environ"):
            yield owner.lineno, f"{owner.id}.{name} is patched for everybody; pass it on instead", False


def find_spaces(nodes: list[ast.AST]) -> Iterator[Fault]:
    """Yield the places of a body that use names as items: `globals()[name]`, `vars(x)["a"] = 1`, `x.__dict__.update(...)`."""
    for node in nodes:
        owner: ast.expr | None = None
        if isinstance(node, ast.Subscript) and not (isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Constant)):
            owner = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITERS:
            owner = node.func.value
        is_space = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id in SPACES
        is_read = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
        text = ast.unparse(owner) if owner is not None else ""
        if owner is not None and (is_space or text.endswith(".__dict__") or (text == "sys.modules" and not is_read)):
            yield owner.lineno, f"{text[:40]} is used as a table of names; write the attribute by its name", False


def find_handed_on(body: FunctionNode) -> Iterator[Fault]:
    """Yield the call to which a function hands on its **kwargs. Those whose types are known, as P.kwargs, may be."""
    kwarg = body.args.kwarg
    if kwarg is None or body.name == "__init_subclass__":
        return
    annotation = ast.unparse(kwarg.annotation) if kwarg.annotation is not None else ""
    if annotation.endswith(".kwargs") or "Unpack[" in annotation:
        return
    names, nodes = {kwarg.arg}, walk(body)
    for node in nodes:
        if isinstance(node, ast.Assign) and get_whole(node.value) in names:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    words = [word for node in nodes if isinstance(node, ast.Call) for word in node.keywords]
    if any(word.arg is None and get_whole(word.value) in names for word in words):
        yield body.lineno, f"**{kwarg.arg} is handed on unread; name the parameters that are meant", False


def get_whole(node: ast.expr) -> str:
    """Return the name whose items an expression holds: `x`, `dict(x)`, `x.copy()`, `{**x}`, `x | y`; empty for others."""
    if isinstance(node, ast.BinOp):
        node = node.left
    elif isinstance(node, ast.Dict) and None in node.keys:
        node = node.values[node.keys.index(None)]
    elif isinstance(node, ast.Call) and get_last_name(node) in ("dict", "copy"):
        node = node.func.value if isinstance(node.func, ast.Attribute) else node.args[0] if node.args else node
    return node.id if isinstance(node, ast.Name) else ""
