"""Grokfast-EMA and Adam or AdamW on a GPU, in one pass and one launch over all tensors: adamw.c's twin in Triton.

The tensors stand in a table of addresses; each program takes a chunk of one of them. Only fused.py imports this file, and
only for tensors on a GPU.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK, BLOCK = 16384, 1024  # numbers of a program, and of its turns


@triton.jit  # type: ignore[untyped-decorator]
def _one_minus_power(step: Any, log_beta: Any) -> Any:
    """1 - beta^step, whose leading digits cancel out in float32 where the power is near 1: there as a series."""
    x = step * log_beta
    series = 1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8 * (1 + x / 9))))
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * series)))
    return tl.where(x > -0.5, series, 1 - tl.exp(x))


@triton.jit  # type: ignore[untyped-decorator]
def _lerp(start: Any, end: Any, weight: Any) -> Any:
    """torch.lerp: the form that is exact at the nearer end."""
    return tl.where(weight < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(table, numbers, pieces, chunk: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One chunk of one tensor; `step` below says what the tables hold."""
    which, start = tl.load(pieces + 2 * tl.program_id(0)), tl.load(pieces + 2 * tl.program_id(0) + 1)
    row, number = table + 7 * which, numbers + 11 * which
    p = tl.load(row).to(tl.pointer_type(tl.float32))
    g = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    m = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    v = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    count = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)))
    average = tl.load(row + 5).to(tl.pointer_type(tl.float32))
    size = tl.load(row + 6)
    averaged = tl.where(tl.load(row + 5) != 0, size, 0)  # numbers that have an average
    decay, l2, rest1 = tl.load(number), tl.load(number + 1), tl.load(number + 2)
    beta2, rest2, eps = tl.load(number + 3), tl.load(number + 4), tl.load(number + 5)
    weight, gain = tl.load(number + 6), tl.load(number + 7)
    rate = tl.load(number + 8) / _one_minus_power(count, tl.load(number + 9))
    root = 1 / tl.sqrt(_one_minus_power(count, tl.load(number + 10)))
    for offset in range(0, chunk, block):
        i = start + offset + tl.arange(0, block)
        inside, known = i < size, i < averaged
        grad, x = tl.load(g + i, mask=inside, other=0.0), tl.load(p + i, mask=inside, other=0.0)
        mu = _lerp(tl.load(average + i, mask=known, other=0.0), grad, weight)  # 2405.20233, Algorithm 2
        tl.store(average + i, mu, mask=known)
        grad = tl.where(known, grad + gain * mu, grad) + l2 * x
        first = _lerp(tl.load(m + i, mask=inside, other=0.0), grad, rest1)
        second = beta2 * tl.load(v + i, mask=inside, other=0.0) + rest2 * grad * grad
        tl.store(m + i, first, mask=inside)
        tl.store(v + i, second, mask=inside)
        tl.store(p + i, x * decay - rate * (first / (tl.sqrt(second) * root + eps)), mask=inside)


def numbers_of(group: dict[str, Any]) -> tuple[float, ...]:
    """What a group's step is made with, in the order of the kernel."""
    lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
    apart = group["decoupled_weight_decay"]
    logs = tuple(math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    shrunk, l2 = (1 - lr * decay, 0.0) if apart else (1.0, decay)
    return shrunk, l2, 1 - beta1, beta2, 1 - beta2, group["eps"], 1 - group["alpha"], group["lamb"], lr, *logs


def step(
    params: list[Tensor],
    grads: list[Tensor],
    averages: list[Tensor | None],
    groups: list[dict[str, Any]],
    states: list[dict[str, Any]],
) -> None:
    """One step of these parameters, each with its average (None: without the filter), its group and its state."""
    torch._foreach_add_([state["step"] for state in states], 1)
    rows, numbers = [], []
    for p, grad, average, group, state in zip(params, grads, averages, groups, states, strict=True):
        kept = [state[key].data_ptr() for key in ("exp_avg", "exp_avg_sq", "step")]
        rows.append([p.data_ptr(), grad.data_ptr(), *kept, 0 if average is None else average.data_ptr(), p.numel()])
        numbers.append(numbers_of(group))
    pieces = [(which, start) for which, p in enumerate(params) for start in range(0, p.numel(), CHUNK)]
    if pieces:
        device = params[0].device
        table = torch.tensor(rows, dtype=torch.int64).to(device)
        columns = torch.tensor(numbers, dtype=torch.float32).to(device)
        with torch.cuda.device_of(params[0]):
            _kernel[(len(pieces),)](table, columns, torch.tensor(pieces).to(device), CHUNK, BLOCK)


def works(device: torch.device) -> bool:
    """Whether a first step on a device gives what it must: from 1 with the gradient 1, a step of lr and a decay of lr / 2."""
    p, grad, average, m, v = (torch.full((3,), value, device=device) for value in (1.0, 1.0, 1.0, 0.0, 0.0))
    options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 0.0, "weight_decay": 0.5, "alpha": 0.9, "lamb": 2.0}
    state = {"step": torch.zeros((), device=device), "exp_avg": m, "exp_avg_sq": v}
    step([p], [grad], [average], [options | {"decoupled_weight_decay": True}], [state])
    return bool(torch.allclose(p, torch.full_like(p, 0.85)) and torch.allclose(m, torch.full_like(m, 0.3)))
