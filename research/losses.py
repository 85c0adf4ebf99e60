"""Losses: pure functions of logits and targets, one number (nats) for each target.

Not their mean: the loop divides the sum over a whole step by the number of its targets, however it cuts the step into
micro-batches and processes. A target of IGNORE is not judged.
"""

import torch
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


def stablemax(
    logits: Float[Tensor, "batch *positions classes"], targets: Int[Tensor, "batch *num_valid_targets"]
) -> Float[Tensor, "batch *num_valid_targets"]:
    """Cross entropy of StableMax: s(x_i) / sum s(x), with s(x) = x + 1 from 0 on, 1 / (1 - x) below.

    Prieto et al. 2025 (2501.04697), section 4. In logarithms, and in float32 at least. One target a sequence is judged
    at the last position.
    """
    if logits.ndim == targets.ndim + 2:
        logits = logits[:, -1]
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_s = torch.log1p(x.clamp(min=0)) - torch.log1p(F.relu(-x))  # one of the two is 0; at 0 the slope is the clamp's, 1
    return F.cross_entropy(log_s.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)


def num_valid_targets(targets: Int[Tensor, "..."]) -> Int[Tensor, ""]:
    """How many targets count."""
    return (targets != IGNORE).sum()
