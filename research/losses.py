"""Losses, and the types of losses and objectives.

A loss is a pure function of logits and targets: one number (nats) a target, and 0 where the target is IGNORE. It takes
no mean: the loop divides the sum over a step by the step's number of targets. So the gradient does not depend on how
the step is cut into micro-batches and processes. Under class weights too it is the number of targets that divides, not the
sum of their weights: twice the weights are twice the loss.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from research.contracts import contract
from research.ranges import ClassWeights, Fraction, NonNegativeFloat, PositiveFloat

IGNORE = -100  # cross_entropy's own ignore_index
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits, targets) -> one number a target
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, inputs, targets) -> one number a target
TRAINING_ONLY = ("label_smoothing", "z_loss", "class_weights")  # settings that evaluations leave at their defaults


@contract
def make_plain(loss: Loss) -> Loss:
    """Return the loss that evaluations judge by: without the settings that help training alone, with all its others."""
    if not isinstance(loss, partial):
        return loss
    defaults = {name for name, p in inspect.signature(loss.func).parameters.items() if p.default is not p.empty}
    kept = {name: value for name, value in loss.keywords.items() if name not in TRAINING_ONLY or name not in defaults}
    return partial(loss.func, *loss.args, **kept)


@contract
def check_class_weights(loss: Loss, num_classes: int) -> None:
    """Raise ValueError for another number of class weights than of classes."""
    weights = loss.keywords.get("class_weights") if isinstance(loss, partial) else None
    if weights is not None and len(weights) != num_classes:
        message = f"loss.class_weights has {len(weights)} numbers, the data have {num_classes} classes"
        raise ValueError(f"{message}\ngive one a class, in their order, or loss.class_weights=null")


def check_losses(losses: Tensor, targets: Tensor) -> None:
    """Raise ValueError where there is not one loss a target: a mean would weigh a short micro-batch as much as a full one."""
    if losses.shape != targets.shape:
        raise ValueError(
            f"a loss gives one number a target: this one has shape {tuple(losses.shape)}, the targets have "
            f'{tuple(targets.shape)}; return the losses without a mean or a sum (reduction="none")'
        )


def next_token(
    logits: Float[Tensor, "batch seq vocab"],
    targets: Int[Tensor, "batch seq"],
    *,
    label_smoothing: Fraction = 0.0,
    z_loss: NonNegativeFloat = 0.0,
    class_weights: ClassWeights = None,
) -> Float[Tensor, "batch seq"]:
    """Return the cross entropy of the next symbol at every position. See `_cross_entropy` for the settings."""
    logits, flat = logits.flatten(0, 1), targets.flatten()
    return _cross_entropy(logits, flat, label_smoothing, z_loss, class_weights).view_as(targets)


def last_token(
    logits: Float[Tensor, "batch seq vocab"],
    targets: Int[Tensor, "batch"],
    *,
    label_smoothing: Fraction = 0.0,
    z_loss: NonNegativeFloat = 0.0,
    class_weights: ClassWeights = None,
) -> Float[Tensor, "batch"]:
    """Return the cross entropy of the answer that follows the last position."""
    return _cross_entropy(logits[:, -1], targets, label_smoothing, z_loss, class_weights)


def classification(
    logits: Float[Tensor, "batch classes"],
    targets: Int[Tensor, "batch"],
    *,
    label_smoothing: Fraction = 0.0,
    z_loss: NonNegativeFloat = 0.0,
    class_weights: ClassWeights = None,
) -> Float[Tensor, "batch"]:
    """Return the cross entropy of the class."""
    return _cross_entropy(logits, targets, label_smoothing, z_loss, class_weights)


def per_pixel(
    logits: Float[Tensor, "batch classes height width"],
    targets: Int[Tensor, "batch height width"],
    *,
    label_smoothing: Fraction = 0.0,
    z_loss: NonNegativeFloat = 0.0,
    class_weights: ClassWeights = None,
) -> Float[Tensor, "batch height width"]:
    """Return the cross entropy of the class of each pixel."""
    return _cross_entropy(logits, targets, label_smoothing, z_loss, class_weights)


def regression(
    logits: Float[Tensor, "batch *outputs"],
    targets: Shaped[Tensor, "batch *numbers"],
    *,
    kind: Literal["mse", "mae", "huber"] = "mse",
    delta: PositiveFloat = 1.0,
) -> Float[Tensor, "batch *numbers"]:
    """Return the error of each number, in float32 or better: its square, its size, or Huber's (1964) mix of both.

    Huber's is e^2 / 2 up to `delta`, then delta * (|e| - delta / 2). Targets are [batch] for one output, [batch, outputs]
    for several. Raise ValueError for other shapes, and for classes.
    """
    if not targets.is_floating_point():
        raise ValueError(
            f"the targets are {_name(targets)}, this loss takes numbers\ngive targets.float(), or loss=classification"
        )
    outputs = logits[:, 0] if logits.shape[1:] == (1,) and targets.ndim == 1 else logits
    if outputs.shape != targets.shape:
        shapes = f"outputs of shape {tuple(logits.shape)} and targets of {tuple(targets.shape)}"
        raise ValueError(f"{shapes} do not fit\na model gives one number a target: [batch, 1] for targets of [batch]")
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    targets = targets.to(outputs.dtype)
    if kind == "huber":
        return F.huber_loss(outputs, targets, reduction="none", delta=delta)
    error = outputs - targets
    return error.abs() if kind == "mae" else error.square()


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


def _cross_entropy(
    logits: Float[Tensor, "n classes *pixels"],
    targets: Shaped[Tensor, "n *pixels"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    class_weights: ClassWeights = None,
) -> Float[Tensor, "n *pixels"]:
    """Return the cross entropy of each target. Raise ValueError for targets that are no classes.

    `label_smoothing`: this share of the target is spread over all classes (Szegedy et al. 2016, section 7). `z_loss`: this
    times log^2 Z is added, which keeps Z, the sum of the logits' exponentials, near 1 (PaLM, Chowdhery et al. 2022,
    section 5). `class_weights`: each class's terms of the cross entropy are multiplied by its weight.
    """
    if targets.is_floating_point():
        fix = "give targets.long(), or loss=regression for numbers"
        raise ValueError(f"the targets are {_name(targets)}, this loss takes classes\n{fix}")
    if class_weights == "balanced":
        raise ValueError("class_weights=balanced has no numbers\ngive them: training.task.balance_classes counts the classes")
    if not label_smoothing and not z_loss and class_weights is None:
        return F.cross_entropy(logits, targets, reduction="none")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    losses = F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(1).square().masked_fill(targets == IGNORE, 0)
    return losses


def _name(tensor: Tensor) -> str:
    """Return the type of a tensor's numbers, as float32."""
    return str(tensor.dtype).removeprefix("torch.")


@contract
def num_valid_targets(targets: Shaped[Tensor, "..."]) -> Int[Tensor, ""]:
    """Return the number of targets that are not IGNORE. Bytes and floating-point numbers all count."""
    all_count = targets.dtype == torch.uint8 or targets.is_floating_point()
    return targets.new_tensor(targets.numel(), dtype=torch.int64) if all_count else (targets != IGNORE).sum()
