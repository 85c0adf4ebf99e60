"""Documents of files of every kind, as UTF-8, in pieces: text files whole, tables and JSONL one a row.

A reader yields each document as an iterable of pieces that end at a line's end, so that a file larger than memory streams;
or a Defect where there is none. Readers raise nothing for what a single row or file holds.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

Format = Literal["auto", "text", "jsonl", "csv", "parquet"]
PIECE = 1 << 16  # bytes
LONGEST_ROW = 1 << 26  # bytes of a row of JSONL or CSV
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Defect:
    """What is at a place instead of a document."""

    kind: str  # in the plural, for counts
    where: str


Document = Iterable[bytes]
Item = Document | Defect


class DefectError(Exception):
    """A document turns out to be none while its pieces are read."""

    def __init__(self, defect: Defect) -> None:
        super().__init__(f"{defect.where}: {defect.kind}")
        self.defect = defect


def iter_documents(file: Path, kind: Format, field: Sequence[str], encoding: str) -> Iterator[Item]:
    """Yield the documents of one file. `field` names the columns or keys, joined by a line's end."""
    if kind == "auto":
        kind = SUFFIXES.get(file.suffix.lower(), "text")  # type: ignore[assignment]
    try:
        if kind == "text":
            yield iter_text(file, encoding)
        else:
            yield from ROW_READERS[kind](file, field, encoding)
    except PermissionError:
        yield Defect("files without permission", str(file))
    except OSError as error:
        yield Defect(f"files with errors ({error.strerror})", str(file))


def iter_text(file: Path, encoding: str) -> Iterator[bytes]:
    """Yield a text file in pieces of UTF-8. Raise DefectError where it is not in this encoding, or holds NUL bytes."""
    decoder, position, is_first = codecs.getincrementaldecoder(encoding)(), 0, True
    with file.open("rb") as stream:
        for piece in chain(iter_lines(stream), [b""]):
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                where = f"{file} (byte {position + error.start})"
                raise DefectError(Defect(f"not {encoding_name(encoding)}", where)) from None
            if "\0" in text:
                raise DefectError(Defect("with NUL bytes, so no text", str(file)))
            position += len(piece)
            yield (text.removeprefix("\ufeff") if is_first else text).encode()
            is_first = False


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


def iter_rows_jsonl(file: Path, field: Sequence[str], encoding: str) -> Iterator[Item]:
    """Yield a document a line: the text at the keys `field`."""
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_ROW):
            number += 1
            where = f"{file}:{number}"
            if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
                yield Defect(f"lines of over {LONGEST_ROW >> 20} MB", where)
                while len(line) == LONGEST_ROW and not line.endswith(b"\n"):
                    line = stream.readline(LONGEST_ROW)
                continue
            if line.strip():
                yield parse_json_row(line, field, encoding, where)


def parse_json_row(line: bytes, field: Sequence[str], encoding: str, where: str) -> Item:
    """Return the document of one line."""
    try:
        row = json.loads(line.decode(encoding).lstrip("\ufeff"))
    except UnicodeDecodeError:
        return Defect(f"not {encoding_name(encoding)}", where)
    except (ValueError, RecursionError):
        return Defect("lines that are no JSON", where)
    return select(row, field, where) if isinstance(row, dict) else Defect("lines that are no JSON object", where)


def select(row: dict[str, Any], field: Sequence[str], where: str) -> Item:
    """Return the text at some keys of a row, joined by a line's end."""
    parts: list[str] = []
    for name in field:
        if name not in row:
            return Defect(f"rows without '{name}'", where)
        value = row[name]
        if value is None:
            return Defect(f"rows with null in '{name}'", where)
        if not isinstance(value, str):
            return Defect(f"rows with a {type(value).__name__} in '{name}'", where)
        parts.append(value)
    try:
        return ["\n".join(parts).encode()]
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair
        return Defect("rows with half a surrogate pair", where)


def iter_rows_csv(file: Path, field: Sequence[str], encoding: str) -> Iterator[Item]:
    """Yield a document a row: the text in the columns `field`. Raise ValueError where the header lacks one."""
    csv.field_size_limit(LONGEST_ROW)
    with file.open(encoding="utf-8-sig" if encoding_name(encoding) == "UTF-8" else encoding, newline="") as stream:
        try:
            first = stream.readline()
            delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(reader, [])
            check_columns(file, header, field)
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Defect(f"rows that are no CSV ({error})", f"{file}:{reader.line_num}")
                    continue
                where = f"{file}:{reader.line_num}"
                if not row:
                    continue
                if len(row) != len(header):
                    yield Defect("rows with more or fewer cells than the header", where)
                    continue
                yield select(dict(zip(header, row, strict=True)), field, where)
        except UnicodeDecodeError as error:
            yield Defect(f"not {encoding_name(encoding)}", f"{file} (byte {error.start} of a block)")


def iter_rows_parquet(file: Path, field: Sequence[str], encoding: str) -> Iterator[Item]:
    """Yield a document a row: the text in the columns `field`. Raise ValueError for columns that are not there or no text."""
    from pyarrow import ArrowException, parquet, types

    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
        check_columns(file, schema.names, field)
        for name in field:
            if not (types.is_string(kind := schema.field(name).type) or types.is_large_string(kind)):
                raise ValueError(f"data.field={name}: {file} has {kind} there, no text\ngive a column of text")
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=list(field)):
            for row in batch.to_pylist():
                number += 1
                yield select(row, field, f"{file}:{number}")
    except ArrowException as error:
        yield Defect("damaged parquet files", f"{file} ({str(error).splitlines()[0][:80]})")


def check_columns(file: Path, header: Sequence[str], field: Sequence[str]) -> None:
    """Raise ValueError where a table lacks a column, or has two of one name."""
    for name in field:
        if header.count(name) != 1:
            problem = f"has no column '{name}'" if name not in header else f"has several columns '{name}'"
            columns = ", ".join(dict.fromkeys(header[:12])) or "none"
            raise ValueError(f"data.field={name}: {file} {problem}\ngive data.field=COLUMN, one of {columns}")


RowReader = Callable[[Path, Sequence[str], str], Iterator[Item]]
ROW_READERS: dict[str, RowReader] = {"jsonl": iter_rows_jsonl, "csv": iter_rows_csv, "parquet": iter_rows_parquet}
