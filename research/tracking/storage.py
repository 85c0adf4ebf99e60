"""What MLflow's store and Optuna's storage share: a lock on a file."""

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass
class FileLock:
    """An exclusive lock on a file. The system releases it when the process ends, however that ends.

    `acquire` and `release` are the interface that Optuna's JournalFileBackend calls.
    """

    path: Path
    file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait until no other process holds the lock, then hold it. Return True."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            file.close()
            reason = f"{self.path} cannot be locked ({error.strerror}): this file system has no locks"
            raise OSError(error.errno, f"{reason}, without which processes would lose what others write") from error
        self.file = file
        return True

    def release(self) -> None:
        assert self.file is not None
        self.file.close()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
