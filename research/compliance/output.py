"""Words to a terminal, a file or a pipe: none of them ends the program."""

import argparse
import io
import os
import sys
from typing import NoReturn

from research.compliance.syntax.contract import contract


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage."""

    @contract
    def error(self, message: str) -> NoReturn:
        """End the program with one line and the exit code 2."""
        self.exit(2, to_printable(f"error: {message}") + "\n")


@contract
def to_printable(text: str) -> str:
    """Return a text in one line, control characters and broken ones as escapes: names of files may hold any."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@contract
def warn(text: str) -> None:
    """Print one line to stderr."""
    print(to_printable(text), file=sys.stderr)


def escape_streams() -> None:
    """Let stdout and stderr write what their encoding lacks as escapes, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contract
def write(text: str) -> bool:
    """Print the result. Return whether it could be written; a reader that has gone, as head, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence_stdout()
    except OSError as error:
        warn(f"error: the result cannot be written: {error.strerror}")
        silence_stdout()
        return False
    return True


def silence_stdout() -> None:
    """Let stdout write nowhere: Python would complain when it ends."""
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())
