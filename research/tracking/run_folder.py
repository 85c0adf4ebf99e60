"""A run folder at the moment where a run begins, or turns out not to."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from research import run_dir
from research.cli import redact
from research.contracts import contract
from research.run_dir import RunConfig

HYDRAS_FILES = {"train.log", ".lock"}  # there before a run begins


def begin_run_folder(run_config: RunConfig, config_yaml: str, environment: dict[str, Any], difference: str) -> None:
    """Write down what was requested and where, with git's difference, before anything can go wrong.

    Raise ValueError where another run would be lost.
    """
    folder = run_config.folder
    begins_again = run_config.in_sweep or run_config.config["resume"]["path"] == "auto"  # without a checkpoint
    if run_dir.holds_run(folder) and not run_config.resumed and not begins_again:
        raise ValueError(f"out: {folder} holds a run already\ngive resume=auto to continue it, or another out or name")
    run_dir.check_links(folder)
    run_dir.make_folder(folder)
    for parent in (folder, *folder.parents[:3]):  # Hydra has made them
        run_dir.sync(parent)
    run_dir.replace_text(folder / "config.yaml", config_yaml)
    keep_environment(folder)
    overrides = "".join(f"{line}\n" for line in run_config.overrides)
    run_dir.replace_text(folder / "overrides.txt", overrides)
    run_dir.write_record(folder / "env.json", environment | {"overrides": overrides})
    if difference:
        run_dir.replace_text(folder / "git.diff", redact(difference) + "\n")


def keep_environment(folder: Path) -> None:
    """Keep the env.json of an earlier part of the run as env.1.json, env.2.json, ..."""
    if (file := folder / "env.json").exists():
        numbers = [int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"env\.(\d+)\.json", path.name))]
        file.rename(folder / f"env.{1 + max(numbers, default=0)}.json")


@contract
def discard_run_folder(folder: Path) -> None:
    """Remove the folder of a run that never began: Hydra has made it, and it holds a log alone."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= HYDRAS_FILES:
        for path in folder.iterdir():
            path.unlink()
        with suppress(OSError):  # the study has other runs
            folder.rmdir()
            folder.parent.rmdir()
