"""What a step of the ternary transformer costs over its full-precision twin, beside what others offer for the same.

    python benchmarks/train_step.py [--parts eager,compiled,bf16,small] [--rounds 12] [--threads 2]

A step is forward, backward, clipping to norm 1 and AdamW, on one model (RMSNorm, sub-norms, SwiGLU; two sizes):
d = 512, 4 layers, 8 sequences of 256 tokens, vocabulary 4,096; and d = 128, 4 layers, 16 sequences of 128. All versions
of a part live in one process and take a step each in turn, in an order drawn anew; the ratio is the median of the rounds'
ratios. With two threads a step is wall time, so the machine has to be quiet; with --threads 1 it is CPU time, which bears
neighbours.

The parts, each with its cost on two cores for 12 rounds:
  eager     d = 512 in float32, transformers' layer and torchao's beside it      75 seconds
  compiled  the same under torch.compile, over both twins                        95 seconds, the first time 150
  bf16      d = 512 under bf16 autocast, float32 master weights                  65 seconds
  small     d = 128 in float32                                                   12 seconds
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from options import make_choices_parser, make_count_parser
from torch import Tensor, nn

from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.optim.param_groups import from_base

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3  # steps that do not count
TWIN, OURS = "full precision", "ours"
SIZES = {
    "mid": {"dim": 512, "heads": 8, "length": 256, "batch": 8},
    "small": {"dim": 128, "heads": 4, "length": 128, "batch": 16},
}
BOUNDS = {
    "eager": {f"{OURS}/{TWIN}": 0.80},
    "compiled": {f"{OURS}, compiled/{TWIN}": 0.50},
    "bf16": {f"{OURS}/{TWIN}": 1.15},
    "small": {f"{OURS}/{TWIN}": 1.05},
}
Step = Callable[[], None]


class Naive(nn.Linear):
    """The straight-through layer as one writes it from the paper, in plain autograd."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean().clamp(min=1e-5)
        w = (self.weight / scale).round().clamp(-1, 1) * scale
        size = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        q = (x * size).round().clamp(-128, 127) / size
        return F.linear(x + (q - x).detach(), self.weight + (w - self.weight).detach(), self.bias)


def build_model(linear: Callable[..., nn.Module], size: str) -> nn.Module:
    """The model of that size with these layers; the same weights each time."""
    torch.manual_seed(0)
    shape = SIZES[size]
    return Transformer(Tokens(4096, shape["length"]), shape["dim"], 4, shape["heads"], linear, sub_norm=True)


def build_transformers(size: str) -> nn.Module:
    """transformers' AutoBitLinear as it is trained (online). Its rounding is under torch.compile whether one asks or not."""
    from transformers.integrations.bitnet import AutoBitLinear

    return build_model(partial(AutoBitLinear, online_quant=True), size)


def build_torchao(size: str) -> nn.Module:
    """torchao's bitnet_training over every linear layer but the head."""
    from torchao.prototype.quantized_training import bitnet_training
    from torchao.quantization import quantize_

    model = build_model(nn.Linear, size)
    quantize_(model, bitnet_training(), filter_fn=lambda module, name: isinstance(module, nn.Linear) and "head" not in name)
    return model


OUR_BUILDERS: dict[str, Callable[[str], nn.Module]] = {
    TWIN: partial(build_model, nn.Linear),
    OURS: partial(build_model, BitLinear),
}
NAIVE_BUILDERS = {"naive": partial(build_model, Naive)}
PEERS = {"transformers AutoBitLinear": build_transformers, "torchao bitnet_training": build_torchao}
PARTS = {  # builders, size, under autocast
    "eager": (OUR_BUILDERS | NAIVE_BUILDERS | PEERS, "mid", False),
    "compiled": (OUR_BUILDERS, "mid", False),
    "bf16": (OUR_BUILDERS | NAIVE_BUILDERS | PEERS, "mid", True),
    "small": (OUR_BUILDERS | NAIVE_BUILDERS, "small", False),
}


def make_step(model: nn.Module, size: str, autocast: bool) -> Step:
    """One training step on one batch."""
    optimizer = from_base(model, partial(torch.optim.AdamW, fused=True), lr=1e-3, weight_decay=0.1)
    params = list(model.parameters())
    tokens = torch.randint(4096, (SIZES[size]["batch"], SIZES[size]["length"] + 1))
    x, y = tokens[:, :-1], tokens[:, 1:]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_steps(part: str) -> dict[str, Step | str]:
    """The versions of a part, warmed up; one that cannot run as what it says."""
    builders, size, autocast = PARTS[part]
    steps: dict[str, Step | str] = {}
    for name, build in builders.items():
        for way in ["", ", compiled"] if part == "compiled" else [""]:
            try:
                model = build(size)
                if way:
                    model.compile()
                step = make_step(model, size, autocast)
                for _ in range(WARM_UP):
                    step()
                steps[name + way] = step
            except ModuleNotFoundError as error:
                steps[name] = f"not installed: pip install {str(error.name).partition('.')[0]}"
            except RuntimeError as error:
                steps[name] = f"fails: {str(error).splitlines()[0][:80]}"
    return steps


def run_interleaved(steps: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each version's step in each round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            started = clock()
            steps[name]()
            times[name].append(clock() - started)
    return times


def measure(part: str, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Print the table of a part; return the ratios."""
    steps = build_steps(part)
    times = run_interleaved({name: step for name, step in steps.items() if not isinstance(step, str)}, rounds, clock)
    over = [TWIN, f"{TWIN}, compiled"] if part == "compiled" else [TWIN]
    print(f"\n{part:<28}{'ms a step':>10}" + "".join(f"{f'over {other}':>32}" for other in over) + f"{'quartiles':>16}")
    ratios: dict[str, float] = {}
    for name, step in steps.items():
        if isinstance(step, str):
            print(f"{name:<28}    {step}")
            continue
        cells = ""
        for other in over:
            low, middle, high = statistics.quantiles([a / b for a, b in zip(times[name], times[other], strict=True)])
            ratios[f"{name}/{other}"] = round(middle, 4)
            cells += f"{middle:>32.3f}"
        print(f"{name:<28}{1e3 * statistics.median(times[name]):>10.1f}{cells}{low:>10.3f}-{high:.3f}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts",
        type=make_choices_parser("part", PARTS),
        default=list(PARTS),
        help=f"some of {', '.join(PARTS)}, with commas between",
    )
    parser.add_argument("--rounds", type=make_count_parser(2), default=12, help="rounds that count, at least 2")
    parser.add_argument("--threads", type=make_count_parser(1), default=2, help="1: CPU time")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # the peers' own
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "outputs" / "compiled"))  # as in research/training/trainer.py
    random.seed(0)
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    results: dict[str, Any] = {}
    for part in args.parts:
        results[part] = measure(part, args.rounds, clock)
    print(json.dumps(results | {"bounds": {part: BOUNDS[part] for part in results}}))


if __name__ == "__main__":
    main()
