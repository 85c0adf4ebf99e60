"""Documents of files of every kind, as UTF-8, in pieces: text files whole, tables and JSONL one a row.

A document comes as an iterable of pieces that end at a line's end, so that a file larger than memory streams; or as a Defect
where there is none. A row of a table comes as the cells of the columns that are read. Readers raise nothing for what a single
row or file holds.
"""

import codecs
import csv
import json
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

Format = Literal["auto", "text", "jsonl", "csv", "parquet"]
PIECE = 1 << 16  # bytes
LONGEST_ROW = 1 << 26  # bytes of a row of JSONL or CSV
SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Defect:
    """What is at a place instead of a document."""

    kind: str  # in the plural, for counts
    where: str


class Column(NamedTuple):
    """A column of a table, or a key of JSONL."""

    name: str
    setting: str = "field"  # of data: what names the column
    is_label: bool = False  # a whole number or true and false are read as their text


T = TypeVar("T")
Document = Iterable[bytes]
Item = Document | Defect
Row = Sequence[str]  # the cells of the columns that are read


class DefectError(ValueError):
    """A document turns out to be none while its pieces are read."""

    def __init__(self, defect: Defect) -> None:
        super().__init__(f"{defect.where}: {defect.kind}")
        self.defect = defect


def find_kind(file: Path, format: Format) -> Format:  # noqa: A002
    """Return what a file is read as: what `format` says, else what its suffix says, else text."""
    return SUFFIXES.get(file.suffix.lower(), "text") if format == "auto" else format


def iter_documents(file: Path, format: Format, field: Sequence[str], encoding: str) -> Iterator[Item]:  # noqa: A002
    """Yield the documents of one file. `field` names the columns or keys, joined by a line's end."""
    if (kind := find_kind(file, format)) == "text":
        yield iter_text(file, encoding)
    else:
        for row in iter_rows(file, kind, [Column(name) for name in field], encoding):
            yield row if isinstance(row, Defect) else ["\n".join(row).encode()]


def iter_rows(file: Path, kind: Format, columns: Sequence[Column], encoding: str) -> Iterator[Row | Defect]:
    """Yield the rows of a table or of JSONL."""
    try:
        yield from ROW_READERS[kind](file, columns, encoding)
    except OSError as error:
        yield describe_error(error, file)


def describe_error(error: OSError, file: Path) -> Defect:
    """Return what the system says about a file as a defect."""
    is_forbidden = isinstance(error, PermissionError)
    return Defect("files without permission" if is_forbidden else f"files with errors ({error.strerror})", str(file))


def iter_text(file: Path, encoding: str) -> Iterator[bytes]:
    """Yield a text file in pieces of UTF-8. Raise DefectError where it cannot be read, or holds NUL bytes."""
    decoder, position, kept, is_first = codecs.getincrementaldecoder(encoding)(), 0, 0, True
    try:
        with file.open("rb") as stream:
            for piece in chain(iter_lines(stream), [b""]):
                kept = len(decoder.getstate()[0])  # of the piece before: the start of a letter
                text = decoder.decode(piece, final=not piece)
                if "\0" in text:
                    raise DefectError(Defect("with NUL bytes, so no text", str(file)))
                position += len(piece)
                yield (text.removeprefix("\ufeff") if is_first else text).encode()
                is_first = False
    except UnicodeError as error:  # utf-16 without its mark is no UnicodeDecodeError
        position += error.start - kept if isinstance(error, UnicodeDecodeError) else 0
        raise DefectError(Defect(f"not {encoding_name(encoding)}", f"{file} (byte {position})")) from None
    except OSError as error:
        raise DefectError(describe_error(error, file)) from None


def check_encoding(encoding: str) -> str:
    """Return the encoding. Raise ValueError for one that Python does not know."""
    try:
        "a".encode(encoding)  # "hex" is a codec, but none of text
    except (LookupError, UnicodeError):
        raise ValueError(f"data.encoding={encoding}: Python knows no such encoding\ngive one as utf-8 or latin-1") from None
    return encoding


def encoding_name(encoding: str) -> str:
    """Return an encoding as people write it."""
    return codecs.lookup(encoding).name.upper()


def iter_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield pieces of about PIECE bytes that end at a line's end; a longer line comes in several, none cut within "\\r\\n"."""
    while piece := stream.read(PIECE):
        if not piece.endswith(b"\n"):
            piece += stream.readline(PIECE)
        if piece.endswith(b"\r"):
            piece += stream.read(1)
        yield piece


def iter_rows_jsonl(file: Path, columns: Sequence[Column], encoding: str) -> Iterator[Row | Defect]:
    """Yield a row a line: the text at some keys."""
    for item in iter_objects(file, encoding):
        yield item if isinstance(item, Defect) else select(item[1], columns, f"{file}:{item[0]}")


def tell_undecoded(read: Callable[[Path, str], Iterator[T]]) -> Callable[[Path, str], Iterator[T | Defect]]:
    """Let a reader give a defect where a whole file is not of its encoding, as UTF-16 without its mark."""

    @wraps(read)
    def iterate(file: Path, encoding: str) -> Iterator[T | Defect]:
        try:
            yield from read(file, encoding)
        except UnicodeError:
            yield Defect(f"not {encoding_name(encoding)}", str(file))

    return iterate


