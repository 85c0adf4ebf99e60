"""Folders of the cache that several processes may want to fill: one does, the others wait."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import file_digest
from pathlib import Path

from research.cli import announce_wait
from research.contracts import contract
from research.files.locks import HeldError, lock

MAX_WAIT = 24 * 3600  # seconds: a process that needs longer hangs


@contextmanager
@contract
def wait_for_lock(folder: Path, work: str) -> Iterator[None]:
    """Hold a folder, once no other process does; `work` is what such a one does there.

    Raise HeldError where another process holds it for a day.
    """
    with ExitStack() as held:
        with announce_wait(f"another process that {work} in {folder}"):
            deadline, is_held = time.monotonic() + MAX_WAIT, False
            while not is_held:
                try:
                    held.enter_context(lock(folder))
                    is_held = True
                except HeldError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        yield


@contract
def hash_file(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
