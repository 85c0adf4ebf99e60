"""Run a command in a pseudo terminal and draw its last screen as an SVG: make picture.

Names of run folders and MLflow ids differ in each run. They are drawn as RUN and RUN_ID, so a new picture differs only
where the program does, and in seconds and speeds.
"""

import argparse
import errno
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

from research.contracts import contract

ROOT = Path(__file__).resolve().parents[1]
CONTROL = re.compile(r"(\r*\n|\r|\x1b\[2K|\x1b\[1A|\x1b\[\?\d+[hl])")  # what moves or hides the cursor, or erases a line
CHANGING = ((r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?", "RUN"), (r"\b[0-9a-f]{32}\b", "RUN_ID"))


def run_in_terminal(command: list[str], columns: int) -> str:
    """Return what `command` wrote to a terminal of that width. Raise CalledProcessError where it failed."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (50, columns))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    output = bytearray()
    while block := read_block(controller):
        output += block
    os.close(controller)
    if code := process.wait():
        raise subprocess.CalledProcessError(code, command, output.decode())
    return output.decode()


def read_block(controller: int) -> bytes:
    """Return the next output, empty at its end. Linux reports the end of a terminal as EIO."""
    try:
        return os.read(controller, 65536)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def get_last_screen(output: str) -> list[str]:
    """Return the lines that are visible at the end, colours included. Covers what rich's live displays use."""
    lines = [""]
    for part in CONTROL.split(output):
        if part.endswith("\n"):
            lines.append("")
        elif part in ("\r", "\x1b[2K"):
            lines[-1] = ""  # a program that returns to the start of a line writes it anew
        elif part == "\x1b[1A":
            lines = lines[:-1] or [""]
        elif not CONTROL.fullmatch(part):
            lines[-1] += part
    return lines if lines[-1] else lines[:-1]


def replace_changing(text: str) -> str:
    """Return the text with paths relative to the clone, and without dates and ids."""
    text = text.replace(f"{ROOT}/", "")
    for pattern, name in CHANGING:
        text = re.sub(pattern, name, text)
    return text


@contract
def draw(command: str, lines: list[str], columns: int, path: Path) -> None:
    """Write the command and its screen to `path`."""
    console = Console(record=True, width=columns, file=io.StringIO(), highlight=False)
    console.print(Text.assemble(("$ ", "green"), (command, "bold")))
    for line in lines:
        console.print(Text.from_ansi(replace_changing(line)))
    svg = console.export_svg(title="Grokbit", unique_id="grokbit")
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def main() -> None:
    """Record the command that is named, by default the first one of the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "terminal.svg")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("command", nargs="*", default=["python", "train.py", "experiment=fastest"])
    args = parser.parse_args()
    executable = [sys.executable if word == "python" else word for word in args.command]
    lines = get_last_screen(run_in_terminal(executable, args.columns))
    draw(shlex.join(args.command), lines, args.columns, args.output)


if __name__ == "__main__":
    main()
