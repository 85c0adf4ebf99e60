"""Rule 8: a program is what its text says. No eval, no dynamic names, no keywords handed on unread, no patched modules."""

import ast
from collections.abc import Iterator

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.functions import get_last_name, list_functions, walk_own
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 8
EVALUATORS = {"eval", "exec"}  # critical: any text becomes the program
DYNAMIC = {"getattr": 1, "setattr": 1, "delattr": 1, "__import__": 0, "import_module": 0}  # -> where the name stands
Fault = tuple[int, str, bool]


def check(tree: Tree) -> RuleResult:
    """Return the functions and module bodies whose meaning is only known when they run."""
    findings, units = list[Finding](), 0
    for module in tree.modules:
        imported, evaluators = list_imported(module), list_evaluators(module)
        bodies: list[tuple[str, ast.AST]] = [(module.name, ast.Module([*iter_top(module)], []))]
        bodies += [(function.unit, function.node) for function in list_functions(module)]
        units += len(bodies)
        for unit, body in bodies:
            faults = [*find_calls(body, evaluators), *find_patches(body, imported), *find_handed_on(body)]
            findings += [Finding(module.path, line, RULE, unit, message, bad) for line, message, bad in faults]
    return RuleResult(RULE, units, findings, len({(f.path, f.unit) for f in findings}))


def iter_top(module: Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module that run at its import, those in classes included."""
    left = [*module.syntax.body]
    while left:
        statement = left.pop(0)
        if isinstance(statement, ast.ClassDef):
            left = [*statement.body, *left]
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement


def list_imported(module: Module) -> set[str]:
    """Return the names of a module that are imported."""
    imports = [node for node in module.nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}


def list_evaluators(module: Module) -> set[str]:
    """Return the names by which a module knows eval and exec."""
    names = set(EVALUATORS)
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "builtins":
            names |= {alias.asname or alias.name for alias in node.names if alias.name in EVALUATORS}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute | ast.Call):
            is_alias = get_last_name(node.value) in EVALUATORS and not isinstance(node.value, ast.Call)
            if is_alias or get_text(node.value) in EVALUATORS:
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def get_text(node: ast.expr) -> str:
    """Return the constant name that a getattr reads; empty for anything else."""
    is_getattr = isinstance(node, ast.Call) and get_last_name(node) == "getattr" and len(node.args) > 1
    name = node.args[1] if isinstance(node, ast.Call) and is_getattr else None
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else ""


def find_calls(body: ast.AST, evaluators: set[str]) -> Iterator[Fault]:
    """Yield the calls of a body that run a text, or read a name that is a value."""
    for node in walk_own(body):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield node.lineno, "import * binds names that no reader sees; name them", False
        if not isinstance(node, ast.Call):
            continue
        name = get_last_name(node)
        is_builtin = isinstance(node.func, ast.Name) or (
            isinstance(node.func, ast.Attribute) and get_last_name(node.func.value) in ("builtins", "importlib")
        )
        if is_builtin and (name in evaluators or get_text(node) in EVALUATORS):
            yield node.lineno, f"{name} runs a text as the program; parse it, as by ast.literal_eval or json", True
        elif is_builtin and name == "compile":
            yield node.lineno, "compile makes a program of a text; parse it", False
        elif is_builtin and is_dynamic(name, node.args):
            yield node.lineno, f"{name} with a name that is a value; use a mapping, or write the name", False


def is_dynamic(name: str, arguments: list[ast.expr]) -> bool:
    """Return whether a call reads or sets a name that is a value."""
    index = DYNAMIC.get(name, len(arguments))
    return index < len(arguments) and not isinstance(arguments[index], ast.Constant)


def find_patches(body: ast.AST, imported: set[str]) -> Iterator[Fault]:
    """Yield the assignments of a body to attributes of what is imported."""
    for node in walk_own(body):
        is_set = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
        if isinstance(node, ast.Attribute) and is_set and isinstance(node.value, ast.Name) and node.value.id in imported:
            yield node.lineno, f"{node.value.id}.{node.attr} is patched for everybody; pass it on instead", False


def find_handed_on(body: ast.AST) -> Iterator[Fault]:
    """Yield the call to which a function hands on its **kwargs."""
    if not isinstance(body, ast.FunctionDef | ast.AsyncFunctionDef) or body.args.kwarg is None:
        return
    name = body.args.kwarg.arg
    for node in walk(body):
        keywords = node.keywords if isinstance(node, ast.Call) else []
        if any(word.arg is None and isinstance(word.value, ast.Name) and word.value.id == name for word in keywords):
            yield body.lineno, f"**{name} is handed on unread; name the parameters that are meant", False
            return
