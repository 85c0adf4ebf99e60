"""How a run that fails ends on the terminal: what the user can mend in a few lines, a bug with its traceback."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any, TextIO, cast

from research.preflight.overrides import format_mistake


class FilteredStream:
    """stderr without Hydra's announcement of an error that is told right after it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def explain_errors() -> Iterator[None]:
    """What the user can mend ends in a line and exit code 1; a bug keeps its traceback, as all do with HYDRA_FULL_ERROR=1."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    mendable = (ValueError, FloatingPointError, OSError, HydraException, OmegaConfBaseException)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or else Hydra prints the error itself
    stderr = sys.stderr
    try:
        with (
            nullcontext()
            if "--multirun" in sys.argv or "-m" in sys.argv
            else redirect_stderr(cast(TextIO, FilteredStream(stderr)))
        ):
            yield
    except KeyboardInterrupt:
        print("interrupted", file=stderr)
        sys.exit(130)
    except mendable as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, mendable):
            raise
        logs = [handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
        print(format_mistake(*str(cause).splitlines()[:3], *(f"the traceback is in {log}" for log in logs[-1:])), file=stderr)
        sys.exit(1)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
