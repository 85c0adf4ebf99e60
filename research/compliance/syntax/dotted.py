"""The dotted names of modules that a file imports."""

import ast

from research.compliance.syntax.tree import Module


def list_module_names(module: Module) -> set[str]:
    """Return the names that mean modules here, with each of their first parts: torch, torch.nn, torch.nn.functional.

    What `from a import b` binds may be a module or not: in small letters it counts as one.
    """
    names = set[str]()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = (alias.asname or alias.name).split(".")
                names |= {".".join(parts[:number]) for number in range(1, len(parts) + 1)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names if alias.name.islower()}
    return names
