"""Faults of checkpoints, in any system: kill -9, a closed terminal and a power cut in saves, damaged files, a full disk."""

import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from benchmarks.faults.disks import cut_power, fill_disk, mount_image, mount_small_disk
from benchmarks.faults.results import Row
from benchmarks.faults.systems import Grokbit, OnStep, System
from research.contracts import contract
from research.run_dir import list_checkpoints
from research.training import checkpoint
from research.training.manifest import DamagedError

NUMBERS = 1_000_000  # float32 in the model, and twice as many in the optimizer's state: 12 MB
SMALL_NUMBERS = 1_000  # for the faults of files
MAX_DELAY = 0.3  # seconds until the kill: some saves
STEPS = 4  # before files are damaged
FIRST_CUT = 6.0  # seconds until the power is cut: ext4 writes by itself what is older than 5
TIMEOUT = 120.0  # seconds without a message from a child
FORK = multiprocessing.get_context("fork")


@contextmanager
def fork(work: Callable[[Callable[[Any], None]], None]) -> Iterator[tuple[ForkProcess, Iterator[Any]]]:
    """Run `work(send)` in a fork without output; yield its process and what it sends. At the end it is killed."""
    pipe, child_pipe = FORK.Pipe(duplex=False)

    def run() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the campaign may run under nohup
        try:
            work(child_pipe.send)
        except BaseException as error:
            child_pipe.send(OSError(f"{type(error).__name__}: {error}"))
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    child_pipe.close()  # so that `recv` raises EOFError once the child has ended
    try:
        yield process, receive(pipe)
    finally:
        process.kill()
        process.join()
        pipe.close()


@contract
def receive(pipe: Any) -> Iterator[Any]:
    """Yield what a child sends until it ends. Raise TimeoutError after TIMEOUT seconds without a message."""
    while pipe.poll(TIMEOUT):
        try:
            yield pipe.recv()
        except (EOFError, OSError):  # OSError: it was killed while it sent
            return
    raise TimeoutError(f"the child sent nothing for {TIMEOUT:.0f} s")


def run_in_child(work: Callable[[], Any]) -> Any:
    """Do the work in a fork and return its result. Raise OSError with the text of whatever error it raised."""
    with fork(lambda send: send(work())) as (_, messages):
        result = next(messages, OSError("the child died"))
    if isinstance(result, OSError):
        raise result
    return result


def classify_resume(system: System, root: Path, min_step: int) -> str:
    """Resume a system and return the outcome, a field of Row; it should resume from `min_step` or later."""
    try:
        step, right = run_in_child(lambda: system.resume(root))
    except OSError:
        return "error"
    return "wrong" if not right else "lost" if step < min_step else "survived"


@contract
def kill_in_save(kind: type[System], times: int, signum: signal.Signals = signal.SIGKILL) -> Row:
    """End a process at a random moment while it saves again and again."""
    system, row = kind(NUMBERS), Row("kill -9 in a save" if signum == signal.SIGKILL else f"{signum.name} in a save", kind.name)
    drafts = 0
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            with fork(partial(system.train, root)) as (process, steps):
                first = next(steps)
                time.sleep(random.uniform(0.0, MAX_DELAY))
                os.kill(process.pid or 0, signum)
                last = max([first, *(step for step in steps if isinstance(step, int))])
            drafts += any(root.rglob(".draft-*"))
            row.count(classify_resume(system, root, last))
    row.remark = f"{drafts} of them left a draft" if kind is Grokbit else ""
    return row


@contract
def cut_power_in_save(kind: type[System], times: int) -> Row:
    """Save again and again to an image, and cut its power at random moments: what was said to be saved has to be there."""
    system, row = kind(NUMBERS), Row("power cut in saves", kind.name)
    with tempfile.TemporaryDirectory() as folder, mount_image(row, image := Path(folder, "image"), 256) as disk:
        if disk is None:
            return row
        (disk / "run").mkdir()
        with fork(partial(system.train, disk / "run")) as (process, steps):
            pause = FIRST_CUT
            for _ in range(times):
                moment = time.monotonic() + pause + random.uniform(0, 3)
                last = next(step for step in steps if time.monotonic() > moment)
                time.sleep(random.uniform(0, 0.1))
                os.kill(process.pid or 0, signal.SIGSTOP)
                with cut_power(row, image) as after:
                    row.count(classify_resume(system, after / "run", last))
                os.kill(process.pid or 0, signal.SIGCONT)
                pause = 0.0
    return row


