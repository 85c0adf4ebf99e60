"""Tables of files as columns of numbers and texts: CSV, TSV, JSONL, parquet. What is wrong with a row is a Defect."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, UInt64

from research.files.documents import SUFFIXES
from research.files.lines import Defect, encoding_name, iter_cells, iter_objects
from research.files.sources import Counts, check_defects

Header = Literal["auto"] | bool
Decimals = Literal["point", "comma"]
MISSING = {"", "?", "na", "n/a", "nan", "null", "none"}  # in any case: what stands for no value
EXACT = 2**53  # whole numbers beyond it lose digits as floating-point numbers
MOSTLY = 0.9  # share of numbers from which on the texts of a column are mistakes
Row = tuple[int, list[Any]]  # its line, and its cells


@dataclass
class Column:
    """The cells of one column: numbers, NaN where there is none; and the texts by row."""

    name: str
    numbers: MutableSequence[float] = field(default_factory=lambda: array("d"))
    texts: dict[int, str] = field(default_factory=dict)
    nested: list[int] = field(default_factory=list)  # rows with a list, an object or bytes
    padded: dict[int, str] = field(default_factory=dict)  # numbers with zeros before them, as they are written, by row
    is_inexact: bool = False  # it has whole numbers that lose digits

    def add(self, cell: Any, decimal: Decimals) -> None:
        """Add the cell of the next row."""
        number = float("nan")
        if isinstance(cell, str):
            try:
                number = float("text" if "_" in cell else cell.replace(",", ".") if decimal == "comma" else cell)
                is_long = EXACT < abs(number) < float("inf") and cell.strip().lstrip("+-").isdecimal()
                bare = cell.lstrip(" +-")
                if bare[:1] == "0" and bare[1:2].isdigit():
                    self.padded[len(self.numbers)] = cell.strip()
                cell = int(cell) if is_long else None
            except ValueError:
                if (text := cell.strip()).lower() not in MISSING:
                    self.texts[len(self.numbers)] = text
        elif isinstance(cell, int | float | Decimal):
            number = to_float(cell)
        elif isinstance(cell, list | dict | bytes):
            self.nested.append(len(self.numbers))
        elif cell is not None:  # dates and times
            self.texts[len(self.numbers)] = str(cell)
        if isinstance(cell, int) and abs(cell) > EXACT and number != cell:
            self.is_inexact = True
        self.numbers.append(number)

    @property
    def is_of_numbers(self) -> bool:
        """Return whether the cells are numbers, but for a few mistakes."""
        num_numbers = int(np.isfinite(self.values).sum())
        return num_numbers > 0 and num_numbers >= MOSTLY * (num_numbers + len(self.texts))

    def hash_cells(self) -> UInt64[np.ndarray, "rows"]:
        """Return a number for each cell: the bits of a number, a digest of a text."""
        bits = (self.values + 0.0).view(np.uint64)
        for row, text in self.texts.items():
            bits[row] = int.from_bytes(sha256(text.encode()).digest()[:8], "big")
        return bits

    @property
    def values(self) -> Float64[np.ndarray, "rows"]:
        """Return the numbers, NaN where a cell is missing or a text."""
        return np.array(self.numbers, dtype=np.float64)


def to_float(number: Any) -> float:
    """Return a number as a float; infinity for one beyond its range."""
    try:
        return float(number)
    except OverflowError:
        return float("inf")


def check_decimals(column: Column, decimal: Decimals) -> None:
    """Raise ValueError for a column whose texts are numbers, but for commas, spaces, or marks of money and percent."""
    marked = [text for text in column.texts.values() if is_marked(text)]
    if marked and len(marked) >= MOSTLY * len(column.texts) and not column.is_of_numbers:
        other = "point" if decimal == "comma" else "comma"
        fix = "write numbers without other marks, or leave the column out by data.exclude"
        fix += f"; give data.decimal={other} where that is before decimals" * bool(re.search("[.,]", marked[0]))
        raise ValueError(f"data.decimal={decimal}: '{column.name}' has numbers with other marks, as '{marked[0]}'\n{fix}")


def is_marked(text: str) -> bool:
    """Return whether a text is a number but for such marks. Versions and addresses, of several points, are none."""
    return bool(re.fullmatch(r"[-+]?[\d.]*\d", re.sub(r"[,\s'%$€£]", "", text))) and (text.count(".") < 2 or "," in text)


def check_spellings(column: Column) -> None:
    """Raise ValueError for a column of classes that writes one of them as 1 and as 01."""
    spellings = dict[float, str]()
    for row, number in enumerate(column.numbers if column.padded else ()):
        text = column.padded.get(row, format_number(number))
        if not np.isnan(number) and (other := spellings.setdefault(number, text)) != text:
            fix = "write them alike where they are one class, else with a letter"
            raise ValueError(f"data.target={column.name} has the classes '{other}' and '{text}', which are one number\n{fix}")


def format_number(number: float) -> str:
    """Return a number among texts as a text; an empty one where there is none."""
    return "" if np.isnan(number) else str(int(number)) if number.is_integer() else repr(float(number))


@dataclass
class Table:
    """The rows of all files, by column."""

    columns: dict[str, Column]
    files: list[Path] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # the first row of each file
    lines: MutableSequence[int] = field(default_factory=lambda: array("q"))  # of each row in its file

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
    """Yield names and rows of JSONL; the names are those of the first object."""
    names: list[str] = []
    for item in iter_objects(file, encoding):
        if not names:
            if isinstance(item, Defect):
                yield Defect("tables without an object of all keys in their first line", item.where)
                return
            names = list(item[1])
            yield names
        if isinstance(item, Defect):
            yield item
        elif set(item[1]) - set(names):
            yield Defect("rows with keys that the first one lacks", f"{file}:{item[0]}")
        else:
            yield item[0], [item[1].get(name) for name in names]


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
