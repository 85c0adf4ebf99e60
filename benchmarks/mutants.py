"""What contracts find that tests alone miss: one fault at a time is put into the code, and the room's tests look for it.

    python -m benchmarks.mutants [--mutants 180] [--table experiments/mutants]

Each mutant is tried by the tests without contracts. One that survives is tried again with the contracts, as a user's process
has them, and apart from that with the import hook that checks all types while tests run. Faults come from cosmic-ray
(`pip install cosmic-ray`). With --table each mutant is stored as soon as it was tried: after a kill the same command goes on.
"""

import csv
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import harness
from research.contracts import contract

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {  # a room's modules that its tests drive in this process, and those tests
    "options": (
        ("condition", "files", "signature", "source", "conf", "habits", "renames"),
        (
            "tests/options/test_files.py",
            "tests/options/test_renames.py",
            "tests/options/test_signature.py",
            "tests/test_nesting.py",
        ),
    ),
    "files": (("lines", "cells", "columns", "features", "labels", "documents", "sources", "quality"), ("tests/files",)),
    "composition": (
        ("compose", "overrides", "complete", "pretrained", "recorded"),
        ("tests/composition", "tests/test_nesting.py"),
    ),
}
LEFT_OUT = ("Bit", "RemoveDecorator", "Variable")  # of annotations, of the contracts themselves, of names that are not there
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv*", "outputs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
OURS = {"research", "benchmarks", "experiments", "hydra_plugins"}  # packages that a child imports from its copy
ARMS = ("tests", "contracts", "hook")
COLUMNS = ("room", "module", "operator", "occurrence", "killed_by")
TIMEOUT = 300  # seconds for the tests of a room; a mutant that needs more has been noticed
RESULTS = "results.csv"


class Mutant(NamedTuple):
    """One fault in one place."""

    room: str
    module: str
    operator: str
    occurrence: int

    @property
    def file(self) -> str:
        """The file that it is in, from the root."""
        return f"research/{self.room}/{self.module}.py"


@contract
def list_mutants(count: int) -> list[Mutant]:
    """Return mutants of the rooms in turn; always the same ones of the same code, and the first of a larger number."""
    from cosmic_ray.plugins import operator_names

    names = [name for name in operator_names() if not any(word in name for word in LEFT_OUT)]
    rooms = list[list[Mutant]]()
    for room, (modules, _) in ROOMS.items():
        rooms.append([mutant for module in modules for name in names for mutant in iter_occurrences(room, module, name)])
        random.Random(0).shuffle(rooms[-1])
    return [mutant for together in zip(*rooms, strict=False) for mutant in together][:count]


def iter_occurrences(room: str, module: str, name: str) -> Iterator[Mutant]:
    """Yield the mutants that an operator makes of a module."""
    mutant = Mutant(room, module, name, 0)
    for occurrence in range(len((ROOT / mutant.file).read_text())):
        if mutate(mutant._replace(occurrence=occurrence)) is None:
            return
        yield mutant._replace(occurrence=occurrence)


def mutate(mutant: Mutant) -> str | None:
    """Return the code of a mutant; None where its operator finds fewer places."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    code: str | None = mutate_code((ROOT / mutant.file).read_text(), get_operator(mutant.operator)(), mutant.occurrence)
    return code


def run_tests(folder: Path, room: str, arm: str) -> None:
    """Exit with pytest's code for the tests of a room in a copy of the tree: in a child process, of which nothing is left."""
    os.chdir(folder)
    sys.dont_write_bytecode = True  # a mutant of the same second and size would be taken for the one before
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:0] = [str(folder), str(folder / "tests")]
    import jaxtyping

    if arm != "hook":
        jaxtyping.install_import_hook = lambda *_, **__: None
    import research.contracts

    if arm != "contracts":
        research.contracts.contract = lambda target: target
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    options = [
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--import-mode=importlib",
        "-o",
        "filterwarnings=",
    ]
    os._exit(pytest.main([*options, *ROOMS[room][1]]))


@contract
def passes(folder: Path, room: str, arm: str) -> bool:
    """Return whether the tests of a room pass in a copy of the tree."""
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, room, arm))
    child.start()
    child.join(TIMEOUT)
    child.kill()
    child.join()
    return child.exitcode == 0


@contract
def find_killer(mutant: Mutant, folder: Path) -> str:
    """Return the first arm whose tests find a mutant, of those without contracts first; empty where none does."""
    file, original = folder / mutant.file, (ROOT / mutant.file).read_text()
    file.write_text(mutate(mutant) or original)
    try:
        if not passes(folder, mutant.room, "tests"):
            return "tests"
        return " and ".join(arm for arm in ARMS[1:] if not passes(folder, mutant.room, arm))
    finally:
        file.write_text(original)


@contract
def read_rows(path: Path) -> dict[Mutant, str]:
    """Return what has killed the mutants of a file; nothing where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            Mutant(row["room"], row["module"], row["operator"], int(row["occurrence"])): row["killed_by"]
            for row in csv.DictReader(file)
        }


@contract
def main(mutants: int, table: Path | None) -> harness.Results:
    """Try all mutants that were not tried yet; return the shares that tests and contracts kill."""
    path = table / RESULTS if table else Path(os.devnull)
    killers = read_rows(path) if table else {}
    chosen = list_mutants(mutants)
    import torch  # noqa: F401  (in this process once, for all its children)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        shutil.copytree(ROOT, folder, ignore=LEFT_BEHIND)
        for room in ROOMS:
            if broken := [arm for arm in ARMS if not passes(folder, room, arm)]:
                raise ValueError(f"the tests of {room} fail without a fault: {broken}")
        for index, mutant in enumerate(chosen):
            if mutant not in killers:
                killers[mutant] = find_killer(mutant, folder)
                print(
                    f"{index + 1:>4} of {len(chosen)}  {' '.join(map(str, mutant)):<80} {killers[mutant] or 'alive'}",
                    flush=True,
                )
                if table:
                    write_rows(path, killers)
    return count_killed({mutant: killers[mutant] for mutant in chosen})


@contract
def write_rows(path: Path, killers: dict[Mutant, str]) -> None:
    """Write what has killed each mutant, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *((*mutant, killer) for mutant, killer in killers.items())])
    draft.replace(path)


def count_killed(killers: dict[Mutant, str]) -> harness.Results:
    """Print the table of rooms; return the shares of all mutants that each arm kills, and of survivors that contracts find."""
    table = harness.Table("mutants", "tried", "tests", "contracts more", "hook more", "alive")
    for room in (*ROOMS, "all"):
        counts = Counter(killer for mutant, killer in killers.items() if room in (mutant.room, "all"))
        more = [sum(count for killer, count in counts.items() if arm in killer) for arm in ARMS[1:]]
        table.add(room, *map(str, (counts.total(), counts["tests"], *more, counts[""])))
    survivors = [killer for killer in killers.values() if killer != "tests"]
    found = sum("contracts" in killer for killer in survivors)
    killed = 1 - len(survivors) / max(1, len(killers))
    return {"killed by tests": killed, "of the rest by contracts": found / max(1, len(survivors))}


if __name__ == "__main__":
    table = {"type": Path, "help": "a folder: keep results.csv there, and go on with it"}
    harness.run(main, __doc__, mutants=180, table=table)
