"""Tables of files as columns of numbers and texts: CSV, TSV, JSONL, parquet. What is wrong with a row is a Defect."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.contracts import contract
from research.files.cells import Column, Decimals
from research.files.documents import SUFFIXES
from research.files.lines import Defect, encoding_name, iter_cells, iter_objects
from research.files.sources import Counts, check_defects

Header = Literal["auto"] | bool
Row = tuple[int, list[Any]]  # its line, and its cells


@dataclass
class Table:
    """The rows of all files, by column."""

    columns: dict[str, Column]
    files: list[Path] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # the first row of each file
    lines: MutableSequence[int] = field(default_factory=lambda: array("q"))  # of each row in its file

    @contract
    def locate(self, row: int) -> str:
        """Return where a row is: its file and line."""
        return f"{self.files[bisect_right(self.starts, row) - 1]}:{self.lines[row]}"


def read_table(
    files: Sequence[Path], encoding: str, header: Header, decimal: Decimals, counts: Counts, defects: Counts
) -> Table:
    """Return the columns of all files; one with other columns is a defect. Raise ValueError for names that cannot be used."""
    table: Table | None = None
    for file in files:
        try:
            rows = iter_rows(file, encoding, header)
            names = next(rows, Defect("empty files", str(file)))
            if isinstance(names, Defect):
                defects.add(names.kind, names.where)
                continue
            assert isinstance(names, list)
            used = {name: index for index, name in enumerate(names) if name}
            if table and set(used) != set(table.columns):
                name = min(set(used) ^ set(table.columns))
                defects.add(f"tables with other columns than {table.files[0].name}", f"{file} ('{name}')")
                continue
            check_names(file, names)
            if nameless := len(names) - len(used):
                counts.add("columns without a name", str(file), nameless)
            table = table or Table({name: Column(name) for name in used})
            table.files.append(file)
            table.starts.append(len(table.lines))
            add_rows(table, file, rows, used, decimal, defects)
        except (PermissionError, UnicodeError) as error:
            is_text = isinstance(error, UnicodeError)
            defects.add(f"not {encoding_name(encoding)}" if is_text else "files without permission", str(file))
    if table is None or not table.lines:
        check_defects(defects, False, counts, "mend them, or give other files")
        raise ValueError(f"data.path: {files[0]} has a line of names and no rows\ngive rows")
    return table


@contract
def add_rows(table: Table, file: Path, rows: Iterator[Any], used: dict[str, int], decimal: Decimals, defects: Counts) -> None:
    """Add the rows of a file to a table, and count what is none."""
    pairs = [(column, used[name]) for name, column in table.columns.items()]
    for row in rows:
        if isinstance(row, Defect):
            defects.add(row.kind, row.where)
            continue
        line, cells = row
        table.lines.append(line)
        for column, index in pairs:
            column.add(cells[index], decimal)


def check_names(file: Path, names: Sequence[str]) -> None:
    """Raise ValueError for columns of one name, and for fewer than two columns."""
    used = [name for name in names if name]
    if repeated := next((name for name in used if used.count(name) > 1), None):
        raise ValueError(f"data.path: {file} has several columns '{repeated}'\ngive each a name of its own")
    if len(used) < 2:
        held = f"one column, '{used[0]}'" if used else "no column"
        raise ValueError(f"data.path: {file} has {held}\ngive features and a target, with commas, semicolons or tabs between")


@contract
def iter_rows(file: Path, encoding: str, header: Header) -> Iterator[list[str] | Row | Defect]:
    """Yield the names of the columns, then the rows of a file."""
    kind = SUFFIXES.get(file.suffix.lower(), "csv")
    reader = {"csv": iter_csv, "parquet": iter_parquet, "jsonl": iter_jsonl}[kind]
    yield from reader(file, encoding, header)


def iter_csv(file: Path, encoding: str, header: Header) -> Iterator[list[str] | Row | Defect]:
    """Yield names and rows of CSV."""
    rows = iter_cells(file, encoding)
    if (first := next(rows, None)) is None:
        return
    if isinstance(first, Defect):
        yield Defect(first.kind.replace("rows", "tables"), first.where)
        return
    names = [cell.strip() for cell in first[1]]
    if mistake := describe_bad_text("".join(names), encoding):
        yield Defect(f"tables that are {mistake}", f"{file}:{first[0]}")
        return
    if check_header(file, names, header):
        yield names
    else:
        yield [f"c{number}" for number in range(len(names))]
        rows = chain([first], rows)
    for item in rows:
        if isinstance(item, Defect):
            yield item
        elif mistake := describe_bad_text("".join(item[1]), encoding):
            yield Defect(f"rows that are {mistake}", f"{file}:{item[0]}")
        else:
            yield item


def describe_bad_text(text: str, encoding: str) -> str:
    """Return what is wrong with decoded text: bytes of another encoding, or NUL; empty for nothing."""
    if "\0" in text:
        return "no text (NUL bytes)"
    is_escaped = not text.isascii() and re.search("[\udc80-\udcff]", text)
    return f"not {encoding_name(encoding)}" if is_escaped else ""


def check_header(file: Path, names: Sequence[str], header: Header) -> bool:
    """Return whether the first line has the names. Raise ValueError where it may be either: it holds numbers."""
    if header != "auto":
        return header
    column = Column("")
    for name in names:
        column.add(name, "point")
    if not np.isnan(column.values).all():
        row = ", ".join(names[:6])
        fix = "give data.header=false where it is a row (columns are c0, c1, ...), data.header=true where it has their names"
        raise ValueError(f"data.header=auto: the first line of {file} has numbers: {row}\n{fix}")
    return True


def iter_jsonl(file: Path, encoding: str, header: Header) -> Iterator[list[str] | Row | Defect]:
    """Yield names and rows of JSONL; the names are the keys of all objects, the last one of the first object at the end."""
    names, last = dict[str, None](), ""
    for item in iter_objects(file, encoding):
        if not isinstance(item, Defect):
            names |= dict.fromkeys(item[1])
        elif not names:
            yield Defect("tables without an object in their first line", item.where)
            return
        last = last or next(reversed(names), "")
    if order := [*(name for name in names if name != last), last] if names else []:
        yield order
    for item in iter_objects(file, encoding):
        yield item if isinstance(item, Defect) else (item[0], [item[1].get(name) for name in order])


def iter_parquet(file: Path, encoding: str, header: Header) -> Iterator[list[str] | Row | Defect]:
    """Yield names and rows of parquet."""
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(file)
        yield list(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=4096):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, list(cells)
    except ArrowException as error:
        yield Defect("damaged parquet files", f"{file} ({str(error).splitlines()[0][:80]})")