@tell_undecoded
def iter_objects(file: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]] | Defect]:
    """Yield each object of a file of JSONL with the number of its line."""
    with file.open(encoding=encoding, errors="surrogateescape", newline="\n") as stream:
        number = 0
        while line := stream.readline(LONGEST_ROW):
            number += 1
            where = f"{file}:{number}"
            if len(line) == LONGEST_ROW and not line.endswith("\n"):
                yield Defect(f"lines of over {LONGEST_ROW >> 20} MB", where)
                while len(line) == LONGEST_ROW and not line.endswith("\n"):
                    line = stream.readline(LONGEST_ROW)
                continue
            if line.strip(string.whitespace):
                row = parse_json(line, encoding)
                yield Defect(row, where) if isinstance(row, str) else (number, row)


def parse_json(line: str, encoding: str) -> dict[str, Any] | str:
    """Return the object of a line, or what the line is instead."""
    try:
        line.encode()  # what was not decoded is half a surrogate pair
        row = json.loads(line.lstrip("\ufeff"))
    except UnicodeError:
        return f"not {encoding_name(encoding)}"
    except (ValueError, RecursionError):
        return "lines that are no JSON"
    return row if isinstance(row, dict) else "lines that are no JSON object"


def select(row: dict[str, Any], columns: Sequence[Column], where: str) -> Row | Defect:
    """Return the cells of some columns of a row."""
    cells: list[str] = []
    for column in columns:
        if column.name not in row:
            return Defect(f"rows without '{column.name}'", f"{where} (it has {', '.join(list(row)[:12]) or 'none'})")
        value = row[column.name]
        if column.is_label and isinstance(value, int):
            value = json.dumps(value)
        if value is None:
            return Defect(f"rows with null in '{column.name}'", where)
        if not isinstance(value, str):
            return Defect(f"rows with a {type(value).__name__} in '{column.name}'", where)
        if "\0" in value:
            return Defect("rows with NUL bytes, so no text", where)
        cells.append(value)
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair
        return Defect("rows with half a surrogate pair", where)
    return cells


def iter_rows_csv(file: Path, columns: Sequence[Column], encoding: str) -> Iterator[Row | Defect]:
    """Yield the rows of CSV or TSV."""
    rows = iter_cells(file, encoding)
    if isinstance(first := next(rows, (0, [])), Defect):
        yield Defect(first.kind.replace("rows", "tables"), str(file))
        return
    _, header = first
    if defect := find_missing_column(file, header, columns):
        yield defect
        return
    for item in rows:
        if isinstance(item, Defect):
            yield item
            continue
        line, cells = item
        row = select(dict(zip(header, cells, strict=True)), columns, f"{file}:{line}")
        is_undecoded = isinstance(row, Defect) and "surrogate" in row.kind
        yield Defect(f"not {encoding_name(encoding)}", f"{file}:{line}") if is_undecoded else row


@tell_undecoded
def iter_cells(file: Path, encoding: str) -> Iterator[tuple[int, list[str]] | Defect]:
    """Yield the cells of CSV or TSV, the header first, each row with the number of its last line.

    The separator is the most frequent one of the first line. What cannot be decoded becomes half a surrogate pair, so that a
    row alone is left out. A row that is no CSV is as many defects as it has lines: a quote that stays open takes the rest.
    """
    csv.field_size_limit(LONGEST_ROW)
    codec, width, start = "utf-8-sig" if encoding_name(encoding) == "UTF-8" else encoding, -1, 0
    with file.open(encoding=codec, errors="surrogateescape", newline="") as stream:
        first = stream.readline(LONGEST_ROW)
        delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                for line in range(start + 1, max(start + 1, reader.line_num) + 1):
                    yield Defect(f"rows that are no CSV ({error})", f"{file}:{line}")
                start = reader.line_num
                continue
            start = reader.line_num
            if width < 0 or len(cells) == width:
                width = len(cells)
                yield start, cells
            elif cells:
                yield Defect("rows with more or fewer cells than the header", f"{file}:{start}")


def iter_rows_parquet(file: Path, columns: Sequence[Column], encoding: str) -> Iterator[Row | Defect]:
    """Yield the rows of a parquet file."""
    from pyarrow import ArrowException, parquet, types

    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
        if defect := find_missing_column(file, schema.names, columns):
            yield defect
            return
        for column in columns:
            kind = schema.field(column.name).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            is_text = types.is_string(kind) or types.is_large_string(kind)
            if not is_text and not (column.is_label and (types.is_integer(kind) or types.is_boolean(kind))):
                fix = f"give a column of {'classes' if column.is_label else 'text'}"
                yield Defect(f"tables without data.{column.setting}={column.name}", f"{file} has {kind} there, no text ({fix})")
                return
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[column.name for column in columns]):
            for row in range(len(batch)):
                number += 1
                where = f"{file}:{number}"
                try:
                    yield select(batch.slice(row, 1).to_pylist()[0], columns, where)
                except UnicodeDecodeError:
                    yield Defect("not UTF-8", where)
    except ArrowException as error:
        yield Defect("damaged parquet files", f"{file} ({str(error).splitlines()[0][:80]})")


def find_missing_column(file: Path, header: Sequence[str], columns: Sequence[Column]) -> Defect | None:
    """Return what a table is that lacks a column, or has two of one name."""
    for name, setting, _ in columns:
        if header.count(name) != 1:
            problem = f"has no column '{name}'" if name not in header else f"has several columns '{name}'"
            known = ", ".join(dict.fromkeys(header[:12])) or "none"
            fix = f"give data.{setting}=COLUMN, one of {known}"
            return Defect(f"tables without data.{setting}={name}", f"{file} {problem} ({fix})")
    return None


RowReader = Callable[[Path, Sequence[Column], str], Iterator[Row | Defect]]
ROW_READERS: dict[str, RowReader] = {"jsonl": iter_rows_jsonl, "csv": iter_rows_csv, "parquet": iter_rows_parquet}
