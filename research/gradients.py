"""The gradient of one step: of the mean loss over all its targets that count, however many micro-batches and processes
share them. The samples and their order depend on (seed, step) alone.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from research import memory, processes, shards
from research.callback import State
from research.dataset import Split
from research.losses import IGNORE, judged
from research.nn.bitlinear import begin_step, kept, layers
from research.order import positions
from research.seeding import fold, seed_step

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
        self.rank, self.world = processes.rank(), processes.count()
        self.bits = list(layers(self.net).values())
        self.params = [p for p in self.net.parameters() if p.requires_grad]
        targets = self.train.targets
        self.masked = targets.dtype != torch.uint8 and bool((targets == IGNORE).any())

    def __call__(self, state: State, step: int) -> Float[Tensor, ""]:
        """Again with smaller micro-batches where memory runs out."""
        return memory.tried(lambda: self._accumulate(state, step), state, self.grad_accum)

    def clip(self, norm: float | None) -> Float[Tensor, ""]:
        """The norm of the gradient, which then is no longer than `norm`."""
        return shards.whole(nn.utils.clip_grad_norm_(self.params, norm or math.inf))

    def _accumulate(self, state: State, step: int) -> Float[Tensor, ""]:
        seed = fold(self.seed, 3, state.rollbacks) if state.rollbacks else self.seed
        seed_step(seed, step, self.rank)
        world = self.world
        parts = min(self.grad_accum * 2**state.halvings, self.batch_size // world)  # none of them empty
        order = positions(seed, step * self.batch_size, self.batch_size, len(self.train)).to(self.train.inputs.device)
        count = self._count(order)
        begin_step(self.bits, step)
        losses = []
        with kept(self.bits) if parts > 1 and not state.sharded else nullcontext():
            for place, index in enumerate(order.tensor_split(parts * world)[self.rank :: world], start=1):
                with self._quiet(place < parts):
                    losses.append(self._backward(index, count))
        return processes.total(losses[0] if parts == 1 else torch.stack(losses).sum())

    def _backward(self, index: Int[Tensor, "batch"], count: Tensor | int) -> Float[Tensor, ""]:
        """Add the gradient of these samples' share of the loss; return the share."""
        x, y = self.train[index]
        with self.autocast():
            each = self.loss(self.net(x), y)
        if each.shape != y.shape:
            raise ValueError(f"a loss gives one number a target: of shape {tuple(y.shape)}, not {tuple(each.shape)}")
        share = each.sum() / count
        self.scaler.scale(share * self.world if self.world > 1 else share).backward()
        return share.detach()

    def _count(self, order: Int[Tensor, "batch"]) -> Tensor | int:
        """The targets of a step that count."""
        targets = self.train.targets
        if self.masked:
            return judged(targets[order].long()).clamp(min=1)
        return len(order) * targets[:1].numel()

    def _quiet(self, inside: bool) -> AbstractContextManager[Any]:
        """Inside a step, the gradients of several processes are not averaged yet."""
        net = self.net
        return net.no_sync() if inside and isinstance(net, nn.parallel.DistributedDataParallel) else nullcontext()
