"""Grokfast-EMA and Adam or AdamW on a GPU, in one pass and one launch over all tensors: adamw.c in Triton.

A table holds the addresses of the tensors; each program takes a chunk of one tensor. Only fused.py imports this file, and
only for tensors on a GPU.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Settings = tuple[float, ...]  # lr, both betas, eps, weight decay, whether that is L2, the filter's weight and gain
Row = tuple[Tensor, Tensor, Tensor | None, dict[str, Any], Settings]  # parameter, gradient, EMA or None, state, settings
CHUNK, BLOCK = 16384, 1024  # numbers that a program takes, in all and at a time


@triton.jit
def _one_minus_power(step, log_beta):  # type: ignore[no-untyped-def]  # Triton takes no types of ours
    """Return 1 - beta^step. Near 1 the power loses its leading digits in float32, so a series computes it there."""
    x = step * log_beta
    series = 1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8 * (1 + x / 9))))
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * series)))
    return tl.where(x > -0.5, series, 1 - tl.exp(x))


@triton.jit
def _lerp(start, end, weight):  # type: ignore[no-untyped-def]
    """Return torch.lerp, in the form that is exact at the nearer end."""
    return tl.where(weight < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(table, numbers, pieces, found_inf, chunk: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Update one chunk of one tensor; `step` below fills the tables."""
    if found_inf is not None:  # noqa: SIM102 - apart: this is known at compile time
        if tl.load(found_inf) > 0:
            return
    which, start = tl.load(pieces + 2 * tl.program_id(0)), tl.load(pieces + 2 * tl.program_id(0) + 1)
    row, number = table + 7 * which, numbers + 11 * which
    p = tl.load(row).to(tl.pointer_type(tl.float32))
    g = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    m = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    v = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    count = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)))
    ema = tl.load(row + 5).to(tl.pointer_type(tl.float32))
    size = tl.load(row + 6)
    filtered = tl.where(tl.load(row + 5) != 0, size, 0)  # numbers that have an EMA
    decay, l2, rest1 = tl.load(number), tl.load(number + 1), tl.load(number + 2)
    beta2, rest2, eps = tl.load(number + 3), tl.load(number + 4), tl.load(number + 5)
    weight, gain = tl.load(number + 6), tl.load(number + 7)
    rate = tl.load(number + 8) / _one_minus_power(count, tl.load(number + 9))
    root = 1 / tl.sqrt(_one_minus_power(count, tl.load(number + 10)))
    for offset in range(0, chunk, block):
        i = start + offset + tl.arange(0, block)
        inside, known = i < size, i < filtered
        grad, x = tl.load(g + i, mask=inside, other=0.0), tl.load(p + i, mask=inside, other=0.0)
        mu = _lerp(tl.load(ema + i, mask=known, other=0.0), grad, weight)  # 2405.20233, Algorithm 2
        tl.store(ema + i, mu, mask=known)
        grad = tl.where(known, grad + gain * mu, grad) + l2 * x
        first = _lerp(tl.load(m + i, mask=inside, other=0.0), grad, rest1)
        second = beta2 * tl.load(v + i, mask=inside, other=0.0) + rest2 * grad * grad
        tl.store(m + i, first, mask=inside)
        tl.store(v + i, second, mask=inside)
        tl.store(p + i, x * decay - rate * (first / (tl.sqrt(second) * root + eps)), mask=inside)


def convert_settings(settings: Settings) -> tuple[float, ...]:
    """Return settings as the kernel takes them."""
    lr, beta1, beta2, eps, decay, is_l2, weight, gain = settings
    shrink, l2 = (1.0, decay) if is_l2 else (1 - lr * decay, 0.0)
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    return shrink, l2, 1 - beta1, beta2, 1 - beta2, eps, weight, gain, lr, *logs


def step(rows: Sequence[Row], found_inf: Tensor | None = None) -> None:
    """Take one step. Where `found_inf`, a number on the device, is 1, nothing changes. The host does not wait."""
    counts, device = [state["step"] for _, _, _, state, _ in rows], rows[0][0].device
    torch._foreach_add_(counts, 1)
    tensors, numbers, pieces = [], [], []
    for index, (p, grad, ema, state, settings) in enumerate(rows):
        addresses = [state[key].data_ptr() for key in ("exp_avg", "exp_avg_sq", "step")]
        tensors.append([p.data_ptr(), grad.data_ptr(), *addresses, 0 if ema is None else ema.data_ptr(), p.numel()])
        numbers.append(convert_settings(settings))
        pieces += [(index, start) for start in range(0, p.numel(), CHUNK)]
    if found_inf is not None:
        found_inf = found_inf.to(device, non_blocking=True)
    if pieces:
        send = partial(_send_to_device, device=device)
        tables = send(tensors, torch.int64), send(numbers, torch.float32), send(pieces, torch.int64)
        with torch.cuda.device_of(rows[0][0]):
            _kernel[(len(pieces),)](*tables, found_inf, CHUNK, BLOCK)
    if found_inf is not None:  # after the kernel, which has read the counts: a skipped update is no step
        torch._foreach_sub_(counts, [found_inf] * len(counts))


def _send_to_device(rows: Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy a table to the device from pinned memory: with any other the host would wait."""
    return torch.tensor(rows, dtype=dtype, device="cpu", pin_memory=device.type == "cuda").to(device, non_blocking=True)


def passes_self_test(device: torch.device) -> bool:
    """Return whether a step on a device is right: 1, with gradient 1, falls by lr and lr / 2; a second step is skipped."""
    p, grad, ema, m, v = (torch.full((3,), value, device=device) for value in (1.0, 1.0, 1.0, 0.0, 0.0))
    settings = 0.1, 0.9, 0.999, 0.0, 0.5, False, 1 - 0.9, 2.0
    state = {"step": torch.zeros((), device=device), "exp_avg": m, "exp_avg_sq": v}
    for found_inf in (None, torch.ones((), device=device)):
        step([(p, grad, ema, state, settings)], found_inf)
    right = torch.allclose(p, torch.full_like(p, 0.85)) and torch.allclose(m, torch.full_like(m, 0.3))
    return right and state["step"].item() == 1
