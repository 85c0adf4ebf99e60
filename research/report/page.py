"""A report as one page of HTML, which needs no other file and no network; light or dark, as the reader's screen is."""

import base64
import html
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib
from matplotlib.figure import Figure

from research.cli import UNPRINTABLE, redact
from research.contracts import contract
from research.report.blocks import Block, Code, Heading, Items, Listing, Paragraph, Picture, Table
from research.report.style import fit_labels

MAX_SVG = 100_000  # bytes; larger pictures, as of a thousand trials, are PNG
MAX_PICTURES = 800_000  # bytes of all pictures: a page is below a megabyte
WIDE = 8.0  # inches; wider pictures have a row of their own
PNG_WIDTH = 10.0  # inches of a picture whose size is not known
NUMBER = re.compile(r"[-+±]? ?[\d,]*\.?\d+(e[-+]?\d+)?%?( ± .*)?|nan|[-+]?inf|", re.IGNORECASE)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main style="--column: calc({column} * var(--inch))">
{body}
</main>
</body>
</html>
"""
STYLE = """
:root { --paper: #ffffff; --ink: #1b1f24; --pale: #5c6670; --line: #d8dde3; --shade: #f4f6f8; --mark: #1f77b4; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #141414; --ink: #e4e6e9; --pale: #9aa4ae; --line: #34393f; --shade: #1f2225; --mark: #6db3e8; }
  figure svg, figure img { filter: invert(.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; border-bottom: 3px solid var(--mark); padding-bottom: .5rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; }
code, pre { font: .85em/1.5 ui-monospace, monospace; background: var(--shade); border-radius: .3rem; }
code { padding: .1em .3em; }
pre { padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem; overflow-wrap: normal; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--pale); font-weight: 600; white-space: nowrap; }
td { max-width: 28rem; overflow-wrap: break-word; }
.facts td { overflow-wrap: anywhere; }
.facts td:first-child { min-width: 7.5rem; }
tr:last-child td { border-bottom: 0; }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--paper); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
main { --inch: 4rem; } /* at the least, so that the words of a picture can be read; on a phone it scrolls */
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--column)), 1fr)); }
.pictures { grid-auto-flow: dense; gap: 1rem; align-items: start; }
figure { margin: 0; padding: .3rem; overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; }
figure.wide { grid-column: 1 / -1; }
figure svg, figure img { display: block; width: 100%; height: auto; background: #fff; }
figure svg, figure img { min-width: calc(var(--inches) * var(--inch)); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
"""


@contract
def render_page(title: str, blocks: Iterable[Block], pictures: Mapping[str, str]) -> str:
    """Return a whole page. `pictures` has the HTML of each picture by its name."""
    parts, budget = list[str](), MAX_PICTURES
    for block in blocks:
        if isinstance(block, Picture):
            content = pictures.get(block.name, "")
            budget -= len(content)
            if budget < 0:
                content = f"<p>plots/{escape(block.name)}.png is left out: the page would be too large</p>"
            is_first = not parts or not parts[-1].startswith('<div class="pictures">')
            parts += ['<div class="pictures">' + content] if is_first else []
            parts[-1] += "" if is_first else content
            continue
        parts.append(render_block(block))
    body = "\n".join(part + "</div>" if part.startswith('<div class="pictures">') else part for part in parts)
    column = max(map(float, re.findall(r'<figure style="--inches: ([\d.]+)"', body)), default=WIDE)
    return PAGE.format(title=escape(title), style=STYLE, body=body, column=column)


@contract
def render_block(block: Block) -> str:
    """Return one block, but for pictures, as HTML."""
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(spans):
            texts = (f"<code>{escape(span.text)}</code>" if isinstance(span, Code) else escape(span) for span in spans)
            return f"<p>{''.join(texts)}</p>"
        case Table(head, rows):
            return render_table(head, rows)
        case Items(lines):
            return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        case Listing(text):
            return f"<pre>{escape(text, keeps_lines=True)}</pre>"
        case Picture():
            raise TypeError("pictures stand side by side: render_page puts them in")


@contract
def render_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table that scrolls by itself where it is too wide; a column of numbers is aligned at the right."""
    columns = [[str(row[index]) for row in rows] for index in range(len(head))]
    numeric = [any(column) and all(NUMBER.fullmatch(text) for text in column) for column in columns]
    kinds = [' class="number"' if is_numeric else "" for is_numeric in numeric]
    tops = "".join(f"<th{kind}>{escape(text)}</th>" for text, kind in zip(head, kinds, strict=True))
    lines = ["".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) for row in rows]
    top = f"<thead><tr>{tops}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    name = "wide" if len(head) > 3 else "facts"
    return f'<div class="scroll"><table class="{name}">{top}<tbody>{body}</tbody></table></div>'


@contract
def escape(value: object, keeps_lines: bool = False) -> str:
    """Return a value as HTML that shows it, without passwords; control characters become spaces, or stay ends of lines."""
    text = UNPRINTABLE.sub(lambda match: "\n" if keeps_lines and match[0] == "\n" else " ", redact(str(value)))
    return html.escape(text)


@contract
def embed_figure(figure: Figure, name: str) -> str:
    """Return a figure as HTML: SVG where it is small enough, else PNG."""
    text, width = io.StringIO(), float(figure.get_figwidth())
    fonts: Any = {"svg.fonttype": "none", "svg.hashsalt": "grokbit", "font.sans-serif": ["DejaVu Sans"]}
    with matplotlib.rc_context(fonts), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        fit_labels(figure)
        figure.savefig(text, format="svg", metadata={"Date": None})
        if len(text.getvalue()) > MAX_SVG:
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=100)
            return embed_png(image.getvalue(), name, width)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    prefix = f"p{crc32(name.encode(errors='surrogatepass')):08x}"  # ids are the page's, not a picture's
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return wrap_figure(re.sub(r"<svg ", f'<svg role="img" aria-label="{escape(name)}" ', svg, count=1), width)


def embed_png(content: bytes, name: str, width: float = PNG_WIDTH) -> str:
    """Return a PNG of a width in inches as HTML."""
    return wrap_figure(f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">', width)


def wrap_figure(content: str, width: float) -> str:
    """Return a picture's HTML as a figure of a width in inches; a wide one takes the whole row."""
    kind = ' class="wide"' if width > WIDE else ""
    return f'<figure{kind} style="--inches: {width:.3g}">{content}</figure>'


@contract
def embed_file(file: Path) -> str:
    """Return a picture of a run as HTML."""
    return embed_png(file.read_bytes(), file.stem)
