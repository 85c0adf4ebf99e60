"""A filter of gradients: a mixin in front of any torch optimizer class.

What it makes is a real optimizer: the filter's settings stand in its parameter groups, its memory in its state, so saving,
scheduling and per-group values work as for any other.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research import processes
from research.callback import State
from research.optim import fused
from research.optim.plain import evaluated, wide, widen
from research.when import read_moment

log = logging.getLogger(__name__)
Memory = dict[Tensor, dict[str, Any]]
MADE: dict[tuple[type, type], type[Optimizer]] = {}  # by filter and base: two optimizers of one kind have one class


class Filter(Optimizer):
    """Filters p.grad in place, then steps. Stands before an optimizer class in the bases of `filtered`.

    Gradients in half precision are filtered in float32, and sparse ones whole: the slow part moves every row.
    """

    one_pass: ClassVar[str] = ""  # the kernel that does filter and step at once: fused.py
    found_inf: Tensor | None = None  # 1: leave this update out
    warned = False  # of metrics that no evaluation tells
    _step_supports_amp_scaling = False  # a fused base would hand us scaled gradients: let the scaler unscale first

    @property
    def heeds_found_inf(self) -> bool:
        """Whether a step leaves the weights alone where `found_inf` is 1: a fused base does, and the average with it."""
        return self.one_pass == "ema" and all(group.get("fused") for group in self.param_groups)

    def __reduce__(self) -> Any:
        """The class is made, not written down: pickle is told what of."""
        filter_class, base = type(self).__bases__
        return _blank, (filter_class, base), self.__getstate__()

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> Memory:
        """Add the slow part to the gradients in place; return what is new in the memory of each parameter."""
        raise TypeError(f"{type(self).__name__} has no filter")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        if fused.step(self):
            return loss
        norm, fresh = self.defaults.get("clip_norm"), Memory()
        seen: list[tuple[Tensor, Tensor]] = []  # each gradient, and as it is filtered
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            raw = [p.grad for p in params if p.grad is not None]
            grads = [widened(grad) for grad in raw] if norm or is_on(group) else raw
            seen += zip(raw, grads, strict=True)
            if params and is_on(group):
                fresh |= self.amplify(grads, params, group)
        if norm:
            clip([grad for _, grad in seen], norm)
        for given, grad in seen:
            if grad is not given:
                given.copy_(grad.to_sparse(given.sparse_dim()) if given.is_sparse else grad)
        unhooked(super().step)(self)
        for p, memory in fresh.items():  # only now: AdamW sets up its own state only where there is none
            self.state[p].update(memory)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        widen(self, state_dict, ("grokfast_ema", "grokfast_ring", "grokfast_sum"))

    def awaited(self) -> set[str]:
        """The metrics that turn filters on and off."""
        given = [(key, group[key]) for group in self.param_groups for key in ("start_when", "stop_when")]
        return {read_moment(value, f"optim.{key}").metric for key, value in given if value is not None} - {""}

    def heed(self, step: int, metrics: dict[str, float] | None) -> None:
        """Before a step: turn filters on and off where their moment has come, and adapt alpha; None: no news of metrics."""
        for group in self.param_groups:
            moments = [group["start_when"], group["stop_when"]]
            if group["_heeds"] != moments:  # they were changed where the run was resumed: as if it began with these
                group |= phase(*moments)
            start, stop = (value and read_moment(value, "optim.start_when") for value in moments)
            waits = not (group["_on"] or group["_over"])
            if waits and start and start.has_come(step, metrics or {}):
                group["_on"] = True
            if group["_on"] and stop and stop.has_come(step, metrics or {}):
                group["_on"], group["_over"] = False, True
            if not group["_on"]:
                self.forget(group["params"])
            if group.get("adapt") and metrics is not None:
                group["alpha"] = group["alpha_built"] * math.exp(-group["adapt"] * overfitting(metrics))

    def forget(self, params: list[Tensor]) -> None:
        """Give back the filter's memory of these parameters."""
        for p in params:
            for key in [key for key in self.state.get(p, ()) if key.startswith("grokfast_")]:
                del self.state[p][key]


def phase(start_when: int | str | None, stop_when: int | str | None) -> dict[str, Any]:
    """What a group keeps of its filter's moments at the beginning."""
    return {"_on": start_when is None, "_over": False, "_heeds": [start_when, stop_when]}


def overfitting(metrics: dict[str, float]) -> float:
    """GrokAdamW's signal (Hartford 2024) of the two losses, in [0, 1]: max(0, val - train) / max(val, train); 0 without one."""
    val, train = (metrics.get(f"{split}/loss", math.nan) for split in ("val", "train"))
    return max(0.0, val - train) / max(val, train) if math.isfinite(val + train) and max(val, train) > 0 else 0.0


def clip(grads: list[Tensor], norm: float) -> None:
    """Scale gradients in place, so that the norm of all of them together is at most `norm`."""
    total = nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, (norm / (total + 1e-6)).clamp(max=1.0))


def is_on(group: dict[str, Any]) -> bool:
    """Whether the gradients of a group are filtered now; lamb = 0 is the base class: same bits, no memory."""
    return bool(group["lamb"] and group["_on"])


def widened(grad: Tensor) -> Tensor:
    """A gradient as the filter sees it: dense, and float32 at least; itself where it is that."""
    dense = grad.to_dense() if grad.is_sparse else grad
    return dense.to(wide(dense.dtype))


def heed(optimizer: Optimizer, state: State) -> None:
    """Tell a filter how far the run is. What its metrics were at the last log point is what the first process saw."""
    if isinstance(optimizer, Filter):
        if "val/loss" in state.logged and not optimizer.warned:
            optimizer.warned = True
            for metric in optimizer.awaited() - set(state.metrics):
                log.warning(
                    "the filter waits for %s, which no evaluation told; there are: %s", metric, ", ".join(state.metrics)
                )
        asks = optimizer.awaited() or optimizer.defaults.get("adapt")
        news = bool(state.logged) or state.step == state.first
        optimizer.heed(state.step, processes.everywhere(state.metrics) if asks and news else None)


def unhooked(step: Any) -> Callable[[Optimizer], Any]:
    """The base's own step: torch wraps a class's step in hooks once a plain object of it was made, and ours has its own."""
    function = step.__func__
    return function.__wrapped__ if getattr(function, "hooked", False) else function  # type: ignore[no-any-return]


def filtered(filter_class: type[Filter], base: type[Optimizer]) -> type[Optimizer]:
    """`base` with the filter in front, as a class of its own, made once: GrokfastAdamW."""
    bases = filter_class, base
    if bases not in MADE:
        MADE[bases] = type(f"Grokfast{base.__name__}", bases, {})
    return MADE[bases]


def _blank(filter_class: type[Filter], base: type[Optimizer]) -> Optimizer:
    """One that pickle fills."""
    kind = filtered(filter_class, base)
    return kind.__new__(kind)
