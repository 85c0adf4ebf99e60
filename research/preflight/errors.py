"""How a failed run ends on the terminal: a user's error in a few lines, a bug with its traceback."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any, TextIO, cast


class FilteredStream:
    """stderr without Hydra's announcement of an error, which follows in our own words."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def explain_errors() -> Iterator[None]:
    """Print a user's error in a few lines and exit with 1; leave a bug its traceback. Ctrl-C exits with 130.

    HYDRA_FULL_ERROR=1 leaves every error its traceback.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    user_errors = (ValueError, FloatingPointError, OSError, HydraException, OmegaConfBaseException)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the error itself, and exits
    stderr, is_sweep = sys.stderr, "--multirun" in sys.argv or "-m" in sys.argv
    try:
        with nullcontext() if is_sweep else redirect_stderr(cast(TextIO, FilteredStream(stderr))):
            yield
    except KeyboardInterrupt:
        print("interrupted", file=stderr)
        sys.exit(130)
    except user_errors as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, user_errors):
            raise
        from research.preflight.overrides import format_mistake

        logs = [handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
        print(format_mistake(*str(cause).splitlines()[:3], *(f"the traceback is in {log}" for log in logs[-1:])), file=stderr)
        sys.exit(1)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
