"""What the campaign has found: rows, kept cell by cell so that a campaign that was killed goes on, and the table for people."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from research.contracts import contract
from research.run_dir import sync
from research.tracking.environment import run_git

RESULTS, UNFINISHED = "results.csv", "unfinished.csv"  # of the last campaign, and of one that has not ended
BEGIN, END = "<!-- table: make faults writes it -->\n", "<!-- end of table -->"


@dataclass
class Row:
    """How often a fault was tried on a system, and with which outcomes."""

    fault: str
    system: str = "grokbit"
    times: int = 0
    survived: int = 0  # goes on by itself from the newest checkpoint that was saved and is not damaged
    error: int = 0  # ends with an error: it noticed the damage and tried nothing else
    lost: int = 0  # goes on from an older checkpoint
    wrong: int = 0  # goes on silently from numbers that were never saved as one checkpoint, or to other numbers
    remark: str = ""
    commit: str = ""  # of this repository, when it was tried
    cell: str = ""

    @contract
    def count(self, outcome: str) -> None:
        self.times += 1
        setattr(self, outcome, getattr(self, outcome) + 1)

    def format_cell(self) -> str:
        """Return how many faults were survived, for people."""
        if not self.times:
            return self.remark
        return f"{self.survived} of {self.times}" + (f", {self.wrong} silently wrong" if self.wrong else "")


NUMBERS = ("times", "survived", "error", "lost", "wrong")
COLUMNS = [item.name for item in fields(Row)]


@dataclass
class Cell:
    """What is tried at once, and found again by its name: a fault on a system, or several that share what they need."""

    work: Callable[..., Row | list[Row]]
    args: tuple[object, ...] = ()

    @property
    def name(self) -> str:
        texts = [getattr(arg, "name", None) or str(arg) for arg in self.args]
        return f"{self.work.__name__}({', '.join(texts)})"

    @contract
    def run(self, commit: str) -> list[Row]:
        """Return its rows."""
        rows = result if isinstance(result := self.work(*self.args), list) else [result]
        for row in rows:
            row.cell, row.commit = self.name, commit
        return rows


@contract
def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines: list[dict[str, Any]] = list(csv.DictReader(file))
    return [Row(**line | {key: int(line[key]) for key in NUMBERS}) for line in lines]


@contract
def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows, whole or not at all, and so that they outlive a power cut."""
    from experiments.base import write_csv

    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, COLUMNS, map(asdict, rows))
    sync(path)


@contract
def merge(old: list[Row], new: list[Row], complete: bool) -> list[Row]:
    """Return the new rows, and old ones of what was not tried again: in a complete campaign, peers that are not here."""
    faults = list(dict.fromkeys(row.fault for row in (new + old if complete else old + new)))
    tried = {(row.fault, row.system): row for row in new}
    if complete:
        old = [row for row in old if any(row.fault == fault for fault, _ in tried)]
    rows = {(row.fault, row.system): row for row in old} | tried
    return sorted(rows.values(), key=lambda row: faults.index(row.fault))


@contract
def try_cells(cells: Iterable[Cell], folder: Path | None) -> list[Row]:
    """Try each cell, and print its rows. With a folder they are stored there, and those that are stored are not tried again."""
    rows, commit = read_rows(folder / UNFINISHED) if folder else [], run_git("rev-parse", "--short", "HEAD")
    print(f"{'fault':<34}{'system':<24}{'times':>6}{'survived':>9}{'error':>6}{'lost':>5}{'wrong':>6}  remark")
    for cell in cells:
        if not (found := [row for row in rows if row.cell == cell.name]):
            rows += (found := cell.run(commit))
            if folder:
                write_rows(folder / UNFINISHED, rows)
        for row in found:
            counts = f"{row.times:>6}{row.survived:>9}{row.error:>6}{row.lost:>5}{row.wrong:>6}"
            print(f"{row.fault:<34}{row.system:<24}{counts}  {row.remark}".rstrip(), flush=True)
    return rows


@contract
def write_table(folder: Path, rows: list[Row], systems: list[str]) -> None:
    """Write results.csv, and the table of README.md if that file exists: a line for each fault, a column for each system.

    With that the campaign has ended: the next one starts anew.
    """
    from experiments.base import format_table

    write_rows(folder / RESULTS, rows)
    (folder / UNFINISHED).unlink(missing_ok=True)
    cells = {(row.fault, row.system): row.format_cell() for row in rows}
    lines = [[fault, *(cells.get((fault, system), "") for system in systems)] for fault in dict.fromkeys(r.fault for r in rows)]
    if (readme := folder / "README.md").exists():
        head, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(f"{head}{BEGIN}{format_table(['fault', *systems], lines)}\n{END}{rest.partition(END)[2]}")
