"""Arrows point down: a room imports only rooms of lower floors, each heavy library lives in few rooms, words are plain."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
from program import ROOT

RESEARCH = ROOT / "research"
PURE = ["cli", "contracts", "losses", "metrics", "ranges", "rules", "run_dir", "seeding", "signals"]  # of the hall
FLOORS = [  # the lowest first; rooms of one floor do not import each other
    PURE,
    ["kernels", "files", "options"],
    ["nn", "data", "optim"],
    ["models", "training"],
    ["tracking"],
    ["composition"],
    ["preflight"],
    ["load"],
    ["run"],
    ["callbacks", "report", "export", "generate", "finetune", "distill"],
    ["sweep", "merge", "evaluate"],  # exports are judged by their own clients
    ["registry", "jobs", "pbt"],
    ["monitoring"],
    ["api"],
]
BESIDE = "compliance"  # it reads any tree, and imports nothing of this one
IMPORTERS = {  # of each heavy library
    "accelerate": {"training"},
    "mlflow": {"tracking", "registry"},
    "hydra": {"run", "load", "composition", "preflight", "sweep", "pbt"},
    "omegaconf": {"run", "load", "composition", "preflight", "merge", "sweep", "pbt"},
    "wandb": {"files", "tracking"},
    "tensorboard": {"tracking"},
    "optuna": {"tracking", "report", "sweep", "pbt"},
    "torchmetrics": {"metrics"},
    "pyarrow": {"files"},
    "PIL": {"files"},
    "datasets": {"files"},
    "huggingface_hub": {"files"},
    "sklearn": {"data"},
    "transformers": {"data", "models", "export", "generate"},
    "tokenizers": {"data", "models", "export", "generate"},
    "gguf": {"export"},
    "llama_cpp": {"export"},
    "lm_eval": {"evaluate"},
    "onnx": {"export"},
    "peft": {"finetune"},
    "onnxruntime": {"export"},
    "fastapi": {"api"},
    "sqlalchemy": {"tracking", "jobs"},
}
OLD_WORDS = {
    *("told", "asked", "said", "found", "given", "place", "spelt", "judged", "settled", "meant"),
    *("heed", "heard", "in_vain", "goes_on", "unsure", "lift", "aside", "back_end"),
}
FILES = sorted(RESEARCH.rglob("*.py"))
PLUGINS = sorted((ROOT / "hydra_plugins").rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def get_room(path: Path) -> str:
    return path.relative_to(RESEARCH).parts[0].removesuffix(".py")


def list_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "research":
            names |= {f"research.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def list_names(path: Path) -> set[str]:
    """Every name that a file defines: functions, classes, parameters, attributes and variables."""
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def test_there_are_at_most_fourteen_floors() -> None:
    assert len(FLOORS) <= 14


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(RESEARCH)))
def test_imports_point_down(path: Path) -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    room = get_room(path)
    if room == "__init__":
        return
    if room == BESIDE:
        for name in list_imports(path):
            home = f"research.{BESIDE}.syntax" if path.parent.name == "syntax" else f"research.{BESIDE}"
            is_own = name == home or name.startswith((f"{home}.", f"research.{BESIDE}.findings"))
            assert is_own or name.split(".")[0] in sys.stdlib_module_names, f"{room} imports {name}"
        return
    assert room in floor, "a new room needs a floor in FLOORS"
    for name in list_imports(path):
        parts = name.split(".")
        assert parts[0] != "hydra_plugins", f"{room} imports {name}: plugins are shells over rooms"
        if parts[0] == "research" and parts[1] != room:
            below = floor[parts[1]] < floor[room] or (room in PURE and parts[1] in PURE)
            assert below, f"{room} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(RESEARCH)))
def test_heavy_libraries_live_in_few_rooms(path: Path) -> None:
    for name in list_imports(path):
        library = name.split(".")[0]
        assert get_room(path) in IMPORTERS.get(library, {get_room(path)}), f"{library} in {path.name}"


@pytest.mark.parametrize("path", [*FILES, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_hall_and_rooms_are_small() -> None:
    assert len(list(RESEARCH.glob("*.py"))) <= 12
    rooms = [path for path in RESEARCH.iterdir() if path.is_dir() and path.name not in ("__pycache__", BESIDE)]
    beside = [[*(RESEARCH / BESIDE).glob("*.py")], [*(RESEARCH / BESIDE / "syntax").glob("*.py")]]  # two rooms
    for files in [[*room.rglob("*.py")] for room in rooms] + beside:
        room = files[0].parent
        assert len(files) <= 20, room.name
        assert sum(len(path.read_text().splitlines()) for path in files) <= 3000, room.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(RESEARCH)))
def test_names_of_ranges_stand_in_one_file(path: Path) -> None:
    """The preflight reads those of ranges.py alone: it would not check a setting whose range has a name elsewhere."""
    named = [node for node in parse(path).body if isinstance(node, ast.Assign) and "Annotated[" in ast.unparse(node)]
    assert path.name == "ranges.py" or not named


def test_plugins_are_shells() -> None:
    """What Hydra must find by itself, and nothing else: the work is in research/sweep and research/pbt."""
    assert {path.name for path in PLUGINS} == {"__init__.py", "config.py", "sweeper.py"}


@pytest.mark.parametrize("path", [*FILES, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_old_word_is_a_name(path: Path) -> None:
    """DESIGN's plain words: each of these stood for several things."""
    assert not list_names(path) & OLD_WORDS


@pytest.mark.parametrize("path", [*FILES, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_text_files_have_an_encoding(path: Path) -> None:
    """Without one it is the machine's: ASCII in some containers, another one on Windows."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and not any(keyword.arg == "encoding" for keyword in node.keywords):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            is_text = not {"r", "w", "a", "x", "r+", "w+"}.isdisjoint(modes) or not node.args
            is_method = isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text")
            assert not is_method if name != "open" else not is_text, f"{path.name}:{node.lineno} has no encoding"


def test_the_entry_is_short() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) < 25
