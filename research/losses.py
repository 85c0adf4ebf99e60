"""Losses, and the types of losses and objectives.

A loss is a pure function of logits and targets: one number (nats) a target, and 0 where the target is IGNORE. It takes
no mean: the loop divides the sum over a step by the step's number of targets. So the gradient does not depend on how
the step is cut into micro-batches and processes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

IGNORE = -100  # cross_entropy's own ignore_index
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits, targets) -> one number a target
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, inputs, targets) -> one number a target


def check_losses(losses: Tensor, targets: Tensor) -> None:
    """Raise ValueError where there is not one loss a target: a mean would weigh a short micro-batch as much as a full one."""
    if losses.shape != targets.shape:
        raise ValueError(
            f"a loss gives one number a target: this one has shape {tuple(losses.shape)}, the targets have "
            f'{tuple(targets.shape)}; return the losses without a mean or a sum (reduction="none")'
        )


def next_token(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Return the cross entropy of the next symbol at every position."""
    return _cross_entropy(logits.flatten(0, 1), targets.flatten()).view_as(targets)


def last_token(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Return the cross entropy of the answer that follows the last position."""
    return _cross_entropy(logits[:, -1], targets)


def classification(logits: Float[Tensor, "batch classes"], targets: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Return the cross entropy of the class."""
    return _cross_entropy(logits, targets)


def stablemax(
    logits: Float[Tensor, "batch *positions classes"], targets: Int[Tensor, "batch *targets"]
) -> Float[Tensor, "batch *targets"]:
    """Return the cross entropy of StableMax, s(x_i) / sum s(x): s(x) = x + 1 for x >= 0, else 1 / (1 - x).

    Prieto et al. 2025 (2501.04697), section 4. Computed in logarithms, in float32 or better. With one target a
    sequence, take the logits of the last position.
    """
    if logits.ndim == targets.ndim + 2:
        logits = logits[:, -1]
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # log s(x): one of the two terms is 0. At x = 0 the slope is 1: clamp passes the gradient there, relu does not.
    log_s = torch.log1p(x.clamp(min=0)) - torch.log1p(F.relu(-x))
    return _cross_entropy(log_s.flatten(0, -2), targets.flatten()).view_as(targets)


def _cross_entropy(logits: Float[Tensor, "n classes"], targets: Shaped[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the cross entropy of each target. Raise ValueError for targets that are no classes."""
    if targets.is_floating_point():
        message = f"the targets are {str(targets.dtype).removeprefix('torch.')}, this loss takes classes"
        raise ValueError(f"{message}\ngive targets.long(), or a loss of your own, as mse_loss(reduction='none')")
    return F.cross_entropy(logits, targets, reduction="none")


def num_valid_targets(targets: Shaped[Tensor, "..."]) -> Int[Tensor, ""]:
    """Return the number of targets that are not IGNORE. Bytes and floating-point numbers all count."""
    all_count = targets.dtype == torch.uint8 or targets.is_floating_point()
    return targets.new_tensor(targets.numel(), dtype=torch.int64) if all_count else (targets != IGNORE).sum()
