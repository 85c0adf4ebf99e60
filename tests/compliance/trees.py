"""Small trees of Python files for the checker."""

from pathlib import Path
from textwrap import dedent

from research.compliance.syntax.tree import Tree, read_tree


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    """Write files below a folder, each with its indentation taken away; return the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return folder


def make_tree(folder: Path, **files: str) -> Tree:
    """Return the tree of these files: `a="..."` is a.py, `pkg__b="..."` is pkg/b.py."""
    return read_tree(write_tree(folder, {f"{name.replace('__', '/')}.py": text for name, text in files.items()}))
