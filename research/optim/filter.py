"""A filter of gradients in front of any torch optimizer class.

The filter's settings stand in the parameter groups, its memory in the state, so saving, scheduling and per-group values work
as for any optimizer. RMSprop, ASGD and AdEMAMix have an alpha of their own there: the filter's is grokfast_alpha.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from research.optim import fused
from research.optim.param_groups import promote_dtype, restore_promoted_state, run_closure
from research.optim.transform import GradientTransform
from research.trigger import parse_trigger

log = logging.getLogger(__name__)
FilterState = dict[Tensor, dict[str, Any]]


class Filter(GradientTransform):
    """Filters the gradients, then steps.

    Gradients in half precision are filtered in float32, and sparse ones whole: the slow part moves every row.
    """

    prefix = "Grokfast"
    one_pass: ClassVar[str] = ""  # the kernel that does filter and step at once: fused.py
    has_warned = False  # of metrics that no evaluation tells

    @property
    def supports_found_inf(self) -> bool:
        """Whether a step leaves the weights alone where `found_inf` is 1: a fused base does, and the average with it."""
        return self.one_pass == "ema" and super().supports_found_inf

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> FilterState:
        """Add the slow part to the gradients in place; return what is new in the memory of each parameter."""
        raise TypeError(f"{type(self).__name__} has no filter")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = run_closure(closure)
        if fused.step(self):
            return loss
        norm, fresh = self.defaults.get("clip_norm"), FilterState()
        seen: list[tuple[Tensor, Tensor]] = []  # each gradient, and as it is filtered
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            raw = [p.grad for p in params if p.grad is not None]
            grads = [promote_gradient(grad) for grad in raw] if norm or is_on(group) else raw
            seen += zip(raw, grads, strict=True)
            if params and is_on(group):
                fresh |= self.amplify(grads, params, group)
        if norm and seen:
            clip_gradients([grad for _, grad in seen], norm)
        for given, grad in seen:
            if grad is not given:
                given.copy_(grad.to_sparse(given.sparse_dim()) if given.is_sparse else grad)
        self.step_base()
        for p, memory in fresh.items():  # only now: AdamW sets up its own state only where there is none
            self.state[p].update(memory)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_promoted_state(self, state_dict, ("grokfast_ema", "grokfast_ring", "grokfast_sum"))

    def watched_metrics(self) -> set[str]:
        """The metrics that turn filters on and off."""
        given = [(key, group[key]) for group in self.param_groups for key in ("start_when", "stop_when")]
        return {parse_trigger(value, f"optim.{key}").metric for key, value in given if value is not None} - {""}

    def needs_metrics(self) -> bool:
        """Return whether `on_step_begin` looks at metrics."""
        return bool(self.watched_metrics() or self.defaults.get("adapt"))

    def on_step_begin(self, step: int, metrics: Mapping[str, float]) -> None:
        """Turn filters on and off where their trigger fires, and adapt alpha, by the newest metrics.

        Called before every step, with the same metrics in all processes.
        """
        if "val/loss" in metrics and not self.has_warned:
            self.has_warned = True
            for metric in self.watched_metrics() - set(metrics):
                log.warning("the filter waits for %s, which no evaluation told; there are: %s", metric, ", ".join(metrics))
        for group in self.param_groups:
            moments = [group["start_when"], group["stop_when"]]
            if group.get("_heeds") != moments:  # they were changed where the run was resumed: as if it began with these
                group |= init_trigger_state(*moments)
            start, stop = (None if value is None else parse_trigger(value, "a filter's moment") for value in moments)
            waits = not (group["_on"] or group["_over"])
            if waits and start and start.fires(step, metrics):
                group["_on"] = True
            if group["_on"] and stop and stop.fires(step, metrics):
                group["_on"], group["_over"] = False, True
            if not is_on(group):
                self.forget(group["params"])
            if group.get("adapt"):
                group["grokfast_alpha"] = group["alpha_built"] * math.exp(-group["adapt"] * measure_overfitting(metrics))

    def forget(self, params: list[Tensor]) -> None:
        """Give back the filter's memory of these parameters."""
        for p in params:
            for key in [key for key in self.state.get(p, ()) if key.startswith("grokfast_")]:
                del self.state[p][key]


def init_trigger_state(start_when: int | str | None, stop_when: int | str | None) -> dict[str, Any]:
    """What a group keeps of its filter's moments at the beginning."""
    return {"_on": start_when is None, "_over": False, "_heeds": [start_when, stop_when]}


def measure_overfitting(metrics: Mapping[str, float]) -> float:
    """GrokAdamW's signal (Hartford 2024) of the two losses, in [0, 1]: max(0, val - train) / max(val, train); 0 without one."""
    val, train = (metrics.get(f"{split}/loss", math.nan) for split in ("val", "train"))
    return max(0.0, val - train) / max(val, train) if math.isfinite(val + train) and max(val, train) > 0 else 0.0


def clip_gradients(grads: list[Tensor], norm: float) -> None:
    """Scale gradients in place, so that the norm of all of them together is at most `norm`."""
    total = nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, (norm / (total + 1e-6)).clamp(max=1.0))


def is_on(group: dict[str, Any]) -> bool:
    """Whether the gradients of a group are filtered now; lamb = 0 is the base class: same bits, no memory."""
    return bool(group["lamb"] and group["_on"])


def promote_gradient(grad: Tensor) -> Tensor:
    """A gradient as the filter sees it: dense, and float32 at least; itself where it is that."""
    dense = grad.to_dense() if grad.is_sparse else grad
    return dense.to(promote_dtype(dense.dtype))
