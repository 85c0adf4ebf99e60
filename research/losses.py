"""Losses: pure functions of logits and targets, mean over the targets, in nats."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def next_token(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """Cross entropy of the next symbol at every position."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def last_token(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Cross entropy of the answer after the last position."""
    return F.cross_entropy(logits[:, -1], targets)


def classification(logits: Float[Tensor, "batch classes"], targets: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Cross entropy of the class."""
    return F.cross_entropy(logits, targets)
