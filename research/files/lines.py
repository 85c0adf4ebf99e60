"""Cells of CSV and objects of JSONL, as they stand in a file; what is none is a Defect."""

import csv
import json
import re
import string
from codecs import lookup
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from research.contracts import contract

LONGEST_ROW = 1 << 26  # bytes of a row of JSONL or CSV
ONE_VALUE = re.compile(r"\ufeff?\s*(\[\s*\{|[\[{]\s*$)")  # how a file begins that is no JSONL
SEPARATORS = ",;\t|"
T = TypeVar("T")


@dataclass(frozen=True)
class Defect:
    """What is at a place instead of a document."""

    kind: str  # in the plural, for counts
    where: str


@contract
def encoding_name(encoding: str) -> str:
    """Return an encoding as people write it."""
    return lookup(encoding).name.upper()


def tell_undecoded(read: Callable[[Path, str], Iterator[T]]) -> Callable[[Path, str], Iterator[T | Defect]]:
    """Let a reader give a defect where a whole file is not of its encoding, as UTF-16 without its mark."""

    @wraps(read)
    def iterate(file: Path, encoding: str) -> Iterator[T | Defect]:
        try:
            yield from read(file, encoding)
        except UnicodeError:
            yield Defect(f"not {encoding_name(encoding)}", str(file))

    return iterate


@contract
@tell_undecoded
def iter_objects(file: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]] | Defect]:
    """Yield each object of a file of JSONL with the number of its line."""
    with file.open(encoding=encoding, errors="surrogateescape", newline="\n") as stream:
        number, is_read = 0, False
        while line := stream.readline(LONGEST_ROW):
            number += 1
            where = f"{file}:{number}"
            if len(line) == LONGEST_ROW and not line.endswith("\n"):
                yield Defect(f"lines of over {LONGEST_ROW >> 20} MB", where)
                while len(line) == LONGEST_ROW and not line.endswith("\n"):
                    line = stream.readline(LONGEST_ROW)
                continue
            if line.strip(string.whitespace):
                row, is_first = parse_json(line, encoding), not is_read
                is_read = True
                if is_first and isinstance(row, str) and ONE_VALUE.match(line):
                    yield Defect("files of one JSON value (convert them to JSONL: an object a line)", str(file))
                    return
                yield Defect(row, where) if isinstance(row, str) else (number, row)


@contract
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


@contract
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
        delimiter = "\t" if file.suffix.lower() == ".tsv" else max(SEPARATORS, key=first.count)
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        for _ in range(file.stat().st_size + 1):  # each row takes a byte at least
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
            if num_lines := count_merged_rows(cells, delimiter) if width > 0 else 0:
                for line in range(start - num_lines + 1, start + 1):
                    yield Defect("rows within one pair of quotes", f"{file}:{line}")
            elif width < 0 or len(cells) == width:
                width = len(cells)
                yield start, cells
            elif cells:
                yield Defect("rows with more or fewer cells than the header", f"{file}:{start}")


def count_merged_rows(cells: Sequence[str], delimiter: str) -> int:
    """Return how many lines stray quotes have made one row: lines that each have as many separators as a row; else 0.

    A separator before a space or a line's end is of a sentence or an address, unless three lines have several.
    """
    if len(cells) < 2 or "\n" not in (text := "\0".join(cells)):
        return 0
    lines = text.split("\n")
    behind = "" if len(lines) > 2 and len(cells) > 2 else r"(?=\S)"
    separator = re.compile(f"\0|{re.escape(delimiter)}{behind}")
    return len(lines) if all(len(separator.findall(line)) == len(cells) - 1 for line in lines) else 0
