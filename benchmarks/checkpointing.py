"""What a checkpoint costs: its speed against the disk's own, and what saving takes from a run.

    python -m benchmarks.checkpointing [--millions 100] [--commits 7] [--rounds 20] [--threads N]

Speed: a snapshot of so many million parameters has AdamW's two numbers for each, so 12 bytes a parameter. It is committed,
digests included, in turn with a plain sequential write of as many bytes. Both are synced to the disk. Run: one training of
6.3 million parameters, 75 MB a checkpoint, in steps of about 50 ms. By default its threads leave one core. Windows of 100
steps without a save, with one in the loop and with one in the background take turns, so many rounds of them.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import harness, models
from research.callbacks.checkpoint import Checkpoint
from research.contracts import contract
from research.data.modular import modular
from research.training import checkpoint
from research.training.manifest import Manifest
from research.training.state import Callback, State
from research.training.trainer import Trainer

AT_MOST, AT_LEAST = {"background/none": 1.03}, {"commit/plain": 0.5}
WINDOW, BATCH = 100, 16  # steps, samples
OUTPUTS = harness.ROOT / "outputs"  # the disk that runs are written to


@contract
def write_plain(path: Path, num_bytes: int) -> Path:
    """Write so many bytes and sync them; return the path."""
    block = memoryview(bytes(1 << 24))
    with path.open("wb", buffering=0) as file:
        for start in range(0, num_bytes, len(block)):
            file.write(block[: num_bytes - start])
        os.fsync(file.fileno())
    return path


def time_write(write: Callable[[], Path]) -> float:
    """Return the seconds that a write takes; delete what it wrote."""
    start = time.perf_counter()
    path = write()
    seconds = time.perf_counter() - start
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return seconds


def measure_speed(millions: int, rounds: int, root: Path) -> float:
    """Print both speeds; return the speed of a commit over that of a plain write."""
    layers = {str(number): torch.randn(1_000_000) for number in range(millions)}
    memory = [torch.randn(1_000_000) for _ in range(2 * millions)]
    snapshot = checkpoint.Snapshot(Manifest(1, {}), {"model": layers}, {"optimizer": memory})
    num_bytes = 12_000_000 * millions
    writes = {"plain": partial(write_plain, root / "plain", num_bytes), "commit": partial(checkpoint.commit, root, snapshot)}
    times = harness.run_interleaved({name: partial(time_write, write) for name, write in writes.items()}, rounds)
    for name, seconds in times.items():
        print(f"{name}: {', '.join(f'{num_bytes / value / 1e9:.2f}' for value in seconds)} GB/s")
    return harness.compare(times["plain"], times["commit"]).median


class Windows(Callback):
    """Cut a run into windows of 100 steps: without a save, with one in the loop, with one in the background, and again.

    The save comes early in its window, so that the work of the thread falls into the same window.
    """

    saves = True

    def __init__(self) -> None:
        self.modes = {"none": None, "in the loop": Checkpoint(every=1), "background": Checkpoint(every=1, background=True)}
        self.times: dict[str, list[float]] = {mode: [] for mode in self.modes}
        self.window_start = 0.0

    @contract
    def on_step(self, state: State) -> None:
        window, position = divmod(state.progress.step, WINDOW)
        saving = self.modes[mode := list(self.modes)[window % len(self.modes)]]
        if position == WINDOW // 10 and saving:
            saving.on_step(state)
        if position == WINDOW - 1:
            if saving:
                saving.flush()
            now = time.perf_counter()
            if window >= len(self.modes):  # the first round warms up
                self.times[mode].append(now - self.window_start)
            self.window_start = now


@contract
def main(millions: int, commits: int, rounds: int, threads: int) -> harness.Results:
    OUTPUTS.mkdir(exist_ok=True)
    data, windows = modular(p=47), Windows()
    with tempfile.TemporaryDirectory(dir=OUTPUTS) as folder:
        speed = measure_speed(millions, commits, Path(folder))
        torch.set_num_threads(threads)
        trainer = Trainer(WINDOW * len(windows.modes) * (rounds + 1), BATCH, eval_every=10**9, device="cpu")
        models.fit(trainer, models.build_parts(data, 512, 2, 8), data, windows, Path(folder))
    ratios = harness.report("a window of 100 steps", windows.times, {"none": windows.times["none"]}, "seconds")
    return {"commit/plain": speed, **ratios}


if __name__ == "__main__":
    one_core_less = max(1, (os.cpu_count() or 2) - 1)
    harness.run(main, __doc__, AT_MOST, AT_LEAST, millions=100, commits=7, rounds=20, threads=one_core_less)
