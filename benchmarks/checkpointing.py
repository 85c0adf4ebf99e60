"""What a checkpoint costs: its speed against the disk's own, and what saving takes from a run.

    python -m benchmarks.checkpointing [--millions 100] [--commits 7] [--rounds 20] [--threads N]

Speed: a snapshot of so many million parameters has AdamW's two numbers for each, so 12 bytes a parameter. It is committed,
digests included, in turn with a plain sequential write of as many bytes. Both are synced to the disk. Run: one training of
6.3 million parameters, 75 MB a checkpoint, in steps of about 50 ms. Windows of 100 steps without a save, with one in the
loop and with one in the background take turns. Each window is compared with its neighbour.
"""

import os
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import harness
from research.callbacks.checkpoint import Checkpoint
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.training import checkpoint
from research.training.checkpoint import Snapshot
from research.training.manifest import Manifest
from research.training.state import Callback, State
from research.training.trainer import Trainer

BOUNDS = {"commit/plain": 0.5, "background/none": 1.03}
WINDOW, BATCH = 100, 16  # steps, samples
OUTPUTS = harness.ROOT / "outputs"  # the disk that runs are written to


def write_plain(path: Path, num_bytes: int) -> float:
    """Return the seconds to write so many bytes and sync them."""
    block = bytes(1 << 24)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(num_bytes // len(block)):
            file.write(block)
        file.write(block[: num_bytes % len(block)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def commit(root: Path, snapshot: Snapshot) -> float:
    """Return the seconds to commit a checkpoint."""
    start = time.perf_counter()
    folder = checkpoint.commit(root, snapshot)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def measure_speed(millions: int, rounds: int, root: Path) -> float:
    """Print both speeds; return the speed of a commit over that of a plain write."""
    layers = [torch.randn(1_000_000) for _ in range(millions)]
    memory = [torch.randn(1_000_000) for _ in range(2 * millions)]
    snapshot = Snapshot(Manifest(1, {}), {"model": {str(i): layer for i, layer in enumerate(layers)}}, {"optimizer": memory})
    num_bytes = 12_000_000 * millions
    arms = {"plain": partial(write_plain, root / "plain", num_bytes), "commit": partial(commit, root, snapshot)}
    times = harness.run_interleaved(arms, rounds)
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


def time_windows(rounds: int, root: Path) -> dict[str, list[float]]:
    """Return the seconds of each window, by its mode."""
    data, windows = modular(p=47), Windows()
    torch.manual_seed(0)
    model = Transformer(data.shape, 512, 2, 8, nn.Linear)
    fused_adamw: partial[Any] = partial(torch.optim.AdamW, fused=True)
    trainer = Trainer(WINDOW * len(windows.modes) * (rounds + 1), BATCH, eval_every=10**9, device="cpu")
    state = trainer.setup(model, from_base(model, fused_adamw, lr=1e-3), constant, last_token, data, [windows], folder=root)
    trainer.fit(state)
    return windows.times


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--millions", type=int, default=100, help="parameters of the checkpoint, in millions")
    parser.add_argument("--commits", type=int, default=7, help="commits and plain writes of it")
    parser.add_argument("--rounds", type=int, default=20, help="windows of each mode")
    spare = max(1, (os.cpu_count() or 2) - 1)
    parser.add_argument("--threads", type=int, default=spare, help="for the training; by default one core is left")
    args = parser.parse_args()
    OUTPUTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUTS) as folder:
        ratios = {"commit/plain": measure_speed(args.millions, args.commits, Path(folder))}
        torch.set_num_threads(args.threads)
        times = time_windows(args.rounds, Path(folder))
    table = harness.Table("a window of 100 steps", "seconds", "over none", "quartiles")
    for mode, seconds in times.items():
        ratio = harness.compare(seconds, times["none"])
        table.add(mode, f"{statistics.median(seconds):.2f}", f"{ratio.median:.3f}", str(ratio))
        if mode != "none":
            ratios[f"{mode}/none"] = ratio.median
    harness.finish(ratios, {"background/none": BOUNDS["background/none"]}, {"commit/plain": BOUNDS["commit/plain"]})


if __name__ == "__main__":
    main()
