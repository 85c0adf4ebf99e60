"""Write the table of the campaign: as CSV, and for people into the README beside it."""

import csv
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks.faults.saves import Row

BEGIN, END = "<!-- table: make faults writes it -->\n", "<!-- end of table -->"


def write(folder: Path, rows: list[Row]) -> None:
    """Write results.csv, and the table of README.md if that file exists."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    if (readme := folder / "README.md").exists():
        head, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(head + BEGIN + format_table(rows) + END + rest.partition(END)[2])


def format_table(rows: list[Row]) -> str:
    """Return a Markdown table: a line for each fault, a column for each system, how many were survived."""
    systems = list(dict.fromkeys(row.system for row in rows))
    cells = {(row.fault, row.system): format_cell(row) for row in rows}
    lines = [["fault", *systems], ["---"] * (1 + len(systems))]
    lines += [
        [fault, *(cells.get((fault, name), "") for name in systems)] for fault in dict.fromkeys(row.fault for row in rows)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_cell(row: Row) -> str:
    if not row.times:
        return row.remark
    return f"{row.survived} of {row.times}" + (f", {row.wrong} silently wrong" if row.wrong else "")
