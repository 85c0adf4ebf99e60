"""Grokfast and Adam or AdamW in one pass over the parameters, where grokfast.py and torch's fused step take three.

A fused step reads and writes the same state as the plain one: they can follow each other, and checkpoints are the same.
The numbers are equal up to rounding. Nothing is cached between steps, so nothing can be stale. Unlike the plain step it does
not write the gradient: `p.grad` stays the raw one.
"""

import ctypes
import importlib.util
import logging
from array import array
from collections.abc import Callable
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from research.contracts import contract
from research.kernels import build

log = logging.getLogger(__name__)
SOURCE = Path(build.__file__).with_name("adamw.c")
PLAIN, EMA, WINDOW, SUMMED = range(4)  # filters, as adamw.c numbers them
UNSUPPORTED_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable", "clip_norm")
FILTER_SETTINGS = {"grokfast_alpha", "window"}  # of each filter that has a kernel its own setting: `one_pass` of its class
TENSOR_TYPES = frozenset((Parameter, Tensor))  # no subclass: the memory of a DTensor is elsewhere
ParamState = dict[str, Any]
Job = tuple[dict[str, Any], int, int, Tensor, Tensor]  # group, its index, filter, parameter, gradient
Kernel = Callable[[Optimizer, list[Job], list[ParamState]], None]


@torch.no_grad()
def step(optimizer: Optimizer) -> bool:
    """Take one step of a filtered Adam or AdamW with fused=True. Return False, with nothing changed, if no kernel can."""
    jobs = collect_jobs(optimizer)
    if not jobs:
        return jobs is not None
    device = jobs[0][3].device
    kernel = choose_kernel(device, optimizer, jobs)
    states = [optimizer.state.get(job[3]) for job in jobs]
    if kernel is None or not is_supported_layout(jobs, states, device):
        return False
    torch.autograd.graph.increment_version([job[3] for job in jobs])  # so that autograd refuses a graph that has saved them
    kernel(optimizer, jobs, [state or init_state(optimizer, p) for state, (_, _, _, p, _) in zip(states, jobs, strict=True)])
    return True


def collect_jobs(optimizer: Optimizer) -> list[Job] | None:
    """Return a job for each parameter with a gradient; None if the class or an option needs the plain step."""
    bases = type(optimizer).__bases__
    ours = len(bases) == 2 and bases[1] in (Adam, AdamW)
    # The class's own attribute, not an inherited one: a subclass of a filter may compute anything.
    key = vars(bases[0]).get("one_pass", "") if ours else ""
    scaled = getattr(optimizer, "grad_scale", None) is not None
    if key not in FILTER_SETTINGS or scaled or optimizer.defaults.get("clip_norm") or torch.compiler.is_compiling():
        return None
    jobs: list[Job] = []
    for index, group in enumerate(optimizer.param_groups):
        if not is_supported_group(group, key):
            return None
        filtered = group["lamb"] and group.get("_on", True)
        kind = PLAIN if not filtered else EMA if key == "grokfast_alpha" else WINDOW
        jobs += [(group, index, kind, p, grad) for p in group["params"] if (grad := p.grad) is not None]
    unfiltered = jobs and all(kind == PLAIN for _, _, kind, _, _ in jobs)  # then the base steps: its very bits
    return None if unfiltered else jobs


def is_supported_group(group: dict[str, Any], key: str) -> bool:
    """Return whether a kernel takes the settings of a group with the filter's own setting `key`."""
    if group["fused"] is not True or any(map(group.get, UNSUPPORTED_OPTIONS)):
        return False
    own = group.keys() & FILTER_SETTINGS
    return own == {key} and all(isinstance(value, float | int) for value in get_kernel_settings(group))


def get_kernel_settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """Return a group's lr, both betas, eps, weight decay, whether that is L2, and the filter's weight and gain."""
    lamb, window = group["lamb"], group.get("window")
    weight, gain = (0.0, lamb / window) if window else (1 - group["grokfast_alpha"], lamb)
    coupled = not group["decoupled_weight_decay"] and group["weight_decay"] != 0
    return group["lr"], *group["betas"], group["eps"], group["weight_decay"], coupled, weight, gain


def is_supported_layout(jobs: list[Job], states: list[ParamState | None], device: torch.device) -> bool:
    """Return whether parameters, gradients and state lie in memory as the kernels read them: float32, contiguous, dense."""
    tensors: list[Any] = []
    sizes: list[int] = []
    for (group, _, kind, p, grad), state in zip(jobs, states, strict=True):
        size = p.numel()
        tensors += p, grad
        sizes += size, size
        if state:
            entries = {"step": 1, "exp_avg": size, "exp_avg_sq": size}
            if kind == EMA and "grokfast_ema" in state:
                entries["grokfast_ema"] = size
            elif kind == WINDOW and len(state.get("grokfast_ring", ())) == group["window"]:
                entries |= {"grokfast_ring": size * group["window"], "grokfast_sum": size}
            tensors += map(state.get, entries)
            sizes += entries.values()
    return (
        TENSOR_TYPES.issuperset(map(type, tensors))
        and set(map(attrgetter("dtype"), tensors)) == {torch.float32}
        and all(map(Tensor.is_contiguous, tensors))  # False for sparse tensors
        and list(map(Tensor.numel, tensors)) == sizes
        and all(map(attrgetter("is_cpu"), tensors) if device.type == "cpu" else (t.device == device for t in tensors))
        and not any(map(Tensor.is_neg, [job[4] for job in jobs]))
    )


