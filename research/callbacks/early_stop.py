"""Ends a run that has reached its aim."""

from typing import Any

from research.callback import Callback, State
from research.metrics import better
from research.ranges import Count


class EarlyStop(Callback):
    """Stop once the monitored metric has been at `target` or better in `hold` evaluations in a row."""

    def __init__(self, target: float | None = None, hold: Count = 1) -> None:
        self.target, self.hold, self.held = target, hold, 0

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state["held"]

    def on_step(self, state: State) -> None:
        value = state.logged.get(state.monitor)
        if self.target is None or value is None:
            return
        self.held = 0 if better(state.monitor, self.target, value) else self.held + 1
        if self.held >= self.hold:
            state.stop = f"{state.monitor} reached {self.target:g}"
