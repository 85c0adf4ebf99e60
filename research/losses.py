"""Losses: pure functions of logits and targets, one number (nats) for each target.

Not their mean: the loop divides the sum over a whole step by the number of its targets, however it cuts the step into
micro-batches and processes. A target of IGNORE is not judged.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100  # cross_entropy's own ignore_index


def next_token(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Cross entropy of the next symbol at every position."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def last_token(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Cross entropy of the answer after the last position."""
    return F.cross_entropy(logits[:, -1], targets, reduction="none")


def classification(logits: Float[Tensor, "batch classes"], targets: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Cross entropy of the class."""
    return F.cross_entropy(logits, targets, reduction="none")


def judged(targets: Int[Tensor, "..."]) -> Int[Tensor, ""]:
    """How many targets count."""
    return (targets != IGNORE).sum()
