"""The dotted names of modules that a file imports."""

import ast

from research.compliance.syntax.contract import contract
from research.compliance.syntax.tree import Module, find_home


@contract
def list_module_names(module: Module, tree: set[str]) -> set[str]:
    """Return the names that mean modules here, with each of their first parts: torch, torch.nn, torch.nn.functional.

    What `from a import b` binds may be a module or not: in small letters it counts as one, but where `a` is of the `tree`.
    """
    names = set[str]()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = (alias.asname or alias.name).split(".")
                names |= {".".join(parts[:number]) for number in range(1, len(parts) + 1)}
        elif isinstance(node, ast.ImportFrom):
            home = find_home(module, node)
            may_be = [alias for alias in node.names if alias.name.islower()]
            names |= {alias.asname or alias.name for alias in may_be if home not in tree or f"{home}.{alias.name}" in tree}
    return names
