"""Metrics: pure functions of tensors and numbers, and which way each is better."""

import math

from jaxtyping import Float, Int
from torch import Tensor


def hits(logits: Float[Tensor, "batch *rest"], targets: Int[Tensor, "batch *seq"]) -> Int[Tensor, ""]:
    """How many targets the largest logit names; one target a sequence is judged at the last position."""
    if logits.ndim == targets.ndim + 2:
        logits = logits[:, -1]
    return (logits.argmax(-1) == targets).sum()


def bits(nats: float) -> float:
    """Nats to bits: with one byte a token, the loss in bits per byte."""
    return nats / math.log(2)


def higher_is_better(name: str) -> bool:
    """Accuracies rise; losses and bits per byte fall."""
    return name.endswith("acc")


def better(name: str, new: float, old: float) -> bool:
    """Whether `new` beats `old`; NaN beats nothing."""
    return new > old if higher_is_better(name) else new < old
