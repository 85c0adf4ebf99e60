"""A report as Markdown: results.md."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from research.cli import UNPRINTABLE
from research.contracts import contract
from research.report.blocks import Block, Code, Heading, Items, Listing, Paragraph, Picture, Table


@contract
def render_markdown(blocks: Iterable[Block]) -> str:
    """Return blocks as Markdown."""
    return "\n\n".join(map(render_block, blocks)) + "\n"


@contract
def render_block(block: Block) -> str:
    """Return one block as Markdown."""
    match block:
        case Heading(text, level):
            return f"{'#' * level} {escape(text)}"
        case Paragraph(spans):
            return "".join(format_code(span.text) if isinstance(span, Code) else escape(span) for span in spans)
        case Table(head, rows):
            return render_table(head, rows)
        case Items(lines):
            return "\n".join(f"- {escape(line)}" for line in lines)
        case Listing(text):
            return "\n".join(f"    {UNPRINTABLE.sub(' ', line)}" for line in text.splitlines())
        case Picture(name):
            return f"![{name}](plots/{name}.png)"


@contract
def render_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)


@contract
def escape(value: object) -> str:
    """Return a value as Markdown that shows it: on one line, without HTML, links or the end of a cell."""
    text = html.escape(UNPRINTABLE.sub(" ", str(value)), quote=False)
    return text.replace("|", "\\|").replace("](", "]\\(")


def format_code(text: str) -> str:
    """Return a code span, whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " * (len(fence) > 1)
    return f"{fence}{padding}{UNPRINTABLE.sub(' ', text)}{padding}{fence}"
