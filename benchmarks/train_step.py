"""What a step of the ternary transformer costs over its full-precision twin, beside what others offer for the same.

    python -m benchmarks.train_step [--parts eager,compiled,bf16,small] [--rounds 12] [--threads 2]

A step is forward, backward, clipping to norm 1 and AdamW, on one model with RMSNorm, sub-norms and SwiGLU. There are two
sizes: d = 512, 4 layers, 8 sequences of 256 tokens, vocabulary 4,096; and d = 128, 4 layers, 16 sequences of 128. All
versions of a part live in one process and do one step each in turn; the ratio is the median of the rounds' ratios. With
two threads wall time is measured, so the machine has to be quiet. With --threads 1 CPU time is measured, which other load
disturbs less.

The parts, each with its cost on two cores for 12 rounds:
  eager     d = 512 in float32, transformers' layer and torchao's beside it      75 seconds
  compiled  the same under torch.compile, over both twins                        95 seconds, the first time 150
  bf16      d = 512 under bf16 autocast, float32 master weights                  65 seconds
  small     d = 128 in float32                                                   12 seconds
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks import harness, models
from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.optim.param_groups import from_base

WARM_UP = 3  # steps that do not count
TWIN, OURS = "full precision", "ours"
SIZES = {
    "mid": {"dim": 512, "heads": 8, "seq_len": 256, "batch": 8},
    "small": {"dim": 128, "heads": 4, "seq_len": 128, "batch": 16},
}
BOUNDS = {
    "eager": {f"{OURS}/{TWIN}": 0.80},
    "compiled": {f"{OURS}, compiled/{TWIN}": 0.50},
    "bf16": {f"{OURS}/{TWIN}": 1.15},
    "small": {f"{OURS}/{TWIN}": 1.05},
}
FUSED_ADAMW: partial[Any] = partial(AdamW, fused=True)
Step = Callable[[], None]


class Naive(nn.Linear):
    """The straight-through layer in plain autograd, as one writes it from the paper (2402.17764, equations 1 to 3)."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean().clamp(min=1e-5)
        w = (self.weight / scale).round().clamp(-1, 1) * scale
        inverse_scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        q = (x * inverse_scale).round().clamp(-128, 127) / inverse_scale
        return F.linear(x + (q - x).detach(), self.weight + (w - self.weight).detach(), self.bias)


def build_model(linear: Callable[..., nn.Module], size: str) -> nn.Module:
    """Return a model of that size with these layers; its weights are the same at each call."""
    torch.manual_seed(0)
    shape = SIZES[size]
    return Transformer(Tokens(4096, shape["seq_len"]), shape["dim"], 4, shape["heads"], linear, sub_norm=True)


def build_transformers(size: str) -> nn.Module:
    """Return the model with transformers' AutoBitLinear in training mode. Its quantizer is always compiled by torch."""
    from transformers.integrations.bitnet import AutoBitLinear

    return build_model(partial(AutoBitLinear, online_quant=True), size)


def build_torchao(size: str) -> nn.Module:
    """Return the model with torchao's bitnet_training in every linear layer but the head."""
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


def build_steps(part: str) -> tuple[dict[str, Step], dict[str, str]]:
    """Return the steps of a part, warmed up; and for each version that cannot run, the reason."""
    builders, size, autocast = PARTS[part]
    steps: dict[str, Step] = {}
    reasons: dict[str, str] = {}
    for name, build in builders.items():
        for suffix in ["", ", compiled"] if part == "compiled" else [""]:
            try:
                model = build(size)
                if suffix:
                    model.compile()
                optimizer = from_base(model, FUSED_ADAMW, lr=1e-3, weight_decay=0.1)
                tokens = torch.randint(4096, (SIZES[size]["batch"], SIZES[size]["seq_len"] + 1))
                step = models.make_step(model, optimizer, tokens, autocast, clip_norm=1.0)
                for _ in range(WARM_UP):
                    step()
                steps[name + suffix] = step
            except ModuleNotFoundError as error:
                reasons[name] = f"not installed: pip install {str(error.name).partition('.')[0]}"
            except RuntimeError as error:
                reasons[name] = f"fails: {str(error).splitlines()[0][:80]}"
    return steps, reasons


def measure(part: str, rounds: int, clock: harness.Clock) -> dict[str, float]:
    """Print the table of a part; return the ratios."""
    steps, reasons = build_steps(part)
    times = harness.run_interleaved({name: harness.make_arm(step, clock) for name, step in steps.items()}, rounds, warm_up=0)
    bases = [name for name in (TWIN, f"{TWIN}, compiled") if name in times]
    print()
    return harness.report(part, times, {base: times[base] for base in bases}, reasons=reasons)


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_choices("--parts", "part", PARTS, "some of {}, with commas between")
    parser.add_count("--rounds", 12, "rounds that count, at least 2", 2)
    parser.add_count("--threads", 2, "1: CPU time")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # the peers' own
    # As in research/training/trainer.py.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(harness.ROOT / "outputs" / "compiled"))
    torch.set_num_threads(args.threads)
    clock = harness.select_clock(args.threads)
    results = {part: measure(part, args.rounds, clock) for part in args.parts}
    harness.finish(results, {part: BOUNDS[part] for part in results})


if __name__ == "__main__":
    main()
