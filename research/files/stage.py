"""A folder of results that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from research.files.locks import lock
from research.run_dir import sync

EXPORT_FILE = "export.json"  # in the folder of an export: what it is of, and how it was checked


@contextmanager
def stage_output(output: Path) -> Iterator[Path]:
    """Yield a draft folder beside `output`; after the block rename it to `output`, or delete it where the block raises.

    Delete first what a killed command has left there. Raise ValueError where `output` has files, cannot be made or replaced, or
    another command is writing to it.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} already exists and is not empty; give a new or empty folder")
    if output.resolve() == Path.cwd() or os.path.ismount(output):
        kind = "the current folder or a mount, which cannot be replaced"
        raise ValueError(f"--output {output} is {kind}; give a new folder below it")
    output = output.resolve()
    draft = output.with_name(f".{output.name}.draft")
    new_parents = [parent for parent in output.parents if not parent.exists()]
    folder = draft / output.name
    with ExitStack() as cleanup:
        try:
            cleanup.callback(remove_empty, new_parents)
            cleanup.enter_context(lock(draft, f"--output {output}: another command is writing there; give another folder"))
            # Only from here on: another command still writes to a draft that is locked.
            cleanup.callback(shutil.rmtree, draft, ignore_errors=True)
            for leftover in draft.glob("[!.]*"):
                shutil.rmtree(leftover)
            folder.mkdir()
        except OSError as error:
            raise ValueError(f"--output {output} cannot be made: {error.strerror}") from error
        yield folder
        if output.exists():
            shutil.copymode(output, folder)
        for path in (*filter(Path.is_file, folder.rglob("*")), folder):
            # some libraries make files that only their user can read
            path.chmod(path.stat().st_mode | folder.stat().st_mode & 0o666)
            sync(path)
        folder.replace(output)  # replaces an empty folder
        sync(output.parent)


def remove_empty(folders: list[Path]) -> None:
    """Remove the folders that exist and are empty, the innermost first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
