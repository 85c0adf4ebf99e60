"""What train.py does around Hydra: print the help and refuse mistakes before it, explain a failed run after it."""

import logging
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

from research.cli import describe_error, print_message, protect_streams, redact, redact_output
from research.contracts import contract
from research.run_dir import SWEPT_ENV_VAR
from research.signals import Stopped, check_environment, get_exit_code, get_launched_ranks

INFO_FLAGS = ("--hydra-help", "--version", "--shell-completion", "-sc")
RERUN_FLAG = "--experimental-rerun"  # argparse takes the first letters of a flag too
OTHER_CONFIG_FLAGS = ("--config-name", "-cn", "--config-path", "-cp")  # not our conf/
CONFIG_FLAGS = ("--cfg", "-c")  # which print what other programs read
SWEEP_FLAGS = ("-m", "--multirun")
OURS, LIBRARIES = f"{Path(__file__).parents[1]}{os.sep}", (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))


def prepare(argv: list[str]) -> list[str]:
    """Return the command line for Hydra, with `-m` in front, where Hydra 1.3 needs it.

    Prints the help and exits with 0, or prints every mistake and exits with 2. HYDRA_FULL_ERROR=1 raises ValueError instead.
    """
    sys.path.append(os.path.abspath(""))  # of the folder that one starts in: modules of one's own, behind all others
    protect_streams(prints_result=any(word.partition("=")[0] in CONFIG_FLAGS for word in argv[1:]))
    redact_output()
    sweep = [word for word in argv[1:] if word in SWEEP_FLAGS][:1]
    rest = [word for word in argv[1:] if word not in SWEEP_FLAGS]
    os.environ[SWEPT_ENV_VAR] = ""
    if {"-h", "--help"} & set(rest):
        from research.options.help import build_help_text

        print(build_help_text(), flush=True)
        sys.exit(0)
    redact_configurations()
    # Only now, so that --help waits for none of it.
    from research.composition.overrides import expand_argument, fit_lines, format_mistake
    from research.preflight.check import check_overrides
    from research.preflight.words import find_notes, split_flags

    rest = [expand_argument(word) for word in rest]
    reruns = [word for word in rest if len(flag := word.split("=")[0]) > 2 and RERUN_FLAG.startswith(flag)]
    ours = not any(word.split("=")[0] in (*INFO_FLAGS, *OTHER_CONFIG_FLAGS) for word in rest)
    writes, mistakes, more = True, list[str](), list[str]()
    try:
        writes = get_launched_ranks()[0] == 0
        check_environment()
    except ValueError as error:
        mistakes = [format_mistake(*str(error).splitlines())]
    for word in reruns:
        mistakes.append(format_mistake(word, "it unpickles a file, which could run code", "give resume=RUN to continue a run"))
    if ours and not mistakes:
        mistakes, more = check_overrides(rest, bool(sweep))
    if mistakes:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise ValueError("\n".join(mistakes))
        if writes:
            print_message("\n".join(fit_lines(mistakes)))
        sys.exit(2)
    for note in find_notes(rest, bool(sweep)) if writes else ():
        print_message(note)
    if not writes:  # only the first process of a run writes to its folder, the others have a temporary one
        import atexit
        import shutil
        import tempfile

        folder = tempfile.mkdtemp(prefix="grokbit-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        more = [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    replaced = {word.partition("=")[0] for word in more}
    flags, words = split_flags(rest)  # before the overrides, between which Hydra takes none
    return [argv[0], *sweep, *flags, *(word for word in words if word.lstrip("+").partition("=")[0] not in replaced), *more]


@contract
def redact_config(cfg: Any, resolve: bool = False) -> Any:
    """Return a copy of a configuration without passwords; references are not looked up, unless with `resolve`."""
    from omegaconf import OmegaConf

    config = cfg if OmegaConf.is_config(cfg) else OmegaConf.create(cfg)
    return OmegaConf.create(redact(OmegaConf.to_container(config, resolve=resolve, enum_to_str=True)))


@cache
def redact_configurations() -> None:
    """Keep passwords out of each configuration that Hydra prints or writes in this process: --cfg, multirun.yaml, .hydra/."""
    from omegaconf import OmegaConf

    config_class: Any = OmegaConf
    to_yaml = config_class.to_yaml

    def to_redacted_yaml(cfg: Any, *, resolve: bool = False, sort_keys: bool = False) -> str:
        return str(to_yaml(redact_config(cfg, resolve), sort_keys=sort_keys))

    config_class.to_yaml = staticmethod(to_redacted_yaml)


class FilteredStream:
    """stderr without Hydra's announcement of an error, which follows in our own words."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    @contract
    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contract
def locate_error(error: BaseException) -> str:
    """Return an error behind the last file:line on its way that is neither ours nor a library's; empty where there is none.

    Empty also for a ValueError of ours: it says itself what is wrong.
    """
    files = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
    files += [(error.filename or "", error.lineno)] if isinstance(error, SyntaxError) else []
    files = [(file, line) for file, line in files if file.startswith(OURS) or not file.startswith(LIBRARIES)]
    own = [f"{file}:{line}" for file, line in files if not file.startswith(OURS)]
    is_told = isinstance(error, ValueError) and files[-1][0].startswith(OURS) if files else True
    return f"{own[-1]}: {describe_error(error)}" if own and not is_told else ""


@contextmanager
def name_own_lines() -> Iterator[None]:
    """Raise ValueError with file and line in place of an error that arises in a module of the user's own."""
    try:
        yield
    except Exception as error:
        if text := locate_error(error):
            raise ValueError(f"{text}\nHYDRA_FULL_ERROR=1 shows the traceback") from error
        raise


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
    except Stopped as stopped:
        print(stopped, file=stderr)
        sys.exit(get_exit_code(stopped.signum))
    except user_errors as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, user_errors):
            raise
        from research.composition.overrides import format_mistake

        logs = [handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
        logs = [log for log in logs[-1:] if os.path.exists(log)]  # a run that never began leaves none
        lines = (*str(cause).splitlines()[: 3 if logs else 8], *(f"the traceback is in {log}" for log in logs))
        print_message(format_mistake(*lines), stderr)
        sys.exit(1)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
