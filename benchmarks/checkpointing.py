"""What a checkpoint costs: its speed against the disk's own, and what saving takes from a run.

    python benchmarks/checkpointing.py [--millions 100] [--commits 7] [--rounds 20] [--threads N]

Speed: a snapshot of so many million parameters with AdamW's two numbers for each (12 bytes a parameter) is committed,
digests included, in turn with a plain sequential write of as many bytes, both synced to the disk; the ratio is the median
of the rounds'. Run: one training of 6.3 million parameters, 75 MB a checkpoint, in steps of about 50 ms; windows of 100
steps without a save, with one in the loop and with one beside it take turns, and each is compared with its neighbour.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

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
OUTPUTS = Path(__file__).resolve().parents[1] / "outputs"  # the disk that runs are kept on


def write_plain(path: Path, num_bytes: int) -> float:
    """Seconds to write so many bytes and sync them."""
    block = bytes(1 << 24)
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(num_bytes // len(block)):
            file.write(block)
        file.write(block[: num_bytes % len(block)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    return seconds


def measure_speed(millions: int, rounds: int, root: Path) -> float:
    """Speed of a commit over that of a plain write."""
    layers = [torch.randn(1_000_000) for _ in range(millions)]
    memory = [torch.randn(1_000_000) for _ in range(2 * millions)]
    whole = Snapshot(Manifest(1, {}), {"model": {str(i): layer for i, layer in enumerate(layers)}}, {"optimizer": memory})
    count = 12_000_000 * millions
    ratios = []
    for turn in range(rounds):
        by_hand = write_plain(root / "plain", count)
        begun = time.perf_counter()
        folder = checkpoint.commit(root, whole)
        ours = time.perf_counter() - begun
        shutil.rmtree(folder)
        ratios.append(by_hand / ours)
        print(f"round {turn + 1}: plain {count / by_hand / 1e9:.2f} GB/s, commit {count / ours / 1e9:.2f} GB/s")
    return statistics.median(ratios)


class Windows(Callback):
    """Cuts a run into windows of 100 steps, in turn without a save, with one in the loop, and with one in the background.

    It saves early in the window, so that what the thread does falls into the same one.
    """

    saves = True

    def __init__(self) -> None:
        self.modes = {"none": None, "in the loop": Checkpoint(every=1), "background": Checkpoint(every=1, background=True)}
        self.times: dict[str, list[float]] = {kind: [] for kind in self.modes}
        self.window_start = 0.0

    def on_step(self, state: State) -> None:
        window, place = divmod(state.progress.step, WINDOW)
        saving = self.modes[kind := list(self.modes)[window % len(self.modes)]]
        if place == WINDOW // 10 and saving:
            saving.on_step(state)
        if place == WINDOW - 1:
            if saving:
                saving.flush()
            now = time.perf_counter()
            if window >= len(self.modes):  # the first round warms up
                self.times[kind].append(now - self.window_start)
            self.window_start = now


def time_windows(rounds: int, root: Path) -> dict[str, list[float]]:
    """Seconds of each window, by its kind."""
    data, windows = modular(p=47), Windows()
    torch.manual_seed(0)
    model = Transformer(data.shape, 512, 2, 8, nn.Linear)
    optimizer = from_base(model, partial(torch.optim.AdamW, fused=True), lr=1e-3)
    trainer = Trainer(WINDOW * len(windows.modes) * (rounds + 1), BATCH, eval_every=10**9, device="cpu")
    trainer.fit(model, optimizer, constant, last_token, data, [windows], folder=root)
    return windows.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=100, help="parameters of the checkpoint, in millions")
    parser.add_argument("--commits", type=int, default=7, help="commits and plain writes of it")
    parser.add_argument("--rounds", type=int, default=20, help="windows of each kind")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="for the training; by default one core is left"
    )
    args = parser.parse_args()
    OUTPUTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUTS) as folder:
        ratios = {"commit/plain": measure_speed(args.millions, args.commits, Path(folder))}
        torch.set_num_threads(args.threads)
        times = time_windows(args.rounds, Path(folder))
    for kind in ("in the loop", "background"):
        each = [a / b for a, b in zip(times[kind], times["none"], strict=True)]
        ratios[f"{kind}/none"] = statistics.median(each)
        print(f"{kind}: {', '.join(f'{ratio:.2f}' for ratio in sorted(each))}")
    step = 1e3 * statistics.median(times["none"]) / WINDOW
    print(f"a step takes {step:.0f} ms; " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()} | {"bounds": BOUNDS}))


if __name__ == "__main__":
    main()
