"""What a step of Grokfast and AdamW costs over torch's fused AdamW alone, beside what others offer for the same.

    python -m benchmarks.filter_cost [--sizes 0.4,10,100] [--rounds 7] [--threads 2]

The sizes are millions of numbers, in 29, 65 and 149 tensors as a transformer has them. Gradients are the same at each step;
they are restored before the clock starts. With two threads wall time is measured, so the machine has to be quiet. With one it
is CPU time, which other load disturbs less. In each round the window does one full pass over its ring, so its one new sum
counts too. About a minute and a half on two cores, and 12 GB.

  ours, one pass    research/optim/fused.py, the step of a Grokfast optimizer over AdamW(fused=True)
  ours, in torch    the same optimizer where it has to be plain: foreach filter, then torch's fused step
  as published      the filter of the paper's Algorithm 2, a loop over a dictionary that makes new tensors, then AdamW fused
  floor             36 bytes a number, which the one pass reads and writes, at the speed of a += b; AdamW alone has 28
"""

import logging
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks import harness
from research.contracts import contract
from research.optim import fused, grokfast

BASELINE, ONE_PASS, IN_TORCH, WINDOW = "AdamW(fused=True)", "ours, one pass", "ours, in torch", "ours, window of 100, one pass"
PUBLISHED, PEER, FLOOR = "as published", "pytorch_optimizer", "floor"
SIZES = {"0.4": (128, 2, 97), "10": (384, 5, 2048), "100": (768, 12, 10_000)}  # width, layers, vocabulary
STEPS = {"0.4": 20, "10": 4, "100": 1}  # of a version in each round
WINDOW_SIZE = 100
BOUND = {f"{ONE_PASS}/{BASELINE}": 1.05, f"{IN_TORCH}/{BASELINE}": 2.1}
BOUNDS = {size: BOUND | ({} if size == "100" else {f"{WINDOW}/{BASELINE}": 1.8}) for size in SIZES}
SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
Averages = dict[str, Tensor]


class AdamWSubclass(AdamW):
    """AdamW under another name: the one pass takes torch's own class only."""


class Version:
    """One way to make a step: filter the gradients, which may store averages of them, then the optimizer's step."""

    def __init__(self, optimizer: Optimizer, apply_filter: Callable[[Averages], object] = lambda averages: None) -> None:
        self.optimizer, self.apply_filter, self.averages = optimizer, apply_filter, Averages()

    def step(self) -> None:
        self.apply_filter(self.averages)
        self.optimizer.step()

    def format_megabytes(self) -> str:
        """Return the memory beside weights and gradients."""
        values = [value for state in self.optimizer.state.values() for value in state.values()]
        num_bytes = sum(x.nbytes for x in [*values, *self.averages.values()] if isinstance(x, Tensor))
        return f"{num_bytes / 1e6:,.1f}"


def list_shapes(width: int, layers: int, vocab_size: int) -> list[tuple[int, ...]]:
    vector, square, wide = (width,), (width, width), (4 * width, width)
    attention = [vector, vector, (3 * width, width), (3 * width,), square, vector]
    layer = [*attention, vector, vector, wide, (4 * width,), wide[::-1], vector]
    return [(vocab_size, width), (128, width), *layer * layers, vector, vector, (vocab_size, width)]


def filter_as_published(model: nn.Module, averages: Averages) -> None:
    """Filter the gradients by Algorithm 2 of 2405.20233 as one writes it down."""
    for name, p in model.named_parameters():
        assert p.grad is not None
        averages[name] = averages[name] * 0.98 + p.grad * 0.02 if name in averages else p.grad
        p.grad = p.grad + averages[name] * 2.0


