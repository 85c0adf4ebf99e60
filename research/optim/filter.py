"""Filter gradients before the step of any torch optimizer class.

The filter's settings are in the parameter groups and its memory is in the state, so saving, scheduling and per-group values
work as for any optimizer. RMSprop, ASGD and AdEMAMix have an alpha of their own there: the filter's is grokfast_alpha.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from research.contracts import contract
from research.optim import fused
from research.optim.param_groups import promote, restore_promoted_state, run_closure
from research.optim.transform import GradientTransform
from research.options.trigger import NO_DIRECTIONS, Trigger, parse_trigger

log = logging.getLogger(__name__)
FilterState = dict[Tensor, dict[str, Any]]


class Filter(GradientTransform):
    """Filters the gradients, then steps. A subclass defines the filter in `amplify`.

    Half-precision gradients are filtered in float32. Sparse ones are made dense: the slow part moves every row.
    """

    prefix = "Grokfast"
    one_pass: ClassVar[str] = ""  # the filter's own setting, if fused.py has a kernel of filter and step
    directions: Mapping[str, bool] = NO_DIRECTIONS  # what the metrics of the run say; the trainer sets it
    has_warned = False  # that no evaluation reports a watched metric

    @property
    def supports_found_inf(self) -> bool:
        """Return whether a step changes nothing where `found_inf` is 1: the EMA must not change either."""
        return self.one_pass == "grokfast_alpha" and super().supports_found_inf

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> FilterState:
        """Add the slow part to the gradients in place; return the new state entries of each parameter."""
        raise TypeError(f"{type(self).__name__} has no filter")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = run_closure(closure)
        if fused.step(self):
            return loss
        norm, fresh = self.defaults.get("clip_norm"), FilterState()
        seen: list[tuple[Tensor, Tensor]] = []  # pairs of raw and filtered gradient
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            raw = [p.grad for p in params if p.grad is not None]
            dense = (grad.to_dense() if grad.is_sparse else grad for grad in raw)
            grads = list(map(promote, dense)) if norm or is_on(group) else raw
            seen += zip(raw, grads, strict=True)
            if params and is_on(group):
                fresh |= self.amplify(grads, params, group)
        if norm and seen:
            filtered = [grad for _, grad in seen]
            torch._foreach_mul_(filtered, (norm / (nn.utils.get_total_norm(filtered) + 1e-6)).clamp(max=1.0))
        for raw_grad, grad in seen:
            if grad is not raw_grad:
                raw_grad.copy_(grad.to_sparse(raw_grad.sparse_dim()) if raw_grad.is_sparse else grad)
        self.step_base()
        for p, memory in fresh.items():  # after the step: AdamW initialises its own state only if that is empty
            self.state[p].update(memory)
        return loss

    @contract
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_promoted_state(self, state_dict, ("grokfast_ema", "grokfast_ring", "grokfast_sum"))

    def watched_metrics(self) -> set[str]:
        """Return the metrics that switch filters on and off."""
        return {trigger.metric for group in self.param_groups for trigger in parse_triggers(group) if trigger} - {""}

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
                log.warning("the filter waits for %s, which no evaluation reports; there are: %s", metric, ", ".join(metrics))
        for group in self.param_groups:
            initial = init_trigger_state(group)
            if group.get("_heeds") != initial["_heeds"]:  # a resumed run has other triggers: begin anew with these
                group |= initial
            start, stop = parse_triggers(group)
            if start and not (group["_on"] or group["_over"]) and start.fires(step, metrics, self.directions):
                group["_on"] = True
            if group["_on"] and stop and stop.fires(step, metrics, self.directions):
                group["_on"], group["_over"] = False, True
            if not is_on(group):
                self.forget(group["params"])
            if group.get("adapt"):
                group["grokfast_alpha"] = group["alpha_built"] * math.exp(-group["adapt"] * measure_overfitting(metrics))

    def forget(self, params: list[Tensor]) -> None:
        """Free the filter's memory of these parameters."""
        for p in params:
            for key in [key for key in self.state.get(p, ()) if key.startswith("grokfast_")]:
                del self.state[p][key]


def parse_triggers(settings: Mapping[str, Any]) -> list[Trigger | None]:
    """Return when a filter starts (None: with the first step) and when it stops (None: never). Raise ValueError."""
    triggers = {f"optim.{key}": settings[key] for key in ("start_when", "stop_when")}
    return [None if trigger is None else parse_trigger(trigger, key) for key, trigger in triggers.items()]


def init_trigger_state(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's entries for its triggers at the start: `_on` now, `_over` for good, and the triggers themselves."""
    triggers = [settings["start_when"], settings["stop_when"]]
    return {"_on": triggers[0] is None, "_over": False, "_heeds": triggers}


def measure_overfitting(metrics: Mapping[str, float]) -> float:
    """Return GrokAdamW's signal (Hartford 2024), max(0, val - train) / max(val, train) of the losses; 0 if one is missing."""
    val, train = (metrics.get(f"{split}/loss", math.nan) for split in ("val", "train"))
    return max(0.0, val - train) / max(val, train) if math.isfinite(val + train) and max(val, train) > 0 else 0.0


def is_on(group: dict[str, Any]) -> bool:
    """Return whether a group's gradients are filtered now. With lamb = 0 they never are: the base class, bit for bit."""
    return bool(group["lamb"] and group["_on"])
