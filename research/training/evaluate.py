"""How good a model is on a whole split."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from research.contracts import contract
from research.data.spec import Samples
from research.losses import IGNORE, Loss, check_losses, num_valid_targets
from research.metrics import Metric, nats_to_bits, num_correct
from research.nn.bitlinear import bitlinear_layers, cached_quantized_weights
from research.training import distributed, sharding

Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
@contract
def evaluate(
    model: nn.Module,
    split: Samples,
    loss: Loss,
    batch_size: int,
    autocast: Autocast = nullcontext,
    poll: Callable[[], None] = lambda: None,
    metrics: Mapping[str, Metric] | None = None,
    observe: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> dict[str, float]:
    """Return the metrics of `list_metrics` and those of `metrics`, over all targets that count; val/loss in nats.

    Each process takes its part of every batch. `poll` is called before each batch, and may raise to end it all; `observe`
    after it, with its logits, targets and losses.
    """
    names, was_training, metrics = list_metrics(split), model.training, metrics or {}
    for metric in metrics.values():
        metric.reset()
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=split.device)  # loss, correct, targets, their bytes
    layers = [layer for layer in bitlinear_layers(model).values() if sharding.local_shard(w := layer.weight) is w]
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
                if observe:
                    observe(logits, y, losses)
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


@contract
def list_metrics(split: Samples) -> list[str]:
    """Return the metrics that a split has: an accuracy where targets are classes, and bits where every token is a target."""
    return ["val/loss", *["val/acc"] * split.has_classes, *["val/bpb"] * (split.has_classes and len(split.target_shape) == 1)]