def list_builders(model: nn.Module) -> dict[str, Callable[[], Version]]:
    """Return a function for each version that builds it."""
    settings: dict[str, Any] = {"lamb": 2.0, "no_decay": (), **SETTINGS}
    fused_adamw, plain_adamw = (partial[Any](kind, fused=True) for kind in (AdamW, AdamWSubclass))

    def build_adamw(*apply_filter: Callable[[Averages], object]) -> Version:
        return Version(fused_adamw(model.parameters(), **SETTINGS), *apply_filter)

    def build_peer() -> Version:
        from pytorch_optimizer.optimizer.grokfast import gradfilter_ema

        return build_adamw(lambda averages: gradfilter_ema(model, averages, alpha=0.98, lamb=2.0))

    return {
        BASELINE: build_adamw,
        ONE_PASS: lambda: Version(grokfast.ema(model, fused_adamw, alpha=0.98, **settings)),
        IN_TORCH: lambda: Version(grokfast.ema(model, plain_adamw, alpha=0.98, **settings)),
        PUBLISHED: lambda: build_adamw(partial(filter_as_published, model)),
        WINDOW: lambda: Version(grokfast.ma(model, fused_adamw, window=WINDOW_SIZE, **settings)),
        PEER: build_peer,
    }


@contract
def make_arm(step: Callable[[], object], steps: int, params: list[nn.Parameter], clock: harness.Clock) -> harness.Clock:
    """Return an arm that measures seconds a step. One step before them, which does not count, warms the caches."""
    raw = [torch.randn_like(p) * 0.01 for p in params]
    grads = [torch.empty_like(p) for p in params]
    measure_step = harness.make_arm(step, clock)

    def measure_steps() -> float:
        seconds = []
        for _ in range(steps + 1):
            torch._foreach_copy_(grads, raw)
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            seconds.append(measure_step())
        return statistics.mean(seconds[1:])

    return measure_steps


@contract
def measure(size: str, rounds: int, clock: harness.Clock) -> dict[str, float]:
    """Print the table of a size; return the ratios."""
    torch.manual_seed(0)
    model = nn.ParameterList(torch.randn(shape) * 0.02 for shape in list_shapes(*SIZES[size]))
    params = list(model.parameters())
    count = sum(p.numel() for p in params)
    builders, too_large = list_builders(model), {}
    if size == "100":
        del builders[WINDOW]
        too_large[WINDOW] = f"not measured: its memory is {4 * (WINDOW_SIZE + 1) * count / 1e6:,.0f} MB"
    versions, missing = harness.build_versions(builders)
    steps = {name: WINDOW_SIZE if name == WINDOW else STEPS[size] for name in versions}
    arms = {name: make_arm(version.step, steps[name], params, clock) for name, version in versions.items()}
    # The floor only touches the memory of the one pass; of a large model a part of it.
    part = min(count * 9 // 2, 1 << 26)
    a, b = torch.zeros(part), torch.zeros(part)
    arms[FLOOR] = make_arm(lambda: a.add_(b), STEPS[size], params, clock)
    times = harness.run_interleaved(arms, rounds)
    times[FLOOR] = [seconds * 36 * count / (12 * part) for seconds in times[FLOOR]]
    print()
    title, bases = f"{count / 1e6:.1f} million numbers in {len(params)} tensors", {BASELINE: times[BASELINE]}
    megabytes = {name: version.format_megabytes() for name, version in versions.items()} | {FLOOR: "0.0"}
    ratios = harness.report(title, times, bases, width=42, reasons=too_large | missing, columns={"state, MB": megabytes})
    bandwidth = 36 * count / statistics.median(times[FLOOR]) / 1e9
    print(f"{'memory':<42}{bandwidth:>10.1f} GB/s; by bytes alone 36/28 = {36 / 28:.2f} of AdamW")
    return ratios


@contract
def main(sizes: list[str], rounds: int, threads: int) -> harness.Results:
    logging.disable(logging.WARNING)  # warnings of the window's memory, which the table has
    torch.set_num_threads(threads)
    if fused.get_library() is None:
        print("There is no C compiler: what stands for one pass goes through torch")
    return {size: measure(size, rounds, harness.select_clock(threads)) for size in sizes}


if __name__ == "__main__":
    sizes, rounds = harness.take_choices("size", SIZES), harness.take_count(7, minimum=2)
    harness.run(main, __doc__, BOUNDS, sizes=sizes, rounds=rounds, threads=2)
