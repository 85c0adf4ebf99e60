"""How good a model is on a whole split."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from research.data.spec import Split
from research.losses import Loss, check_losses, num_valid_targets
from research.metrics import nats_to_bits, num_correct
from research.nn.bitlinear import bitlinear_layers, cached_quantized_weights
from research.training import distributed, sharding

Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    loss: Loss,
    batch_size: int,
    autocast: Autocast = nullcontext,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return val/loss (nats) and val/acc over all targets that count, and val/bpb where every token is a target.

    Each process takes its part of every batch. `poll` is called before each batch, and may raise to end it all.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=split.inputs.device)  # loss, correct, targets
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
                sums += torch.stack([losses.sum().double(), num_correct(logits, y).double(), num_valid_targets(y).double()])
    finally:
        model.train(was_training)
    nats, correct, count = distributed.all_reduce_sum(sums).tolist()
    metrics = {"val/loss": nats / max(1, count), "val/acc": correct / max(1, count)}
    return metrics | ({"val/bpb": nats_to_bits(metrics["val/loss"])} if split.targets.ndim == 2 else {})