def init_state(optimizer: Optimizer, p: Tensor) -> ParamState:
    """Create the state before the first step, with torch's own keys."""
    moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
    state = optimizer.state[p] = {"step": torch.zeros((), device=p.device), **moments}
    return state


def get_ema(state: ParamState, grad: Tensor, found_inf: Tensor | None = None) -> Tensor:
    """Return the EMA, which begins at the first gradient; with `found_inf`, at zero where that is not finite."""
    if "grokfast_ema" not in state:
        state["grokfast_ema"] = grad.clone() if found_inf is None else grad.nan_to_num(0.0, 0.0, 0.0)
    return state["grokfast_ema"]  # type: ignore[no-any-return]


def choose_kernel(device: torch.device, optimizer: Optimizer, jobs: list[Job]) -> Kernel | None:
    """Return the function that takes the step on a device, or None."""
    if device.type == "cpu" and getattr(optimizer, "found_inf", None) is None and (c := get_library()):
        return partial(step_on_cpu, c)
    if device.type == "cuda" and not any(kind == WINDOW for _, _, kind, _, _ in jobs) and has_triton(device):
        return step_on_gpu
    return None


def step_on_gpu(optimizer: Optimizer, jobs: list[Job], states: list[ParamState]) -> None:
    from research.kernels import triton_adamw

    found_inf, rows = getattr(optimizer, "found_inf", None), []
    for (group, _, kind, p, grad), state in zip(jobs, states, strict=True):
        ema = get_ema(state, grad, found_inf) if kind == EMA else None
        rows.append((p, grad, ema, state, get_kernel_settings(group)))
    triton_adamw.step(rows, found_inf)


@cache
def has_triton(device: torch.device) -> bool:
    """Return whether Triton works here: without a C compiler, for one, it cannot launch a kernel."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from research.kernels import triton_adamw

        if triton_adamw.passes_self_test(device):
            return True
        log.warning("Triton computes wrong numbers, so Grokfast's step uses torch, which is slower")
    except Exception as error:  # a compiler or a driver may raise anything
        log.warning("Triton fails, so Grokfast's step uses torch, which is slower: %s", str(error).partition("\n")[0])
    return False


@cache
@contract
def get_library() -> ctypes.CDLL | None:
    """Return the kernel of adamw.c, built if the cache has none; if that fails, warn once and return None."""
    try:
        c = ctypes.CDLL(str(build.build_cached(SOURCE, build.get_cache_folder())))
        c.grokbit_adamw.argtypes, c.grokbit_adamw.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int), None
    except build.BUILD_ERRORS as error:
        log.warning("no C kernel, so Grokfast's step uses torch, which is slower: %s", error)
        return None
    return c


def step_on_cpu(c: ctypes.CDLL, optimizer: Optimizer, jobs: list[Job], states: list[ParamState]) -> None:
    """Take the step in adamw.c, from a table with one row of 12 numbers a parameter."""
    groups = array("d", [value for group in optimizer.param_groups for value in get_kernel_settings(group)])
    address, rows = groups.buffer_info()[0], array("Q")
    for (group, index, kind, p, grad), state in zip(jobs, states, strict=True):
        memory = slot = full = 0
        if kind == EMA:
            memory = get_ema(state, grad).data_ptr()
        elif kind == WINDOW:
            kind, slot, full = update_window(state, grad, group["window"])
            memory = state["grokfast_sum"].data_ptr()
        pointers = p.data_ptr(), grad.data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()
        rows.extend((*pointers, state["step"].data_ptr(), memory, slot, p.numel(), kind, full, address + 64 * index, 0))
    c.grokbit_adamw(rows.buffer_info()[0], len(jobs), torch.get_num_threads())


@contract
def init_window(grad: Tensor, window: int) -> ParamState:
    """Return the state of a window before its first gradient."""
    zero = torch.zeros_like(grad)
    return {"grokfast_ring": torch.stack([zero] * window), "grokfast_sum": zero, "grokfast_seen": 0}


def update_window(state: ParamState, grad: Tensor, window: int) -> tuple[int, int, bool]:
    """Make room in the ring for one more gradient (2405.20233, Algorithm 1).

    Return the kernel's filter, the address of the oldest gradient, and whether the window is full. Once a round the sum is
    computed anew, here; otherwise the kernel adds and subtracts. So an error by one huge gradient lasts until the round ends.
    """
    if len(state.get("grokfast_ring", ())) != window:
        state |= init_window(grad, window)
    ring, seen = state["grokfast_ring"], state["grokfast_seen"]
    state["grokfast_seen"] = seen + 1
    if seen % window == window - 1:
        ring[-1] = grad
        torch.sum(ring, dim=0, out=state["grokfast_sum"])
        return SUMMED, 0, True
    return WINDOW, ring.data_ptr() + 4 * grad.numel() * (seen % window), seen >= window
