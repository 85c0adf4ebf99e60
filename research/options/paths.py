"""What is at a path that somebody types, by names alone: nothing is read."""

import os
import re
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from research.contracts import contract

MAX_FILES, MAX_FOLDERS = 1000, 20  # of a folder that are looked at


@contract
def list_kinds(path: Path) -> tuple[set[str], set[str]]:
    """Return the suffixes of a file, or of the first files of a folder, and of those of its sub-folders."""
    if not path.is_dir():
        return {path.suffix.lower()}, set()
    suffixes: tuple[set[str], set[str]] = (set(), set())
    with suppress(OSError):
        for number, item in enumerate(islice(path.iterdir(), MAX_FILES)):
            if item.is_dir() and number < MAX_FOLDERS:
                inner = (Path(file) for _, _, files in islice(os.walk(item), 3) for file in files[:9])
                suffixes[1].update(file.suffix.lower() for file in inner)
            elif not item.is_dir():
                suffixes[0].add(item.suffix.lower())
    return suffixes


@contract
def describe_id(typed: str) -> str:
    """Return how a model of the hub becomes a folder, for what may be its id, as gpt2 or Qwen/Qwen3-0.6B; else nothing."""
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", typed) and not os.path.exists(typed.partition("/")[0])
    return f"a model of the hub is fetched before: hf download {typed} --local-dir FOLDER; give that FOLDER" if is_id else ""


@contract
def find_near_paths(typed: str, path: Path) -> tuple[list[str], list[Path]]:
    """Return the lines of a path that is not there, and what is there that is called nearly so, as one would type it."""
    near = next(parent for parent in path.parents if os.path.exists(parent))
    wanted, *rest = path.relative_to(near).parts
    names = [item.name for item in near.iterdir()] if near.is_dir() and os.access(near, os.R_OK) else []
    others = [near / name for name in get_close_matches(wanted, names, cutoff=0.7) if near.joinpath(name, *rest).exists()]
    shown = [
        other.joinpath(*rest) if Path(typed).is_absolute() else Path(os.path.relpath(other.joinpath(*rest))) for other in others
    ]
    return [f"there is no file or folder {path}", f"looked from {Path.cwd()}; there is {near}"], shown
