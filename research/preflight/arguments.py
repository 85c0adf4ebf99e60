"""The way of a command line to Hydra: print the help, refuse mistakes, pass on the rest. train.py calls `prepare` first."""

import os
import sys

from research.run_dir import SWEPT_ENV_VAR

INFO_FLAGS = ("--hydra-help", "--version", "--shell-completion", "-sc", "--experimental-rerun")
OTHER_CONFIG_FLAGS = ("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd")  # not our conf/
SWEEP_FLAGS = ("-m", "--multirun")


def prepare(argv: list[str]) -> list[str]:
    """Return the command line for Hydra, with `-m` in front, where Hydra 1.3 needs it.

    Prints the help and exits with 0, or prints every mistake and exits with 2. HYDRA_FULL_ERROR=1 raises ValueError instead.
    """
    sweep = [word for word in argv[1:] if word in SWEEP_FLAGS][:1]
    rest = [word for word in argv[1:] if word not in SWEEP_FLAGS]
    os.environ[SWEPT_ENV_VAR] = ""
    if {"-h", "--help"} & set(rest):
        from research.cli import print_message
        from research.preflight.help import build_help_text

        print_message(build_help_text(), sys.stdout)  # which may be a pipe into head
        sys.exit(0)
    # Only now, so that --help waits for none of it.
    from research.preflight.check import check_overrides
    from research.preflight.resume import expand_resume

    rest = [expand_resume(word) for word in rest]
    writes = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
    ours = not any(word.split("=")[0] in (*INFO_FLAGS, *OTHER_CONFIG_FLAGS) for word in rest)
    mistakes, more = check_overrides(rest, bool(sweep)) if ours else ([], [])
    if mistakes:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise ValueError("\n".join(mistakes))
        if writes:
            print("\n".join(mistakes), file=sys.stderr)
        sys.exit(2)
    return [argv[0], *sweep, *rest, *(more if writes else redirect_to_temp())]


def redirect_to_temp() -> list[str]:
    """Return overrides for a process that is not the first of its run: its folder is temporary, as only the first writes."""
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="grokbit-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
