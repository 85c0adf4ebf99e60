"""What a step of Grokfast and AdamW costs over torch's fused AdamW alone, beside what others offer for the same.

    python benchmarks/filter_cost.py [--sizes 0.4,10,100] [--rounds 7] [--threads 2]

The tensors are a transformer's: 0.4 million numbers in 29 tensors, 10 million in 65, 100 million in 149. Gradients are
the same at each step, put back before it is timed. All versions live in one process and have their turns in an order drawn
anew; the ratio is the median of the rounds' ratios. With two threads it is of wall time, so the machine has to be quiet;
with --threads 1 of CPU time, which bears neighbours. A turn of the window is a whole one of its ring, with the one sum that
is made anew. About a minute and a half on two cores, and 12 GB.

  ours, one pass    research/optim/fused.py, the step of a Grokfast optimizer over AdamW(fused=True)
  ours, in torch    the same optimizer where it has to be plain: foreach filter, then torch's fused step
  as published      the filter of the paper's Algorithm 2, a loop over a dictionary that makes new tensors, then AdamW fused
  floor             36 bytes a number, which the one pass reads and writes, at the speed of a += b; AdamW alone has 28
"""

import argparse
import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from options import make_choices_parser, make_count_parser
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from research.optim import fused, grokfast

BASELINE, ONE_PASS, IN_TORCH, WINDOW = "AdamW(fused=True)", "ours, one pass", "ours, in torch", "ours, window of 100, one pass"
PUBLISHED, PEER, FLOOR = "as published", "pytorch_optimizer", "floor"
SIZES = {"0.4": (128, 2, 97), "10": (384, 5, 2048), "100": (768, 12, 10_000)}  # width, layers, vocabulary
STEPS = {"0.4": 20, "10": 4, "100": 1}  # of a turn
WINDOW_SIZE = 100  # the window's
BOUNDS = {f"{ONE_PASS}/{BASELINE}": 1.05, f"{IN_TORCH}/{BASELINE}": 2.1, f"{WINDOW}/{BASELINE}": 1.8}
OPTIM_SETTINGS = {"lr": 1e-3, "weight_decay": 0.1}


class AdamWSubclass(AdamW):
    """AdamW as it is: a class of its own is not stepped in one pass."""


@dataclass
class Version:
    """One way to make a step."""

    step: Callable[[], Any]
    count_bytes: Callable[[], int] = lambda: 0  # bytes beside weights and gradients
    steps: int = 1  # of a turn
    scale: float = 1.0  # of its time


def list_shapes(width: int, layers: int, vocab_size: int) -> list[tuple[int, ...]]:
    vector, square, wide = (width,), (width, width), (4 * width, width)
    layer = [
        vector,
        vector,
        (3 * width, width),
        (3 * width,),
        square,
        vector,
        vector,
        vector,
        wide,
        (4 * width,),
        wide[::-1],
        vector,
    ]
    return [(vocab_size, width), (128, width), *layer * layers, vector, vector, (vocab_size, width)]


def count_state_bytes(optimizer: Optimizer) -> int:
    return sum(
        x.numel() * x.element_size() for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)
    )


def make_version(optimizer: Optimizer, steps: int) -> Version:
    return Version(optimizer.step, partial(count_state_bytes, optimizer), steps)


def make_published(model: nn.Module, steps: int) -> Version:
    """Algorithm 2 of 2405.20233 as one writes it down, before AdamW."""
    optimizer = AdamW(model.parameters(), fused=True, **OPTIM_SETTINGS)
    averages: dict[str, Tensor] = {}

    def step() -> None:
        for name, p in model.named_parameters():
            assert p.grad is not None
            averages[name] = averages[name] * 0.98 + p.grad * 0.02 if name in averages else p.grad
            p.grad = p.grad + averages[name] * 2.0
        optimizer.step()

    return Version(step, lambda: count_state_bytes(optimizer) + sum(4 * x.numel() for x in averages.values()), steps)


def make_peer(model: nn.Module, steps: int) -> Version | str:
    """pytorch_optimizer's filter before AdamW."""
    try:
        from pytorch_optimizer.optimizer.grokfast import gradfilter_ema
    except ImportError as error:
        return f"not installed ({error}): pip install pytorch_optimizer"
    optimizer = AdamW(model.parameters(), fused=True, **OPTIM_SETTINGS)
    averages: dict[str, Tensor] = {}

    def step() -> None:
        gradfilter_ema(model, averages, alpha=0.98, lamb=2.0)
        optimizer.step()

    return Version(step, lambda: count_state_bytes(optimizer) + sum(4 * x.numel() for x in averages.values()), steps)


