"""Grokfast and Adam or AdamW in one pass over the parameters: what grokfast.py and torch's fused step do in three.

A step here takes what the plain one would leave, and leaves what it would take: states, checkpoints and resumes are the
same, the numbers equal to rounding. Nothing is kept between steps, so nothing can be out of date. The gradient is not
written: after a step it is still the raw one.
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

from research.kernels import build

log = logging.getLogger(__name__)
SOURCE = Path(build.__file__).with_name("adamw.c")
PLAIN, EMA, WINDOW, SUMMED = range(4)  # filters, as adamw.c numbers them
UNSUPPORTED_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable", "clip_norm")
FILTER_SETTINGS = {"ema": "grokfast_alpha", "window": "window"}  # a filter class's `one_pass`, and its setting
TENSOR_TYPES = frozenset((Parameter, Tensor))  # no subclass: a DTensor's memory is not its own
ParamState = dict[str, Any]
Job = tuple[dict[str, Any], int, int, Tensor, Tensor]  # group, its place, filter, parameter, gradient
Kernel = Callable[[Optimizer, list[Job], list[ParamState]], None]


@torch.no_grad()
def step(optimizer: Optimizer) -> bool:
    """One step of a filtered Adam or AdamW that asks for fused=True; False, with nothing changed, where it has to be plain."""
    jobs = collect_jobs(optimizer)
    if not jobs:
        return jobs is not None
    device = jobs[0][3].device
    kernel = choose_kernel(device, optimizer, jobs)
    states = [optimizer.state.get(job[3]) for job in jobs]
    if kernel is None or not is_supported_layout(jobs, states, device):
        return False
    torch.autograd.graph.increment_version([job[3] for job in jobs])  # a graph that has saved them must not go on
    kernel(optimizer, jobs, [state or init_state(optimizer, p) for state, (_, _, _, p, _) in zip(states, jobs, strict=True)])
    return True


def collect_jobs(optimizer: Optimizer) -> list[Job] | None:
    """What has a gradient; None where the class, a group's options or the moment ask for the plain step."""
    bases = type(optimizer).__bases__
    ours = len(bases) == 2 and bases[1] in (Adam, AdamW)
    key = (
        FILTER_SETTINGS.get(vars(bases[0]).get("one_pass", "")) if ours else None
    )  # its own: a subclass of a filter may do anything
    scaled = getattr(optimizer, "grad_scale", None) is not None
    if key is None or scaled or optimizer.defaults.get("clip_norm") or torch.compiler.is_compiling():
        return None
    jobs: list[Job] = []
    for place, group in enumerate(optimizer.param_groups):
        if (
            group["fused"] is not True
            or any(group.get(key) for key in UNSUPPORTED_OPTIONS)
            or group.keys() & {*FILTER_SETTINGS.values()} != {key}
        ):
            return None
        if not all(isinstance(value, float | int) for value in get_kernel_settings(group)):
            return None
        filtered = group["lamb"] and group.get("_on", True)
        kind = PLAIN if not filtered else EMA if key == FILTER_SETTINGS["ema"] else WINDOW
        jobs += [(group, place, kind, p, grad) for p in group["params"] if (grad := p.grad) is not None]
    base = jobs and all(kind == PLAIN for _, _, kind, _, _ in jobs)  # without a filter it is the base: same bits
    return None if base else jobs


def get_kernel_settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """lr, both betas, eps, decay, whether it is coupled; the filter's weight and its gain."""
    ema = FILTER_SETTINGS["ema"] in group
    weight = 1 - group[FILTER_SETTINGS["ema"]] if ema else 0.0
    gain = group["lamb"] if ema else group["lamb"] / group["window"]
    coupled = not group["decoupled_weight_decay"] and group["weight_decay"] != 0
    return group["lr"], *group["betas"], group["eps"], group["weight_decay"], coupled, weight, gain


def is_supported_layout(jobs: list[Job], states: list[ParamState | None], device: torch.device) -> bool:
    """Whether parameters, gradients and what state there is lie in memory as the kernels read them."""
    tensors: list[Any] = []
    sizes: list[int] = []
    for (group, _, kind, p, grad), state in zip(jobs, states, strict=True):
        size = p.numel()
        tensors += p, grad
        sizes += size, size
        if not state:
            continue
        tensors += state.get("step"), state.get("exp_avg"), state.get("exp_avg_sq")
        sizes += 1, size, size
        if kind == EMA and "grokfast_ema" in state:
            tensors.append(state["grokfast_ema"])
            sizes.append(size)
        elif kind == WINDOW and len(state.get("grokfast_ring", ())) == group["window"]:
            tensors += state["grokfast_ring"], state.get("grokfast_sum")
            sizes += size * group["window"], size
    return (
        TENSOR_TYPES.issuperset(map(type, tensors))
        and set(map(attrgetter("dtype"), tensors)) == {torch.float32}
        and all(map(Tensor.is_contiguous, tensors))  # never, where sparse
        and list(map(Tensor.numel, tensors)) == sizes
        and all(map(attrgetter("is_cpu"), tensors) if device.type == "cpu" else (t.device == device for t in tensors))
        and not any(map(Tensor.is_neg, [job[4] for job in jobs]))
    )


