"""What a step of Grokfast and AdamW costs over torch's fused AdamW alone, beside what others offer for the same.

    python -m benchmarks.filter_cost [--sizes 0.4,10,100] [--rounds 7] [--threads 2]

The tensors are a transformer's: 0.4 million numbers in 29 tensors, 10 million in 65, 100 million in 149. Gradients are the
same at each step; they are restored before the clock starts. All versions live in one process and run in turn; the ratio is
the median of the rounds' ratios. With two threads wall time is measured, so the machine has to be quiet. With --threads 1
CPU time is measured, which other load disturbs less. In each round the window does one full pass over its ring, so its one
new sum counts too. About a minute and a half on two cores, and 12 GB.

  ours, one pass    research/optim/fused.py, the step of a Grokfast optimizer over AdamW(fused=True)
  ours, in torch    the same optimizer where it has to be plain: foreach filter, then torch's fused step
  as published      the filter of the paper's Algorithm 2, a loop over a dictionary that makes new tensors, then AdamW fused
  floor             36 bytes a number, which the one pass reads and writes, at the speed of a += b; AdamW alone has 28
"""

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks import harness
from research.optim import fused, grokfast

BASELINE, ONE_PASS, IN_TORCH, WINDOW = "AdamW(fused=True)", "ours, one pass", "ours, in torch", "ours, window of 100, one pass"
PUBLISHED, PEER, FLOOR = "as published", "pytorch_optimizer", "floor"
SIZES = {"0.4": (128, 2, 97), "10": (384, 5, 2048), "100": (768, 12, 10_000)}  # width, layers, vocabulary
STEPS = {"0.4": 20, "10": 4, "100": 1}  # of a version in each round
WINDOW_SIZE = 100
BOUNDS = {f"{ONE_PASS}/{BASELINE}": 1.05, f"{IN_TORCH}/{BASELINE}": 2.1, f"{WINDOW}/{BASELINE}": 1.8}
OPTIM_SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}


class AdamWSubclass(AdamW):
    """AdamW under another name: the one pass takes torch's own class only."""


@dataclass
class Version:
    """One way to make a step."""

    step: Callable[[], Any]
    count_bytes: Callable[[], int] = lambda: 0  # bytes beside weights and gradients
    steps: int = 1  # in each round
    scale: float = 1.0  # of its time


def list_shapes(width: int, layers: int, vocab_size: int) -> list[tuple[int, ...]]:
    vector, square, wide = (width,), (width, width), (4 * width, width)
    attention = [vector, vector, (3 * width, width), (3 * width,), square, vector]
    layer = [*attention, vector, vector, wide, (4 * width,), wide[::-1], vector]
    return [(vocab_size, width), (128, width), *layer * layers, vector, vector, (vocab_size, width)]


def make_version(optimizer: Optimizer, steps: int, *filters: Callable[[dict[str, Tensor]], object]) -> Version:
    """Return a version that calls `filters`, which store averages of the gradients, and then the optimizer's step."""
    averages: dict[str, Tensor] = {}

    def step() -> None:
        for apply_filter in filters:
            apply_filter(averages)
        optimizer.step()

    def count_bytes() -> int:
        values = [value for state in optimizer.state.values() for value in state.values()]
        return sum(x.nbytes for x in [*values, *averages.values()] if isinstance(x, Tensor))

    return Version(step, count_bytes, steps)


def filter_as_published(model: nn.Module, averages: dict[str, Tensor]) -> None:
    """Filter the gradients by Algorithm 2 of 2405.20233 as one writes it down."""
    for name, p in model.named_parameters():
        assert p.grad is not None
        averages[name] = averages[name] * 0.98 + p.grad * 0.02 if name in averages else p.grad
        p.grad = p.grad + averages[name] * 2.0