def make_floor(count: int, steps: int) -> Version:
    """As much memory as the one pass touches, and no more; of a large model a part."""
    size = min(count * 9 // 2, 1 << 26)
    a, b = torch.zeros(size), torch.zeros(size)
    return Version(lambda: a.add_(b), steps=steps, scale=36 * count / (12 * size))


def make_versions(size: str, model: nn.Module) -> dict[str, Version | str]:
    steps, count = STEPS[size], sum(p.numel() for p in model.parameters())
    ema = partial(grokfast.ema, model, alpha=0.98, lamb=2.0, no_decay=(), **OPTIM_SETTINGS)
    made: dict[str, Version | str] = {
        BASELINE: make_version(AdamW(model.parameters(), fused=True, **OPTIM_SETTINGS), steps),
        ONE_PASS: make_version(ema(partial(AdamW, fused=True)), steps),
        IN_TORCH: make_version(ema(partial(AdamWSubclass, fused=True)), steps),
        WINDOW: f"not measured: its memory is {4 * (WINDOW_SIZE + 1) * count / 1e6:,.0f} MB",
        PUBLISHED: make_published(model, steps),
        PEER: make_peer(model, steps),
        FLOOR: make_floor(count, steps),
    }
    if size != "100":
        made[WINDOW] = make_version(
            grokfast.ma(model, partial(AdamW, fused=True), window=WINDOW_SIZE, lamb=2.0, no_decay=(), **OPTIM_SETTINGS),
            WINDOW_SIZE,
        )
    return made


def run_interleaved(
    versions: dict[str, Version], params: list[nn.Parameter], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds a step of each version in each round; the first round does not count."""
    raw = [torch.randn_like(p) * 0.01 for p in params]
    grads = [torch.empty_like(p) for p in params]
    times: dict[str, list[float]] = {name: [] for name in versions}
    for turn in range(rounds + 1):
        for name in random.sample(list(versions), len(versions)):
            seconds = 0.0
            for warm in range(-1, versions[name].steps):
                torch._foreach_copy_(grads, raw)
                for p, grad in zip(params, grads, strict=True):
                    p.grad = grad
                started = clock()
                versions[name].step()
                seconds += (clock() - started) * (warm >= 0)
            if turn:
                times[name].append(seconds / versions[name].steps * versions[name].scale)
    return times


def measure(size: str, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Print the table of a size; return the ratios."""
    torch.manual_seed(0)
    model = nn.ParameterList(torch.randn(shape) * 0.02 for shape in list_shapes(*SIZES[size]))
    params = list(model.parameters())
    count = sum(p.numel() for p in params)
    made = make_versions(size, model)
    times = run_interleaved({name: each for name, each in made.items() if isinstance(each, Version)}, params, rounds, clock)
    head = f"{count / 1e6:.1f} million numbers in {len(params)} tensors"
    print(f"\n{head:<42}{'ms a step':>10}{'over AdamW':>12}{'quartiles':>14}{'MB kept':>10}")
    ratios: dict[str, float] = {}
    for name, each in made.items():
        if isinstance(each, str):
            print(f"{name:<42}    {each}")
            continue
        low, middle, high = statistics.quantiles([a / b for a, b in zip(times[name], times[BASELINE], strict=True)])
        if name != BASELINE:
            ratios[f"{name}/{BASELINE}"] = round(middle, 4)
        milliseconds = 1e3 * statistics.median(times[name])
        print(
            f"{name:<42}{milliseconds:>10.2f}{middle:>12.3f}{low:>8.2f}-{high:.2f}{each.count_bytes() / 1e6:>11,.1f}",
            flush=True,
        )
    bandwidth = 36 * count / statistics.median(times[FLOOR]) / 1e9
    print(f"{'memory':<42}{bandwidth:>10.1f} GB/s; by bytes alone 36/28 = {36 / 28:.2f} of AdamW")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=make_choices_parser("size", SIZES), default=list(SIZES), help=f"some of {', '.join(SIZES)}, in millions"
    )
    parser.add_argument("--rounds", type=make_count_parser(2), default=7, help="rounds that count, at least 2")
    parser.add_argument("--threads", type=make_count_parser(1), default=2, help="1: CPU time")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # of the window's memory, which the table tells
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    random.seed(0)
    if fused.get_library() is None:
        print("There is no C compiler: what stands for one pass goes through torch")
    results: dict[str, Any] = {size: measure(size, args.rounds, clock) for size in args.sizes}
    bounds = {size: {name: BOUNDS[name] for name in ratios if name in BOUNDS} for size, ratios in results.items()}
    print(json.dumps(results | {"bounds": bounds}))


if __name__ == "__main__":
    main()
