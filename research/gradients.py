"""The gradient of one step: of the mean loss over all its targets that count, however many micro-batches and processes
share them. The samples and their order depend on (seed, step) alone.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from research import memory, processes, shards
from research.callback import State
from research.dataset import Split
from research.losses import judged
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

    def __call__(self, state: State, step: int) -> Float[Tensor, ""]:
        """Again with smaller micro-batches where memory runs out."""
        while True:
            try:
                return self._accumulate(state, step)
            except RuntimeError as error:
                if not memory.ran_out(error):
                    raise
                ran_out = str(error)
            memory.halve(state, self.grad_accum, ran_out)  # here, where the failed step's tensors are free

    def _accumulate(self, state: State, step: int) -> Float[Tensor, ""]:
        seed = fold(self.seed, 3, state.rollbacks) if state.rollbacks else self.seed
        seed_step(seed, step, processes.rank())
        world, parts = processes.count(), self.grad_accum * 2**state.halvings
        device = self.train.inputs.device
        order = positions(seed, step * self.batch_size, self.batch_size, len(self.train)).to(device)
        count = judged(self.train.targets[order].long()).clamp(min=1)
        value = torch.zeros((), device=device)
        mine = order.tensor_split(parts * world)[processes.rank() :: world]
        for place, index in enumerate(mine, start=1):
            x, y = self.train[index]
            with self._quiet(place < parts):
                with self.autocast():
                    each = self.loss(self.net(x), y)
                if each.shape != y.shape:
                    raise ValueError(f"a loss gives one number a target: of shape {tuple(y.shape)}, not {tuple(each.shape)}")
                share = each.sum() / count
                self.scaler.scale(share * world if world > 1 else share).backward()
            value += share.detach()
        return processes.total(value)

    def _quiet(self, inside: bool) -> AbstractContextManager[Any]:
        """Inside a step, the gradients of several processes are not averaged yet."""
        net = self.net
        return net.no_sync() if inside and isinstance(net, nn.parallel.DistributedDataParallel) else nullcontext()


def clip(state: State, norm: float | None) -> Float[Tensor, ""]:
    """The norm of the gradient, which then is no longer than `norm`."""
    params = [p for p in state.model.parameters() if p.grad is not None]
    return shards.whole(nn.utils.clip_grad_norm_(params, norm or math.inf))
