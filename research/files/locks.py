"""Locks of folders and files: a process that is alive holds its own, and loses it however it ends."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from research.contracts import contract

log = logging.getLogger(__name__)


class HeldError(ValueError):
    """Another process holds a folder."""


@contextmanager
@contract
def lock(folder: Path, error_message: str = "") -> Iterator[None]:
    """Hold the folder while this process lives, however it ends. Raise HeldError while another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / ".lock") as file:
        if not try_lock(file, fcntl.LOCK_EX):
            raise HeldError(error_message or f"out: another run is writing to {folder}; give another out or name")
        yield


@contract
def open_lock(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> IO[bytes]:
    """Open a file to lock it. It keeps what it holds. Raise OSError for a link, which might lead to any file."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(path, "rb", opener=lambda name, _: os.open(name, flags, 0o666))


def try_lock(file: IO[bytes], kind: int) -> bool:
    """Lock a file and return True; False while another process holds it. Without locks warn: a run is better than none."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s): two runs in one folder would not notice each other", file.name, error.strerror)
    return True


@contract
def is_locked(folder: Path) -> bool:
    """Return whether a process on this machine holds the folder."""
    return is_file_locked(folder / ".lock")


@contract
def is_file_locked(path: Path) -> bool:
    """Return True while a process on this machine holds an exclusive lock on the file."""
    try:
        with open_lock(path, os.O_RDONLY) as file:
            return not try_lock(file, fcntl.LOCK_SH)
    except OSError as error:  # another user's counts as locked
        return not isinstance(error, FileNotFoundError)
