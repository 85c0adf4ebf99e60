"""How good a model is on a whole split."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from research import rules
from research.cli import first_line
from research.data.spec import Dataset, Images, Samples, Tokens, Vectors
from research.losses import IGNORE, Loss, check_class_weights, check_losses, num_valid_targets
from research.metrics import Metric, find_directions, nats_to_bits, num_correct
from research.nn.bitlinear import bitlinear_layers, cached_quantized_weights
from research.ranges import check_partial
from research.training import distributed, sharding
from research.trigger import check_metric_name, check_monitor

Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Samples,
    loss: Loss,
    batch_size: int,
    autocast: Autocast = nullcontext,
    poll: Callable[[], None] = lambda: None,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """Return the metrics of `list_metrics` and those of `metrics`, over all targets that count; val/loss in nats.

    Each process takes its part of every batch. `poll` is called before each batch, and may raise to end it all.
    """
    names, was_training, metrics = list_metrics(split), model.training, metrics or {}
    for metric in metrics.values():
        metric.reset()
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=split.device)  # loss, correct, targets, their bytes
    layers = [layer for layer in bitlinear_layers(model).values() if sharding.local_shard(layer.weight) is layer.weight]
    try:
        with cached_quantized_weights(layers):  # they do not change meanwhile
            for offset in range(0, len(split), batch_size):
                poll()
                indices = torch.arange(offset, min(offset + batch_size, len(split)))
                x, y = split[indices[distributed.rank() :: distributed.world_size()]]
                with autocast():
                    logits = model(x)
                    losses = loss(logits, y)
                check_losses(losses, y)
                for metric in metrics.values():
                    metric.update(logits, y)
                correct = num_correct(logits, y) if "val/acc" in names else y.new_zeros(())
                count = num_valid_targets(y)
                num_bytes = count if split.token_bytes is None else split.token_bytes[y[y != IGNORE]].sum()
                sums += torch.stack([value.double() for value in (losses.sum(), correct, count, num_bytes)])
    finally:
        model.train(was_training)
    nats, right, targets, text = distributed.all_reduce_sum(sums).tolist()
    values = {"val/loss": nats / targets, "val/acc": right / targets, "val/bpb": nats_to_bits(nats / max(1, text))}
    parts = distributed.all_gather(metrics) if metrics else []
    own = {f"val/{name}": metric.merge([part[name] for part in parts]) for name, metric in metrics.items()}
    if math.isnan(nats):  # what the largest of NaN logits is says nothing
        values, own = dict.fromkeys(values, math.nan), dict.fromkeys(own, math.nan)
    return {name: values[name] for name in names} | own


def list_metrics(split: Samples) -> list[str]:
    """Return the metrics that a split has: an accuracy where targets are classes, and bits where every token is a target."""
    return ["val/loss", *["val/acc"] * split.has_classes, *["val/bpb"] * (split.has_classes and len(split.target_shape) == 1)]


def check_task(data: Dataset[Any], loss: Loss, metrics: Mapping[str, Metric], monitor: str) -> None:
    """Raise ValueError where the data report no such monitor, and for a loss or metric that does not fit them.

    They are tried on a sample with logits of zero, but under a loss of one's own: its model may have other outputs.
    """
    directions = find_directions(metrics)
    rules.enforce(check_monitor(monitor, directions, [*list_metrics(data.val), *directions]))
    rules.enforce(*(check_metric_name(name) for name in metrics))
    check_partial("loss", loss)
    shape, function = get_logits_shape(data.shape), loss.func if isinstance(loss, partial) else loss
    if shape is None or getattr(function, "__module__", "") != check_losses.__module__:
        return
    check_class_weights(loss, shape[0] if len(shape) == 3 else shape[-1])
    y = data.val[torch.arange(1)][1]
    logits = torch.zeros(1, *shape, device=y.device)
    check_losses(loss(logits, y), y)
    for name, metric in metrics.items():
        metric.reset()
        try:
            metric.update(logits, y)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            kind = "numbers" if y.is_floating_point() else "classes"
            reason = f"metrics.{name} does not fit these data, whose targets are {kind}: {first_line(error)}"
            raise ValueError(f"{reason}\nleave it out with ~metrics.{name}, or give other metrics") from error


def get_logits_shape(shape: object) -> tuple[int, ...] | None:
    """Return the shape of one sample's logits; None for a shape of one's own."""
    match shape:
        case Tokens():
            return shape.seq_len, shape.num_classes or shape.vocab_size
        case Vectors():
            return (shape.num_classes,)
        case Images():
            return (shape.num_classes, *((shape.height, shape.width) if shape.per_pixel else ()))
    return None
