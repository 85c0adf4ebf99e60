"""What a step of the ternary transformer costs over its full-precision twin, beside what others offer for the same.

    python -m benchmarks.train_step [--parts eager,compiled,bf16,small] [--rounds 12] [--threads 2]

A step is forward, backward, clipping to norm 1 and AdamW, on one model with RMSNorm, sub-norms and SwiGLU. There are two
sizes: d = 512, 4 layers, 8 sequences of 256 tokens, vocabulary 4,096; and d = 128, 4 layers, 16 sequences of 128. With two
threads wall time is measured, so the machine has to be quiet. With one it is CPU time, which other load disturbs less.

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
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks import harness, models
from research.contracts import contract
from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.optim.param_groups import from_base

WARM_UP = 3  # steps that do not count
TWIN, OURS = "full precision", "ours"
BOUNDS = {
    "eager": {f"{OURS}/{TWIN}": 0.80},
    "compiled": {f"{OURS}, compiled/{TWIN}": 0.50},
    "bf16": {f"{OURS}/{TWIN}": 1.15},
    "small": {f"{OURS}/{TWIN}": 1.05},
}
Size = tuple[int, int, int, int]  # width, heads, length of a sequence, sequences
MID, SMALL = (512, 8, 256, 8), (128, 4, 128, 16)


class Naive(nn.Linear):
    """The straight-through layer in plain autograd, as one writes it from the paper (2402.17764, equations 1 to 3)."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean().clamp(min=1e-5)
        w = (self.weight / scale).round().clamp(-1, 1) * scale
        inverse_scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        q = (x * inverse_scale).round().clamp(-128, 127) / inverse_scale
        return F.linear(x + (q - x).detach(), self.weight + (w - self.weight).detach(), self.bias)


def build_model(linear: Callable[..., nn.Module], size: Size) -> nn.Module:
    """Return a model of that size with these layers; its weights are the same at each call."""
    dim, heads, seq_len, _ = size
    torch.manual_seed(0)
    return Transformer(Tokens(4096, seq_len), dim, 4, heads, linear, sub_norm=True)


def build_transformers(size: Size) -> nn.Module:
    """Return the model with transformers' AutoBitLinear in training mode. Its quantizer is always compiled by torch."""
    from transformers.integrations.bitnet import AutoBitLinear

    return build_model(partial(AutoBitLinear, online_quant=True), size)


def build_torchao(size: Size) -> nn.Module:
    """Return the model with torchao's bitnet_training in every linear layer but the head."""
    from torchao.prototype.quantized_training import bitnet_training
    from torchao.quantization import quantize_

    model = build_model(nn.Linear, size)
    quantize_(model, bitnet_training(), filter_fn=lambda module, name: isinstance(module, nn.Linear) and "head" not in name)
    return model


Builder = Callable[[Size], nn.Module]
TWINS: dict[str, Builder] = {TWIN: partial(build_model, nn.Linear), OURS: partial(build_model, BitLinear)}
NAIVE: dict[str, Builder] = {"naive": partial(build_model, Naive)}
PEERS: dict[str, Builder] = {"transformers AutoBitLinear": build_transformers, "torchao bitnet_training": build_torchao}
PARTS: dict[str, tuple[dict[str, Builder], Size, bool, tuple[str, ...]]] = {  # builders, size, under autocast, suffixes
    "eager": (TWINS | NAIVE | PEERS, MID, False, ("",)),
    "compiled": (TWINS, MID, False, ("", ", compiled")),
    "bf16": (TWINS | NAIVE | PEERS, MID, True, ("",)),
    "small": (TWINS | NAIVE, SMALL, False, ("",)),
}


def build_step(build: Builder, size: Size, autocast: bool, compiled: bool) -> models.Step:
    """Return the training step of a model, warmed up."""
    model = build(size)
    if compiled:
        model.compile()
    optimizer = from_base(model, partial(AdamW, fused=True), lr=1e-3, weight_decay=0.1)
    _, _, seq_len, batch = size
    tokens = torch.randint(4096, (batch, seq_len + 1))
    step = models.make_step(model, optimizer, tokens, autocast, clip_norm=1.0)
    for _ in range(WARM_UP):
        step()
    return step


@contract
def measure(part: str, rounds: int, clock: harness.Clock) -> dict[str, float]:
    """Print the table of a part; return the ratios."""
    builders, size, autocast, suffixes = PARTS[part]
    pairs = product(builders, suffixes)
    versions = {name + suffix: partial(build_step, builders[name], size, autocast, bool(suffix)) for name, suffix in pairs}
    steps, reasons = harness.build_versions(versions)
    times = harness.run_interleaved({name: harness.make_arm(step, clock) for name, step in steps.items()}, rounds, warm_up=0)
    bases = {TWIN + suffix: times[TWIN + suffix] for suffix in suffixes}
    print()
    return harness.report(part, times, bases, reasons=reasons)


@contract
def main(parts: list[str], rounds: int, threads: int) -> harness.Results:
    warnings.filterwarnings("ignore")  # the peers' own
    # As in research/training/trainer.py.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(harness.ROOT / "outputs" / "compiled"))
    torch.set_num_threads(threads)
    return {part: measure(part, rounds, harness.select_clock(threads)) for part in parts}


if __name__ == "__main__":
    parts, rounds = harness.take_choices("part", PARTS), harness.take_count(12, minimum=2)
    harness.run(main, __doc__, BOUNDS, parts=parts, rounds=rounds, threads=2)
