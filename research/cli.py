"""What the command lines beside train.py share: a line on what is wrong, and exit codes."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

from research import signals


class Parser(argparse.ArgumentParser):
    """One line on what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def print_message(text: str, stream: TextIO | None = None) -> None:
    """On stderr, or another stream; where nobody can read it, what was done is as good."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or else Python tries once more as it ends


def run_command(work: Callable[[signals.Watch], None]) -> int:
    """The exit code: 0, 2 with one message where it cannot be, 130 or 143 after a signal. HYDRA_FULL_ERROR=1 shows all."""
    try:
        with signals.watch() as watch:
            work(watch)
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print_message(f"error: {error}")
        return 2
    except signals.Stopped as stopped:
        print_message(str(stopped))
        return signals.get_exit_code(stopped.signum)
    return 0