@contract
def resume_in_epoch(kind: type[System], factor: int) -> Row:
    """Train two steps of an epoch, and the rest of it with so many times the batch size: each sample has to come once."""
    fault = "resume with another batch size" if factor > 1 else "resume within an epoch"
    system, row, rest = kind(SMALL_NUMBERS), Row(fault, kind.name), kind.num_samples - 2 * kind.batch_size

    def train(root: Path, steps: int, resume: bool) -> list[tuple[float, ...]]:
        os.dup2(os.open(root / "output", os.O_WRONLY | os.O_CREAT), 2)
        system.batch_size *= factor if resume else 1
        system.fit(root, steps, resume, lambda step: None)
        return system.model.samples

    with tempfile.TemporaryDirectory() as folder:
        samples = run_in_child(lambda: train(Path(folder), 2, False))
        samples += run_in_child(lambda: train(Path(folder), 2 + rest // (kind.batch_size * factor), True))
        warned = re.search("not resumable|arguments do not match", Path(folder, "output").read_text())
    repeated, missing = len(samples) - len(set(samples)), system.num_samples - len(set(samples))
    row.count("survived" if not repeated and not missing else "lost" if warned else "wrong")
    row.remark = f"{repeated} samples came again, {missing} did not come{', which a warning says' if warned else ''}"
    return row


def corrupt(content: bytes, every: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield each fault with the content of the file after it; None for a missing file."""
    yield "file missing", None
    yield "file empty", b""
    yield "file cut", content[: len(content) // 2]
    yield "file cut", content[:-1]
    for position in range(0, len(content), max(1, len(content) // every)):
        broken = bytearray(content)
        broken[position] ^= 1 << (position % 8)
        yield "bit flipped", bytes(broken)


@contract
def damage_files(kind: type[System], flips: int, keeps: int = 2) -> list[Row]:
    """Damage each file of the newest checkpoint by each fault; one to be kept: flip bits. Right numbers count as survived."""
    system, silent = kind(SMALL_NUMBERS), dict[str, set[str]]()
    rows: dict[str, Row] = {}
    system.keeps = keeps
    with save_steps(system) as root:
        for path in system.list_files(root):
            content = path.read_bytes()
            for fault, broken in corrupt(content, flips):
                if keeps == 1 and fault != "bit flipped":
                    continue
                path.unlink() if broken is None else path.write_bytes(broken)
                outcome = classify_resume(system, root, STEPS - (kind is Grokbit))
                if outcome == "survived" and kind is Grokbit and not is_damage_named(root, path.name):
                    outcome = "error"  # ours also has to say which file is damaged
                if outcome == "wrong":
                    silent.setdefault(fault, set()).add(path.name)
                rows.setdefault(fault, Row(f"{fault}, told to keep one" if keeps == 1 else fault, kind.name)).count(outcome)
                path.write_bytes(content)
    for fault, names in silent.items():
        rows[fault].remark = f"silently wrong: {', '.join(sorted(names))}"
    return list(rows.values())


def swap_manifest() -> Row:
    """Replace the manifest by that of another run at the same step."""
    system, row = Grokbit(SMALL_NUMBERS), Row("manifest of another run", Grokbit.name)
    with save_steps(system) as root, save_steps(Grokbit(SMALL_NUMBERS + 1)) as other:
        own, foreign = (next(path for path in system.list_files(r) if path.name == "manifest.json") for r in (root, other))
        own.write_bytes(foreign.read_bytes())
        survived = is_damage_named(root, "") and classify_resume(system, root, STEPS - 1) == "survived"
        row.count("survived" if survived else "wrong")
    return row


@contextmanager
def save_steps(system: System) -> Iterator[Path]:
    """Yield a folder with the checkpoints of some steps."""
    with tempfile.TemporaryDirectory() as folder:
        run_in_child(lambda: system.train(Path(folder), lambda step: None, STEPS))
        yield Path(folder)


def is_damage_named(root: Path, name: str) -> bool:
    """Return true if the newest checkpoint is refused with the name of the damaged file."""
    try:
        checkpoint.read(next(iter(list_checkpoints(root).values())))
    except DamagedError as error:
        return name in str(error)
    return False


@contract
def save_to_full_disk(kind: type[System]) -> Row:
    """Fill the disk during a save, then free it: the training has to resume."""
    system, row = kind(NUMBERS), Row("full disk in a save", kind.name)
    with mount_small_disk(row, 80) as disk:
        if disk is None:
            return row
        root = disk / "run"
        root.mkdir()

        def train(report_step: OnStep) -> None:
            def report_and_fill(step: int) -> None:
                if step == STEPS:
                    fill_disk(disk)
                report_step(step)

            system.train(root, report_and_fill, 2 * STEPS)

        with fork(train) as (_, sent):
            messages = list(sent)
        errors = [str(message) for message in messages if isinstance(message, OSError)]
        (disk / "filler").unlink()
        row.count(classify_resume(system, root, max(step for step in messages if isinstance(step, int))))
        row.remark = "no error: the space of an old checkpoint was enough"
        if errors:
            row.remark = f"says: {re.sub(r': .?/.*', '', errors[0].splitlines()[0])}"
    return row
