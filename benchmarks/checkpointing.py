"""What a checkpoint costs: its speed against the disk's own, and what saving takes from a run.

    python benchmarks/checkpointing.py [--millions 100] [--rounds 7] [--steps 600]

Speed: a snapshot of so many million parameters with AdamW's two numbers for each (12 bytes a parameter) is committed,
digests included, in turn with a plain sequential write of as many bytes, both synced to the disk; the ratio is the median
of the rounds'. Run: steps of about 50 ms, a checkpoint every 100 of them, with and without the thread that writes, against
the same steps without checkpoints.
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

from research import checkpoint
from research.callback import Callback
from research.callbacks.checkpoint import Checkpoint
from research.checkpoint import Snapshot
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim.plain import plain
from research.optim.schedules import constant
from research.trainer import Trainer

BOUNDS = {"commit/plain": 0.5, "background/none": 1.03}
HERE = Path(__file__).resolve().parents[1] / "outputs"  # the disk that runs are kept on


def plain_write(path: Path, count: int) -> float:
    """Seconds to write so many bytes and sync them."""
    block = bytes(1 << 24)
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(count // len(block)):
            file.write(block)
        file.write(block[: count % len(block)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    return seconds


def speed(millions: int, rounds: int, root: Path) -> float:
    """Speed of a commit over that of a plain write."""
    layers = [torch.randn(1_000_000) for _ in range(millions)]
    memory = [torch.randn(1_000_000) for _ in range(2 * millions)]
    whole = Snapshot(1, {"model": {str(i): layer for i, layer in enumerate(layers)}}, {"optimizer": memory})
    count = 12_000_000 * millions
    ratios = []
    for turn in range(rounds):
        by_hand = plain_write(root / "plain", count)
        begun = time.perf_counter()
        folder = checkpoint.commit(root, whole)
        ours = time.perf_counter() - begun
        shutil.rmtree(folder)
        ratios.append(by_hand / ours)
        print(f"round {turn + 1}: plain {count / by_hand / 1e9:.2f} GB/s, commit {count / ours / 1e9:.2f} GB/s")
    return statistics.median(ratios)


def run(steps: int, callbacks: list[Callback], root: Path) -> float:
    """Seconds of training, the end of the last save included."""
    data = modular(p=47)
    torch.manual_seed(0)
    model = Transformer(data.shape, 256, 2, 4, nn.Linear)
    optimizer = plain(model, partial(torch.optim.AdamW, fused=True), lr=1e-3)
    trainer = Trainer(steps, 192, eval_every=10**9, device="cpu")
    begun = time.perf_counter()
    trainer.fit(model, optimizer, constant, last_token, data, callbacks, folder=root)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=100, help="parameters of the checkpoint, in millions")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each measurement")
    parser.add_argument("--steps", type=int, default=600, help="steps of a run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        root = Path(folder)
        ratios = {"commit/plain": speed(args.millions, args.rounds, root)}
        kinds = {"none": [], "in the loop": [False], "background": [True]}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(args.rounds):
            for kind, settings in kinds.items():
                callbacks: list[Callback] = [Checkpoint(every=100, background=background) for background in settings]
                times[kind].append(run(args.steps, callbacks, root))
        for kind in ("in the loop", "background"):
            ratios[f"{kind}/none"] = statistics.median(a / b for a, b in zip(times[kind], times["none"], strict=True))
    step = 1e3 * statistics.median(times["none"]) / args.steps
    print(f"a step takes {step:.0f} ms; " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()} | {"bounds": BOUNDS}))


if __name__ == "__main__":
    main()
