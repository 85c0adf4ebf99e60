"""Faults of one checkpoint, in any system: kill -9 in a save, damaged files, a full disk."""

import contextlib
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import Child, run_in_child
from systems import Grokbit, ReportStep, System

NUMBERS = 1_000_000  # float32 in the model, and twice as many in the optimizer's memory: 12 MB
SMALL_NUMBERS = 1_000  # where files are damaged
MAX_DELAY = 0.3  # seconds until the kill: some saves
STEPS = 4  # before files are damaged


@dataclass
class Row:
    """How often a fault was tried on a system, and what came of it."""

    fault: str
    system: str
    times: int = 0
    survived: int = 0  # goes on, by itself, from the newest checkpoint that was complete and is not damaged
    error: int = 0  # goes no further: what is wrong was noticed, nothing else is tried
    lost: int = 0  # goes on from an older one than that
    wrong: int = 0  # goes on from numbers that were never saved together, and says nothing
    remark: str = ""

    def count(self, outcome: str) -> None:
        self.times += 1
        setattr(self, outcome, getattr(self, outcome) + 1)


def classify_resume(system: System, root: Path, min_step: int) -> str:
    """What a system makes of what is there; at `least` this step it should go on from."""
    try:
        step, right = run_in_child(lambda: system.resume(root))
    except OSError:
        return "error"
    return "wrong" if not right else "lost" if step < min_step else "survived"


def kill_in_save(kind: type[System], times: int) -> Row:
    """A process that saves again and again is killed at a random moment."""
    system, row, drafts = kind(NUMBERS), Row("kill -9 in a save", kind.name), 0
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)

            def save(report_step: ReportStep, root: Path = root) -> None:
                system.train(root, report_step)

            with Child(save) as child:
                first = child.receive()
                time.sleep(random.uniform(0.0, MAX_DELAY))
                child.kill()
                last = max([first, *child.receive_all()])
            drafts += any(root.rglob(".draft-*"))
            row.count(classify_resume(system, root, last))
    row.remark = f"{drafts} of them left a draft" if kind is Grokbit else ""
    return row


def corrupt(content: bytes, every: int) -> Iterator[tuple[str, bytes | None]]:
    """A file's content after each fault; None where it is gone."""
    yield "file missing", None
    yield "file empty", b""
    yield "file cut", content[: len(content) // 2]
    yield "file cut", content[:-1]
    for place in range(0, len(content), max(1, len(content) // every)):
        broken = bytearray(content)
        broken[place] ^= 1 << (place % 8)
        yield "bit flipped", bytes(broken)


def damage_files(kind: type[System], flips: int) -> list[Row]:
    """Each file of the newest checkpoint after each fault; what is right all the same has survived."""
    system = kind(SMALL_NUMBERS)
    rows = {fault: Row(fault, kind.name) for fault in ("file missing", "file empty", "file cut", "bit flipped")}
    silent: dict[str, set[str]] = {fault: set() for fault in rows}
    with save_steps(system) as root:
        for path in system.list_files(root):
            content = path.read_bytes()
            for fault, broken in corrupt(content, flips):
                path.unlink() if broken is None else path.write_bytes(broken)
                found = classify_resume(system, root, STEPS - (kind is Grokbit))
                rows[fault].count(
                    found if found != "survived" or kind is not Grokbit or is_damage_named(root, path) else "error"
                )
                if found == "wrong":
                    silent[fault].add(path.name)
                path.write_bytes(content)
    for fault, names in silent.items():
        rows[fault].remark = f"silently wrong: {', '.join(sorted(names))}" if names else ""
    return list(rows.values())


def swap_manifest(kind: type[System]) -> Row:
    """The manifest of another run, of the same step, in the place of its own."""
    system, row = kind(SMALL_NUMBERS), Row("manifest of another run", kind.name)
    with save_steps(system) as root, save_steps(kind(SMALL_NUMBERS + 1)) as other:
        mine, theirs = (next(path for path in system.list_files(r) if path.name == "manifest.json") for r in (root, other))
        mine.write_bytes(theirs.read_bytes())
        row.count(
            "survived" if is_damage_named(root, None) and classify_resume(system, root, STEPS - 1) == "survived" else "wrong"
        )
    return row


@contextmanager
def save_steps(system: System) -> Iterator[Path]:
    """A folder with the checkpoints of some steps."""
    with tempfile.TemporaryDirectory() as folder:
        run_in_child(lambda: system.train(Path(folder), lambda step: None, STEPS))
        yield Path(folder)


def is_damage_named(root: Path, path: Path | None) -> bool:
    """Whether the newest checkpoint is refused, with the name of the file that is damaged."""
    from research.training import checkpoint

    try:
        checkpoint.read(checkpoint.find(root)[0])
    except checkpoint.DamagedError as error:
        return path is None or path.name in str(error)
    return False


@contextmanager
def mount_small_disk(megabytes: float) -> Iterator[Path | None]:
    """A file system of its own; None where none can be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        size = f"size={int(megabytes * 1024)}k"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode:
            yield None
            return
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def fill_disk(disk: Path) -> None:
    """Not a byte more fits."""
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)


NO_DISK = "not tried: no small file system can be mounted here (it takes root)"


def save_to_full_disk(kind: type[System]) -> Row:
    """The disk is full from a save on; then it has room again, and the training is to go on."""
    system, row = kind(NUMBERS), Row("full disk in a save", kind.name)
    with mount_small_disk(80) as disk:
        if disk is None:
            row.remark = NO_DISK
            return row
        root = disk / "run"
        root.mkdir()
        told: list[Any] = []

        def train(report_step: ReportStep) -> None:
            def report_and_fill(step: int) -> None:
                if step == STEPS:
                    fill_disk(disk)
                report_step(step)

            system.train(root, report_and_fill, 2 * STEPS)

        with Child(train) as child:
            told = child.receive_all()
        last = max(step for step in told if isinstance(step, int))
        errors = [str(error) for error in told if isinstance(error, OSError)]
        (disk / "filler").unlink()
        row.count(classify_resume(system, root, last))
        row.remark = (
            f"says: {re.sub(r': .?/.*', '', errors[0].splitlines()[0])}"
            if errors
            else "no error: the room of an old one was enough"
        )
    return row
