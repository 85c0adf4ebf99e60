"""The cells of a column: numbers, texts, and codes that look like numbers."""

import re
from array import array
from collections.abc import MutableSequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, UInt64

from research.contracts import contract

Decimals = Literal["point", "comma"]
MISSING = {"", "?", "na", "n/a", "nan", "null", "none"}  # in any case: what stands for no value
EXACT = 2**53  # whole numbers beyond it lose digits as floating-point numbers
MOSTLY = 0.9  # share of numbers from which on the texts of a column are mistakes


@dataclass
class Column:
    """The cells of one column: numbers, NaN where there is none; and the texts by row."""

    name: str
    numbers: MutableSequence[float] = field(default_factory=lambda: array("d"))
    texts: dict[int, str] = field(default_factory=dict)
    nested: list[int] = field(default_factory=list)  # rows with a list, an object or bytes
    spellings: dict[int, str] = field(default_factory=dict)  # by row, of numbers written as 01, 1e3 or 1.10
    is_inexact: bool = False  # it has whole numbers that lose digits

    @contract
    def add(self, cell: Any, decimal: Decimals) -> None:
        """Add the cell of the next row."""
        number = float("nan")
        if isinstance(cell, str):
            try:
                number = float("text" if "_" in cell else cell.replace(",", ".") if decimal == "comma" else cell)
                is_long = EXACT < abs(number) < float("inf") and cell.strip().lstrip("+-").isdecimal()
                if is_code(text := cell.strip()):
                    self.spellings[len(self.numbers)] = text
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

    def keep_spelling(self) -> "Column":
        """Return the column with codes as they are typed: among texts 01234 is one, and another than 1234."""
        numbers = self.values
        numbers[list(self.spellings)] = np.nan
        return replace(self, numbers=array("d", numbers), texts=self.texts | self.spellings, spellings={})

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


def is_code(text: str) -> bool:
    """Return whether a number may be a code: with zeros before it or after its decimals, a plus, or an exponent alone."""
    bare = text.lstrip("+-")
    is_padded = bare[:1] == "0" and bare[1:2].isdigit()
    if "e" in bare or "E" in bare:
        return is_padded or "." not in bare
    is_long = bare[-1:] == "0" and "." in bare and not bare.rstrip("0").endswith(".")  # 1.0 is 1
    return is_padded or text[:1] == "+" or is_long


def to_float(number: Any) -> float:
    """Return a number as a float; infinity for one beyond its range."""
    try:
        return float(number)
    except OverflowError:
        return float("inf")


@contract
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


@contract
def check_spellings(column: Column) -> None:
    """Raise ValueError for a column of classes that writes one of them as 1 and as 01."""
    spellings = dict[float, str]()
    for row, number in enumerate(column.numbers if column.spellings else ()):
        text = column.spellings.get(row, format_number(number))
        if not np.isnan(number) and (other := spellings.setdefault(number, text)) != text:
            fix = "write them alike where they are one class, else with a letter"
            raise ValueError(f"data.target={column.name} has the classes '{other}' and '{text}', which are one number\n{fix}")


@contract
def format_number(number: float) -> str:
    """Return a number among texts as a text; an empty one where there is none."""
    return "" if np.isnan(number) else str(int(number)) if number.is_integer() else repr(float(number))
