"""The gradient of one step: of the mean loss over all its targets that count, however many micro-batches and processes
share them. The samples and their order depend on (seed, step) alone.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from research.data.spec import Split
from research.losses import IGNORE, num_valid_targets
from research.nn.bitlinear import bitlinear_layers, cached_quantized_weights, set_warmup_step
from research.optim.filter import Filter
from research.seeding import fold_in, sample_indices, seed_step
from research.training import distributed, oom, sharding
from research.training.state import State

log = logging.getLogger(__name__)
Loss = Callable[[Tensor, Tensor], Float[Tensor, "..."]]


@dataclass
class Gradients:
    """Called with a step's number, it leaves the step's gradient in the parameters and returns its loss (nats)."""

    net: nn.Module  # what is called: the model, or what wraps it
    loss: Loss
    train: Split
    batch_size: int
    grad_accum: int
    seed: int
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]

    def __post_init__(self) -> None:
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.bitlinear_layers = list(bitlinear_layers(self.net).values())
        self.params = [p for p in self.net.parameters() if p.requires_grad]
        targets = self.train.targets
        self.has_ignored_targets = targets.dtype != torch.uint8 and bool((targets == IGNORE).any())

    def __call__(self, state: State, step: int) -> Float[Tensor, ""]:
        """Again with smaller micro-batches where memory runs out."""
        return oom.retry_on_oom(lambda: self._accumulate(state, step), state, self.grad_accum)

    def clip(self, max_norm: float | None) -> Float[Tensor, ""]:
        """The norm of the gradient, which then is no longer than `norm`."""
        return sharding.full_tensor(nn.utils.clip_grad_norm_(self.params, max_norm or math.inf))

    def _accumulate(self, state: State, step: int) -> Float[Tensor, ""]:
        seed = fold_in(self.seed, 3, state.rollbacks) if state.rollbacks else self.seed
        seed_step(seed, step, self.rank)
        world = self.world_size
        parts = min(self.grad_accum * 2**state.oom_halvings, self.batch_size // world)  # none of them empty
        order = sample_indices(seed, step * self.batch_size, self.batch_size, len(self.train)).to(self.train.inputs.device)
        count = self._count_targets(order)
        set_warmup_step(self.bitlinear_layers, step)
        losses = []
        with cached_quantized_weights(self.bitlinear_layers) if parts > 1 and not state.sharded else nullcontext():
            for place, index in enumerate(order.tensor_split(parts * world)[self.rank :: world], start=1):
                with self._defer_sync(place < parts):
                    losses.append(self._backward(index, count))
        return distributed.all_reduce_sum(losses[0] if parts == 1 else torch.stack(losses).sum())

    def _backward(self, index: Int[Tensor, "batch"], num_targets: Tensor | int) -> Float[Tensor, ""]:
        """Add the gradient of these samples' share of the loss; return the share."""
        x, y = self.train[index]
        with self.autocast():
            each = self.loss(self.net(x), y)
        if each.shape != y.shape:
            raise ValueError(f"a loss gives one number a target: of shape {tuple(y.shape)}, not {tuple(each.shape)}")
        share = each.sum() / num_targets
        self.scaler.scale(share * self.world_size if self.world_size > 1 else share).backward()
        return share.detach()

    def _count_targets(self, indices: Int[Tensor, "batch"]) -> Tensor | int:
        """The targets of a step that count."""
        targets = self.train.targets
        if self.has_ignored_targets:
            return num_valid_targets(targets[indices].long()).clamp(min=1)
        return len(indices) * targets[:1].numel()

    def _defer_sync(self, enabled: bool) -> AbstractContextManager[Any]:
        """Inside a step, the gradients of several processes are not averaged yet."""
        net = self.net
        return net.no_sync() if enabled and isinstance(net, nn.parallel.DistributedDataParallel) else nullcontext()


def notify_filter(optimizer: Optimizer, state: State) -> None:
    """Tell a filter how far the run is. What its metrics were at the last log point is what the first process saw."""
    if isinstance(optimizer, Filter):
        if "val/loss" in state.logged and not optimizer.has_warned:
            optimizer.has_warned = True
            for metric in optimizer.watched_metrics() - set(state.metrics):
                log.warning(
                    "the filter waits for %s, which no evaluation told; there are: %s", metric, ", ".join(state.metrics)
                )
        news = bool(state.logged) or state.step == state.first_step
        if news and (optimizer.watched_metrics() or optimizer.defaults.get("adapt")):
            optimizer.latest_metrics = distributed.broadcast(state.metrics)
        optimizer.on_step_begin(state.step, optimizer.latest_metrics)
