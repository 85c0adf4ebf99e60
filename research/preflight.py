"""What is settled before anything heavy is imported: the command line in Hydra's order, and errors in one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWEEPS = (",", "choice(", "range(", "interval(", "glob(")


def check(argv: list[str]) -> list[str]:
    """Hydra 1.3.8 wants flags before overrides: move -m to the front, and note for the runs' names what is swept."""
    flags = [a for a in argv[1:] if a in ("-m", "--multirun")]
    rest = [a for a in argv[1:] if a not in flags]
    os.environ["GROKBIT_SWEPT"] = ",".join(swept(rest)) if flags else ""
    return [argv[0], *flags, *rest]


def swept(overrides: list[str]) -> list[str]:
    """The keys that take more than one value: a comma outside brackets and quotes, or one of Hydra's sweeps."""
    keys = []
    for override in overrides:
        key, _, value = override.partition("=")
        plain = value[:1] not in ("[", "{", "'", '"')
        if plain and any(mark in value for mark in SWEEPS):
            keys.append(key.lstrip("+~"))
    return keys


@contextmanager
def explained() -> Iterator[None]:
    """A user's mistake ends in one line and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    wanted = os.environ.setdefault("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own shortened traceback
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if wanted:
            raise
        lines = [line for line in str(error).splitlines() if line.strip() and "append to your config" not in line]
        print("error: " + "\n  ".join(lines[:5]), file=sys.stderr)
        sys.exit(2)
    except (ValueError, FloatingPointError, OSError) as error:
        if wanted:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; what was reached is in the run folder", file=sys.stderr)
        sys.exit(130)
