"""On an NVIDIA GPU: packed ternary products against bf16 nn.Linear, beside the bandwidth that bounds one row; training steps.

    python benchmarks/gpu.py [--rounds 20]

One row reads every weight once: its figure is the bytes of the weights by the time, and the share of what a copy of as much
memory reaches in the same round (the roofline). 512 rows are multiplications by the time. A training step is bitnet's over
its full-precision twin's, both under bf16 autocast (d = 1024, 8 layers, 8 sequences of 512). Arms take turns; a figure is the
median of the rounds, a ratio the median of the rounds' ratios. Without a GPU it says so.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.packed import PackedLinear

SHAPES = [(4096, 4096), (4096, 11008)]  # outputs, inputs
COPIES = 16  # distinct matrices: more than a cache holds
Arm = Callable[[], object]


def measure_seconds(arm: Arm) -> float:
    """By the GPU's own clock."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    arm()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3


def run_interleaved(arms: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """The seconds of each in each round, after two that do not count."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 2):
        for name, arm in arms.items():
            spent = measure_seconds(arm)
            if turn >= 2:
                times[name].append(spent)
    return times


def compute_ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)


def compare_products(out: int, width: int, rows: int, rounds: int) -> dict[str, float]:
    """Packed and bf16, of `rows` rows."""
    packed = [PackedLinear.from_bitlinear(BitLinear(width, out, bias=False)).cuda() for _ in range(COPIES)]
    plain = [nn.Linear(width, out, bias=False, device="cuda", dtype=torch.bfloat16) for _ in range(COPIES)]
    x = torch.randn(rows, width, device="cuda")
    small, source = x.bfloat16(), torch.empty(COPIES * packed[0].codes.nbytes, dtype=torch.uint8, device="cuda")

    def make_arm(layers: list[PackedLinear] | list[nn.Linear], inputs: Tensor) -> Arm:
        return lambda: [layer(inputs) for layer in layers]

    with torch.no_grad():
        arms = {"packed": make_arm(packed, x), "bf16": make_arm(plain, small), "copy": source.clone}
        times = run_interleaved(arms, rounds)
    each = {name: statistics.median(found) / COPIES for name, found in times.items()}
    work = 2 * rows * out * width / each["packed"] / 1e12
    rate, most = packed[0].codes.nbytes / each["packed"] / 1e9, 2 * packed[0].codes.nbytes / each["copy"] / 1e9
    name = f"{out}x{width}, {rows} row{'s' * (rows > 1)}"
    print(f"{name:<24}{1e6 * each['packed']:>10.1f}{1e6 * each['bf16']:>10.1f}{rate:>10.0f}{most:>10.0f}{work:>10.1f}")
    found = {f"bf16/packed, {name}": compute_ratio(times, "bf16", "packed")}
    return found | ({f"share of bandwidth, {name}": round(rate / most, 3)} if rows == 1 else {})


def compare_training(rounds: int) -> dict[str, float]:
    """A step of each twin."""

    def make_step(linear: type[nn.Linear]) -> Arm:
        torch.manual_seed(0)
        model = Transformer(Tokens(4096, 512), 1024, 8, 16, linear, sub_norm=True).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        tokens = torch.randint(4096, (8, 513), device="cuda")

        def train_step() -> None:
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(tokens[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return train_step

    times = run_interleaved({"ternary": make_step(BitLinear), "twin": make_step(nn.Linear)}, rounds)
    memory = torch.cuda.max_memory_allocated() / 1e6
    rates = {name: 8 * 512 / statistics.median(found) for name, found in times.items()}
    print(
        f"training: {rates['ternary']:,.0f} tokens/s ternary, {rates['twin']:,.0f} its twin, {memory:,.0f} MB at most for both"
    )
    return {"training step: ternary/twin": compute_ratio(times, "ternary", "twin")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count")
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("no NVIDIA GPU here: nothing to measure")
        print(json.dumps({"bounds": {}}))
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'':<24}{'packed us':>10}{'bf16 us':>10}{'GB/s':>10}{'copy GB/s':>10}{'TFLOP/s':>10}")
    found: dict[str, float] = {}
    for out, width in SHAPES:
        for rows in (1, 512):
            found |= compare_products(out, width, rows, rounds)
    print(json.dumps(found | compare_training(rounds) | {"bounds": {}}))


if __name__ == "__main__":
    main()
