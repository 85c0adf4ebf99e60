"""Names that loops take from tables of texts which a reader sees."""

import ast

from research.compliance.syntax.contract import contract
from research.compliance.syntax.endless import COMPREHENSIONS, find_assigned
from research.compliance.syntax.functions import get_last_name
from research.compliance.syntax.tree import Module, walk


@contract
def find_shown(module: Module, nodes: list[ast.AST]) -> set[int]:
    """Return the identities of the names that loops over tables of texts set: `for name in ("a", "b")`, or over a constant."""
    tables = {name: value for name, value in find_assigned([*module.syntax.body]).items() if name.isupper()}
    tables |= {name: value for name, value in find_assigned(nodes).items() if isinstance(value, ast.Tuple)}
    shown = set[int]()
    for node in nodes:
        for part in node.generators if isinstance(node, COMPREHENSIONS) else [node] if isinstance(node, ast.For) else []:
            targets = part.target.elts if isinstance(part.target, ast.Tuple) else [part.target]
            for column, target in enumerate(targets):
                names = [child for child in walk(node) if isinstance(child, ast.Name) and child.id == ast.unparse(target)]
                is_kept = sum(isinstance(child.ctx, ast.Store) for child in names) == 1
                if is_kept and is_table(part.iter, column, tables):
                    shown |= {id(child) for child in names}
    return shown


@contract
def is_table(node: ast.expr, column: int, tables: dict[str, ast.expr]) -> bool:
    """Return whether a column of a tuple, list, set or dict, or of the name of one, has texts alone."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("items", "keys"):
        node = node.func.value
    if isinstance(node, ast.Call) and get_last_name(node) == "zip" and len(node.args) > column:
        node, column = node.args[column], 0
    if isinstance(node, ast.Name):
        node = tables.get(node.id, node)
    rows = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    if isinstance(node, ast.Dict) and not column:
        rows = [key or node for key in node.keys]
    cells = [row.elts[column] if isinstance(row, ast.Tuple) and len(row.elts) > column else row for row in rows]
    return bool(cells) and all(isinstance(cell, ast.Constant) and isinstance(cell.value, str) for cell in cells)