def init_state(optimizer: Optimizer, p: Tensor) -> ParamState:
    """The state before the first step, as torch lays it out."""
    state: ParamState = optimizer.state[p]
    state["step"] = torch.zeros((), device=p.device)
    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    return state


def get_found_inf(optimizer: Optimizer) -> Tensor | None:
    """On the device: 1 where this update is left out, which no step waits to know (health.py)."""
    return getattr(optimizer, "found_inf", None)


def get_average(state: ParamState, grad: Tensor, found_inf: Tensor | None = None) -> Tensor:
    """The average, which begins at the first gradient; where that is judged on the device, at zero if it is not finite."""
    if "grokfast_ema" not in state:
        state["grokfast_ema"] = grad.clone() if found_inf is None else grad.nan_to_num(0.0, 0.0, 0.0)
    return state["grokfast_ema"]  # type: ignore[no-any-return]


def choose_kernel(device: torch.device, optimizer: Optimizer, jobs: list[Job]) -> Kernel | None:
    """What does the step on a device, or None."""
    if device.type == "cpu" and get_found_inf(optimizer) is None and (c := get_library()):
        return partial(step_on_cpu, c)
    if device.type == "cuda" and not any(kind == WINDOW for _, _, kind, _, _ in jobs) and has_triton(device):
        return step_on_gpu
    return None


def step_on_gpu(optimizer: Optimizer, jobs: list[Job], states: list[ParamState]) -> None:
    from research.kernels import triton_adamw

    groups, _, kinds, params, grads = map(list, zip(*jobs, strict=True))
    found_inf = get_found_inf(optimizer)
    rows = zip(states, grads, kinds, strict=True)
    averages = [get_average(state, grad, found_inf) if kind == EMA else None for state, grad, kind in rows]
    triton_adamw.step(params, grads, averages, groups, states, found_inf)


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton is there and its first step is right: without a C compiler, say, it cannot launch a kernel."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from research.kernels import triton_adamw

        works = triton_adamw.passes_self_test(device)
    except Exception as error:  # whatever a compiler and a driver may raise
        log.warning("Triton fails, Grokfast's step goes through torch and is slower: %s", str(error).partition("\n")[0])
        return False
    if not works:
        log.warning("Triton's numbers are wrong, Grokfast's step goes through torch and is slower")
    return works


@cache
def get_library() -> ctypes.CDLL | None:
    """The kernel of adamw.c, built if need be; None where that cannot be, which is told once."""
    try:
        c = ctypes.CDLL(str(build.build_cached(SOURCE, build.get_cache_folder())))
        c.grokbit_adamw.argtypes, c.grokbit_adamw.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int), None
    except build.BUILD_ERRORS as error:
        log.warning("no C kernel, Grokfast's step goes through torch and is slower: %s", error)
        return None
    return c


def step_on_cpu(c: ctypes.CDLL, optimizer: Optimizer, jobs: list[Job], states: list[ParamState]) -> None:
    """All rows of a step as adamw.c reads them, and the step."""
    groups = array("d", [value for group in optimizer.param_groups for value in get_kernel_settings(group)])
    at, rows = groups.buffer_info()[0], array("Q")
    for (group, place, kind, p, grad), state in zip(jobs, states, strict=True):
        memory = slot = full = 0
        if kind == EMA:
            memory = get_average(state, grad).data_ptr()
        elif kind == WINDOW:
            kind, slot, full = update_window(state, grad, group["window"])
            memory = state["grokfast_sum"].data_ptr()
        pointers = p.data_ptr(), grad.data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()
        rows.extend((*pointers, state["step"].data_ptr(), memory, slot, p.numel(), kind, full, at + 64 * place, 0))
    c.grokbit_adamw(rows.buffer_info()[0], len(jobs), torch.get_num_threads())


def update_window(state: ParamState, grad: Tensor, window: int) -> tuple[int, int, bool]:
    """The ring takes one more gradient: the kernel's filter, where the oldest gradient lies, whether the window is full.

    Once a turn the sum is made anew, here; all other times the kernel adds and takes away. So what one huge gradient
    rounds off the sum is missing until the turn ends, though that gradient is long gone.
    """
    if len(state.get("grokfast_ring", ())) != window:
        state["grokfast_ring"] = grad.new_zeros(window, *grad.shape)
        state["grokfast_sum"], state["grokfast_seen"] = torch.zeros_like(grad), 0
    ring, seen = state["grokfast_ring"], state["grokfast_seen"]
    state["grokfast_seen"] = seen + 1
    if seen % window == window - 1:
        ring[-1] = grad
        torch.sum(ring, dim=0, out=state["grokfast_sum"])
        return SUMMED, 0, True
    return WINDOW, ring.data_ptr() + 4 * grad.numel() * (seen % window), seen >= window
