"""The parts of a report, which Markdown and the page in HTML render each in its way. Texts are raw: renderers escape them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research.contracts import contract


@dataclass(frozen=True)
class Code:
    """A command or a file's name within a paragraph."""

    text: str


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    spans: tuple[str | Code, ...]


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Items:
    """A list, a line each."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Listing:
    """Lines to copy: commands, a file."""

    text: str


@dataclass(frozen=True)
class Picture:
    """plots/NAME.png in the folder of what is reported."""

    name: str


Block = Heading | Paragraph | Table | Items | Listing | Picture


@contract
def write(*spans: str | Code) -> Paragraph:
    """Return a paragraph."""
    return Paragraph(spans)
