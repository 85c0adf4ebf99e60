"""Grokbit: ternary networks and accelerated generalisation. Start reading at `research/run.py`."""

import os
import sys
from importlib.util import find_spec


def check_environment(command: str) -> None:
    """End a program whose Python is too old, or lacks Hydra or torch. Any Python 3 can read this file."""
    is_new = sys.version_info >= (3, 11)
    missing = [name for name in ("hydra", "torch") if is_new and find_spec(name) is None]
    if is_new and not missing:
        return
    lacks = "lacks " + " and ".join(missing) if missing else "is {}.{}, and 3.11 is needed".format(*sys.version_info[:2])
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    python = os.path.join(home, ".venv", "bin", "python")
    fix = "use what make setup made: " if os.path.exists(python) else "run make setup in " + home + ", then "
    sys.exit("error: this Python (" + sys.executable + ") " + lacks + "\n  " + fix + python + " " + command)


program = os.path.basename((sys.argv or [""])[0])
# research.compliance judges any tree, and needs no library.
is_checker = sys.version_info >= (3, 11) and any(word.startswith("research.compliance") for word in sys.orig_argv)
if not is_checker and program in ("train.py", "-m"):  # of a library the failing import itself says what it is
    check_environment("train.py" if program == "train.py" else "-m MODULE")
