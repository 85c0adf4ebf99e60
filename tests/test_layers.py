"""Arrows point down: a room imports only rooms of lower floors, and each heavy library has one room."""

import ast
from pathlib import Path

import pytest

RESEARCH = Path(__file__).resolve().parents[1] / "research"
FLOORS = [
    ["ranges", "seeding", "metrics", "losses", "processes", "signals", "trial", "native"],
    ["command", "when"],
    ["dataset", "order", "nn", "folder"],
    ["shards"],
    ["checkpoint"],
    ["callback"],
    ["snapshot", "memory", "jsonl"],
    ["store"],
    ["models", "optim", "data", "callbacks", "tracking", "health", "gradients"],
    ["evaluation"],
    ["trainer", "preflight"],
    ["trained"],
    ["run"],
    ["export", "generate"],
    ["sweeps"],
    ["pictures", "preset", "gap"],
    ["report"],
]
ROOM_OF = {
    "accelerate": {"trainer"},
    "mlflow": {"tracking"},
    "hydra": {"run", "trained", "preflight"},
    "omegaconf": {"run", "trained", "preflight"},
    "transformers": {"export", "models"},
    "tokenizers": {"export"},
    "gguf": {"export"},
    "llama_cpp": {"export"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "optuna": {"trial", "sweeps", "pictures", "report"},
}
FILES = sorted(RESEARCH.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(RESEARCH).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "research":
            names |= {f"research.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(RESEARCH)))
def test_imports_point_down(path: Path) -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    if room(path) == "__init__":
        return
    assert room(path) in floor, "a new room needs a floor in FLOORS"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "research" and parts[1] != room(path):
            assert floor[parts[1]] < floor[room(path)], f"{room(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(RESEARCH)))
def test_heavy_libraries_have_one_room(path: Path) -> None:
    for name in imported(path):
        library = name.split(".")[0]
        assert room(path) in ROOM_OF.get(library, {room(path)}), f"{library} in {path.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(RESEARCH)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_the_entry_is_short() -> None:
    assert len((RESEARCH.parent / "train.py").read_text().splitlines()) < 25
