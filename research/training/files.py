"""Files of a checkpoint, hashed while they are written. How to remove what is in the way, and to separate what links share."""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from research.contracts import contract

RUN_FOLDERS = ("checkpoints", "plots")
RUN_FILES = ("config.yaml", "overrides.txt", "env.json", "metrics.jsonl", "summary.json")
CHUNK_BYTES = 1 << 24  # bytes that are hashed while they are written


@contract
class HashingFile:
    """A file that is hashed while it is written."""

    def __init__(self, descriptor: int, pool: ThreadPoolExecutor) -> None:
        self.descriptor, self.pool = descriptor, pool
        self.digest, self.bytes = sha256(), 0
        self.error: BaseException | None = None

    def write(self, content: bytes | memoryview) -> int:
        view = memoryview(content)
        for offset in range(0, len(view), CHUNK_BYTES):
            part = view[offset : offset + CHUNK_BYTES]
            hashing = self.pool.submit(self.digest.update, part)
            try:
                while part:
                    part = part[os.write(self.descriptor, part) :]
            except BaseException as error:  # a full disk, or a second Ctrl-C
                self.error = error
                raise
            finally:
                hashing.result()
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: `write` keeps nothing back."""


@contextmanager
@contract
def open_hashed(path: Path, files: dict[str, Any]) -> Iterator[HashingFile]:
    """Open a new file. Once the block is left it is on the disk, and its size and digest are in `files`."""
    with ThreadPoolExecutor(1) as pool, path.open("xb", buffering=0) as unbuffered:
        file = HashingFile(unbuffered.fileno(), pool)
        try:
            yield file
        except RuntimeError as error:  # torch.save raises its own error instead of that of the full disk
            raise file.error or error from None
        os.fsync(file.descriptor)
    files[path.name] = {"bytes": file.bytes, "sha256": file.digest.hexdigest()}


@contract
def remove(path: Path) -> None:
    """Remove a folder with all that it holds, or a file. Of a link remove the link, and nothing behind it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contract
def separate_files(folder: Path) -> None:
    """Give a copy that was made by links (cp -al) files of its own: what is written to train.log would be in both."""
    linked = [path for path in (*folder.glob("[!.]*"), *folder.glob("plots/*")) if path.is_file() and path.stat().st_nlink > 1]
    for path in linked:
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        draft.write_bytes(path.read_bytes())
        draft.replace(path)
    for handler in logging.getLogger().handlers if linked else ():
        if isinstance(handler, logging.FileHandler):
            handler.close()  # it opens its file again, which is another one now


@contract
def check_kinds(run: Path, names: Iterable[str] = (*RUN_FOLDERS, *RUN_FILES)) -> None:
    """Raise ValueError where a file stands in place of a run's folder, or a folder in place of its file.

    Before anything is written: not at the first checkpoint.
    """
    for path in (run / name for name in names if os.path.lexists(run / name)):
        if path.is_dir() != (path.name in RUN_FOLDERS):
            kind = "no folder" if path.name in RUN_FOLDERS else "a folder"
            raise ValueError(f"out: {path} is {kind}, and the run could not write there\nmove it away")