def make_floor(count: int, steps: int) -> Version:
    """Return a version that only touches the memory of the one pass; for a large model a part of it, scaled."""
    size = min(count * 9 // 2, 1 << 26)
    a, b = torch.zeros(size), torch.zeros(size)
    return Version(lambda: a.add_(b), steps=steps, scale=36 * count / (12 * size))


def make_versions(size: str, model: nn.Module) -> tuple[dict[str, Version], dict[str, str]]:
    """Return all versions of a size; and for each that is not measured, the reason."""
    steps, count = STEPS[size], sum(p.numel() for p in model.parameters())
    settings: dict[str, Any] = {"lamb": 2.0, "no_decay": (), **OPTIM_SETTINGS}
    fused_adamw: partial[Any] = partial(AdamW, fused=True)
    plain_adamw: partial[Any] = partial(AdamWSubclass, fused=True)
    build_adamw: partial[Any] = partial(AdamW, list(model.parameters()), fused=True, **OPTIM_SETTINGS)
    versions = {
        BASELINE: make_version(build_adamw(), steps),
        ONE_PASS: make_version(grokfast.ema(model, fused_adamw, alpha=0.98, **settings), steps),
        IN_TORCH: make_version(grokfast.ema(model, plain_adamw, alpha=0.98, **settings), steps),
        PUBLISHED: make_version(build_adamw(), steps, partial(filter_as_published, model)),
        FLOOR: make_floor(count, steps),
    }
    reasons = {}
    if size == "100":
        reasons[WINDOW] = f"not measured: its memory is {4 * (WINDOW_SIZE + 1) * count / 1e6:,.0f} MB"
    else:
        versions[WINDOW] = make_version(grokfast.ma(model, fused_adamw, window=WINDOW_SIZE, **settings), WINDOW_SIZE)
    try:
        from pytorch_optimizer.optimizer.grokfast import gradfilter_ema
    except ImportError as error:
        reasons[PEER] = f"not installed ({error}): pip install pytorch_optimizer"
    else:
        versions[PEER] = make_version(
            build_adamw(), steps, lambda averages: gradfilter_ema(model, averages, alpha=0.98, lamb=2.0)
        )
    return versions, reasons


def make_arm(version: Version, params: list[nn.Parameter], clock: harness.Clock) -> Callable[[], float]:
    """Return an arm that measures seconds a step. One step before them, which does not count, warms the caches."""
    raw = [torch.randn_like(p) * 0.01 for p in params]
    grads = [torch.empty_like(p) for p in params]

    def measure_version() -> float:
        seconds = 0.0
        for number in range(version.steps + 1):
            torch._foreach_copy_(grads, raw)
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            start = clock()
            version.step()
            seconds += (clock() - start) * (number > 0)
        return seconds / version.steps * version.scale

    return measure_version


def measure(size: str, rounds: int, clock: harness.Clock) -> dict[str, float]:
    """Print the table of a size; return the ratios."""
    torch.manual_seed(0)
    model = nn.ParameterList(torch.randn(shape) * 0.02 for shape in list_shapes(*SIZES[size]))
    params = list(model.parameters())
    count = sum(p.numel() for p in params)
    versions, reasons = make_versions(size, model)
    times = harness.run_interleaved({name: make_arm(version, params, clock) for name, version in versions.items()}, rounds)
    print()
    title, bases = f"{count / 1e6:.1f} million numbers in {len(params)} tensors", {BASELINE: times[BASELINE]}
    megabytes = {name: f"{version.count_bytes() / 1e6:,.1f}" for name, version in versions.items()}
    ratios = harness.report(title, times, bases, width=42, reasons=reasons, columns={"state, MB": megabytes})
    bandwidth = 36 * count / statistics.median(times[FLOOR]) / 1e9
    print(f"{'memory':<42}{bandwidth:>10.1f} GB/s; by bytes alone 36/28 = {36 / 28:.2f} of AdamW")
    return ratios


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_choices("--sizes", "size", SIZES, "some of {}, in millions")
    parser.add_count("--rounds", 7, "rounds that count, at least 2", 2)
    parser.add_count("--threads", 2, "1: CPU time")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # warnings of the window's memory, which the table has
    torch.set_num_threads(args.threads)
    clock = harness.select_clock(args.threads)
    if fused.get_library() is None:
        print("There is no C compiler: what stands for one pass goes through torch")
    results = {size: measure(size, args.rounds, clock) for size in args.sizes}
    bounds = {size: {name: BOUNDS[name] for name in ratios if name in BOUNDS} for size, ratios in results.items()}
    harness.finish(results, bounds)


if __name__ == "__main__":
    main()
