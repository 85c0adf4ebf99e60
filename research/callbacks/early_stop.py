"""A callback that ends a run when its metric has reached a target, or gets no better."""

import math
from typing import Any

from research.cli import format_count
from research.contracts import contract
from research.options.trigger import Trigger, is_better
from research.ranges import FiniteFloat, PositiveInt, check_settings
from research.training.state import Callback, State


class EarlyStop(Callback):
    """Stop when the monitored metric was at `target` or better in `hold` evaluations in a row.

    Or when it was not better than its best in `patience` evaluations in a row; NaN is never better.
    """

    def __init__(self, target: FiniteFloat | None = None, hold: PositiveInt = 1, patience: PositiveInt | None = None) -> None:
        check_settings("callbacks.early_stop", EarlyStop.__init__.__annotations__, locals())
        self.target, self.hold, self.hold_count = target, hold, 0
        self.patience, self.best, self.worse_count = patience, math.nan, 0

    def state_dict(self) -> dict[str, Any]:
        # The keys are frozen: saved runs have the first two, since 0.3 the others.
        return {"held": self.hold_count, "target": self.target, "best": self.best, "waited": self.worse_count}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hold_count = state["held"] if state["target"] == self.target else 0
        self.best, self.worse_count = state.get("best", math.nan), state.get("waited", 0)

    def on_start(self, state: State) -> None:
        self._stop_if_due(state)  # a resumed run may have reached its target in the last process

    def on_step(self, state: State) -> None:
        if (value := state.logged.get(state.info.monitor)) is None:
            return
        if self.target is not None:
            trigger = Trigger(metric=state.info.monitor, value=self.target)
            fires = trigger.fires(state.progress.step, state.logged, state.info.directions)
            self.hold_count = self.hold_count + 1 if fires else 0
        is_first = math.isnan(self.best) and not math.isnan(value)
        if is_first or is_better(state.info.monitor, value, self.best, state.info.directions):
            self.best, self.worse_count = value, 0
        else:
            self.worse_count += 1
        self._stop_if_due(state)

    def _stop_if_due(self, state: State) -> None:
        monitor = state.info.monitor
        if self.target is not None and self.hold_count >= self.hold:
            state.stop, state.resume_override = f"{monitor} reached {self.target:g}", "target=null"
        elif self.patience is not None and self.worse_count >= self.patience:
            count = format_count(self.worse_count, "evaluation")
            state.stop = f"{monitor} was not better than {self.best:.4g} in {count}"
            state.resume_override = "callbacks.early_stop.patience=null"
