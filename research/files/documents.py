"""Documents of files of every kind, as UTF-8, in pieces: text files whole, tables and JSONL one a row.

A document comes as an iterable of pieces that end at a line's end, so that a file larger than memory streams; or as a Defect
where there is none. A row of a table comes as the cells of the columns that are read. Readers raise nothing for what a single
row or file holds.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from research.contracts import contract
from research.files.lines import Defect, encoding_name, iter_cells, iter_objects

Format = Literal["auto", "text", "jsonl", "csv", "parquet"]
SplitName = Literal["train", "val", "test"]  # which part of a data set a document is in
PIECE = 1 << 16  # bytes
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


class Column(NamedTuple):
    """A column of a table, or a key of JSONL."""

    name: str
    setting: str = "field"  # of data: what names the column
    is_label: bool = False  # a whole number or true and false are read as their text


Document = Iterable[bytes]
Item = Document | Defect
Row = Sequence[str]  # the cells of the columns that are read


class DefectError(ValueError):
    """A document turns out to be none while its pieces are read."""

    @contract
    def __init__(self, defect: Defect) -> None:
        super().__init__(f"{defect.where}: {defect.kind}")
        self.defect = defect


@contract
def find_kind(file: Path, format: Format) -> Format:  # noqa: A002
    """Return what a file is read as: what `format` says, else what its suffix says, else text."""
    return SUFFIXES.get(file.suffix.lower(), "text") if format == "auto" else format


@contract
def iter_documents(file: Path, format: Format, field: Sequence[str], encoding: str) -> Iterator[Item]:  # noqa: A002
    """Yield the documents of one file. `field` names the columns or keys, joined by a line's end."""
    if (kind := find_kind(file, format)) == "text":
        yield iter_text(file, encoding)
    else:
        for row in iter_rows(file, kind, [Column(name) for name in field], encoding):
            yield row if isinstance(row, Defect) else ["\n".join(row).encode()]


@contract
def iter_rows(file: Path, kind: Format, columns: Sequence[Column], encoding: str) -> Iterator[Row | Defect]:
    """Yield the rows of a table or of JSONL."""
    try:
        yield from ROW_READERS[kind](file, columns, encoding)
    except OSError as error:
        yield describe_error(error, file)


@contract
def describe_error(error: OSError, file: Path) -> Defect:
    """Return what the system says about a file as a defect."""
    is_forbidden = isinstance(error, PermissionError)
    return Defect("files without permission" if is_forbidden else f"files with errors ({error.strerror})", str(file))


def iter_text(file: Path, encoding: str) -> Iterator[bytes]:
    """Yield a text file in pieces of UTF-8.

    Raise DefectError where it cannot be read, or holds NUL bytes, and at its end where it is UTF-8 and `encoding` is not.
    """
    decoder, position, kept, is_first, held = codecs.getincrementaldecoder(encoding)(), 0, 0, True, ""
    other = Utf8Guess(encoding)
    try:
        with file.open("rb") as stream:
            for piece in chain(iter_lines(stream), [b""]):
                kept = len(decoder.getstate()[0])  # of the piece before: the start of a letter
                text = held + decoder.decode(piece, final=not piece)
                if "\0" in text:
                    raise DefectError(Defect("with NUL bytes, so no text", str(file)))
                position += len(piece)
                other.feed(piece)
                held = "\r" if piece and text.endswith("\r") else ""  # no piece ends within "\r\n"
                text = text.removesuffix(held)
                yield (text.removeprefix("\ufeff") if is_first else text).encode()
                is_first = False
        if other.is_utf8:
            raise DefectError(Defect(f"UTF-8, not {encoding_name(encoding)}", str(file)))
    except UnicodeError as error:  # utf-16 without its mark is no UnicodeDecodeError
        position += error.start - kept if isinstance(error, UnicodeDecodeError) else 0
        raise DefectError(Defect(f"not {encoding_name(encoding)}", f"{file} (byte {position})")) from None
    except OSError as error:
        raise DefectError(describe_error(error, file)) from None


class Utf8Guess:
    """Whether a text that is read in an encoding of one byte a letter is of UTF-8: by chance its letters hardly ever are."""

    def __init__(self, encoding: str) -> None:
        letters = [bytes([number]).decode(encoding, "ignore") for number in range(128, 256)]
        self.may_be = sum(map(bool, letters)) > 100  # cp1252 lacks five
        self.decoder, self.has_letters = codecs.getincrementaldecoder("utf-8")(), False

    @property
    def is_utf8(self) -> bool:
        return self.may_be and self.has_letters

    @contract
    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the text; none at its end."""
        if self.may_be:
            self.has_letters = self.has_letters or not piece.isascii()
            try:
                self.decoder.decode(piece, final=not piece)
            except UnicodeDecodeError:
                self.may_be = False


@contract
def check_encoding(encoding: str) -> str:
    """Return the encoding. Raise ValueError for one that Python does not know."""
    try:
        "a".encode(encoding)  # "hex" is a codec, but none of text
    except (LookupError, UnicodeError):
        raise ValueError(f"data.encoding={encoding}: Python knows no such encoding\ngive one as utf-8 or latin-1") from None
    return encoding


def iter_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield pieces of about PIECE bytes that end at a line's end; a longer line comes in several."""
    while piece := stream.read(PIECE):
        if not piece.endswith(b"\n"):
            piece += stream.readline(PIECE)
        yield piece


def iter_rows_jsonl(file: Path, columns: Sequence[Column], encoding: str) -> Iterator[Row | Defect]:
    """Yield a row a line: the text at some keys."""
    for item in iter_objects(file, encoding):
        yield item if isinstance(item, Defect) else select(item[1], columns, f"{file}:{item[0]}")


@contract
def select(row: dict[str, Any], columns: Sequence[Column], where: str) -> Row | Defect:
    """Return the cells of some columns of a row."""
    cells: list[str] = []
    for column in columns:
        if column.name not in row:
            return Defect(
                f"rows without data.{column.setting}={column.name}", f"{where} (it has {', '.join(list(row)[:12]) or 'none'})"
            )
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
    header = [cell.strip() for cell in first[1]]
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
