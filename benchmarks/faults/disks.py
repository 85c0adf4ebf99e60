"""Disks that become full, and disks whose power is cut. Both take root; without it their rows say that they were not tried."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.faults.results import Row
from research.contracts import contract


@contextmanager
def mount(row: Row, *arguments: str) -> Iterator[Path | None]:
    """Yield a folder where a file system is mounted; None if that cannot be done here, which the row then says."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", *arguments, folder], capture_output=True)
        if done.returncode:
            row.remark = "not tried: no file system can be mounted here (it takes root)"
            yield None
            return
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
@contract
def mount_small_disk(row: Row, megabytes: int) -> Iterator[Path | None]:
    """Yield a new small file system in memory."""
    with mount(row, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs") as folder:
        yield folder


@contract
def fill_disk(disk: Path) -> None:
    """Fill the file system to the last byte."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        for _ in range(shutil.disk_usage(disk).total // 4096 + 1):
            file.write(bytes(4096))


@contextmanager
@contract
def mount_image(row: Row, image: Path, megabytes: int) -> Iterator[Path | None]:
    """Yield a new ext4 file system with the defaults of ext4, which lies in a file."""
    if not shutil.which("mkfs.ext4"):
        row.remark = "not tried: mkfs.ext4 is not installed"
        yield None
        return
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mount(row, "-o", "loop", str(image)) as folder:
        yield folder


@contextmanager
@contract
def cut_power(row: Row, image: Path) -> Iterator[Path]:
    """Yield what a power cut at this moment would leave: the image is copied, and the copy mounted, which replays its journal.

    Whoever writes to the image has to be stopped meanwhile, or the copy would be one of several moments.
    """
    copy = image.with_suffix(".copy")
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
    try:
        with mount(row, "-o", "loop", str(copy)) as folder:
            if folder is None:
                raise RuntimeError("the copy of an image that is mounted cannot be mounted")
            yield folder
    finally:
        copy.unlink()
