"""Optimizer steps with given gradients, for tests of optimizers: no data and no loss."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from research.optim import fused, grokfast

EMA, MA = partial(grokfast.ema, alpha=0.9, lamb=2.0), partial(grokfast.ma, window=4, lamb=2.0)
SHAPES = [(), (1,), (7,), (3, 5), (0, 4), (33, 17), (2, 3, 4, 5)]
FUSED = partial(AdamW, fused=True)
Build = Callable[[nn.Module], Optimizer]
Step = Callable[[Optimizer], bool]


def make_weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = nn.Module()
    net.register_parameter("weight", nn.Parameter(torch.zeros(shape, dtype=dtype)))
    return net


def make_gradient(step: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3))


class Parameters(nn.Module):
    """Tensors whose names match no rule."""

    def __init__(self, shapes: Iterable[tuple[int, ...]], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.list = nn.ParameterList(torch.randn(shape, generator=generator) for shape in shapes)


def make_ema(model: nn.Module, base: Any = FUSED, **options: Any) -> Optimizer:
    return grokfast.ema(model, base, **({"lr": 1e-2, "alpha": 0.9, "lamb": 2.0, "weight_decay": 0.1} | options))


def make_ma(model: nn.Module, base: Any = FUSED, **options: Any) -> Optimizer:
    return grokfast.ma(model, base, **({"lr": 1e-2, "window": 5, "lamb": 2.0, "weight_decay": 0.1} | options))


def step_plain(optimizer: Optimizer) -> bool:
    """Take the plain step in place of the fused one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "step", lambda _: False)
        optimizer.step()
    return True


def fill_gradients(model: nn.Module, step: int) -> None:
    """Set the gradients of a step; one parameter begins late, and one misses some steps."""
    generator = torch.Generator().manual_seed(step)
    for index, p in enumerate(model.parameters()):
        grad = torch.randn(p.shape, generator=generator)
        p.grad = None if (index == 3 and step < 7) or (index == 5 and step % 4 == 2) else grad


def run_steps(model: nn.Module, optimizer: Optimizer, step: Step, first: int, last: int) -> None:
    for number in range(first, last):
        fill_gradients(model, number)
        assert step(optimizer)


def copy_contents(optimizer: Optimizer) -> list[Any]:
    """Return copies of an optimizer's groups, parameters, gradients and states."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [dict(optimizer.state[p]) if p in optimizer.state else None for p in params]
    return copy.deepcopy([groups, [p.detach() for p in params], [p.grad for p in params], states])


def is_same(a: Any, b: Any) -> bool:
    """Return whether two nested dicts and lists of tensors are equal bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and (a.dtype, a.layout) == (b.dtype, b.layout) and torch.equal(a.to_dense(), b.to_dense())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)
