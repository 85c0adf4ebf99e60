"""A callback that ends a run when its metric has reached a target."""

from typing import Any

from research.ranges import FiniteFloat, PositiveInt, check_settings
from research.training.state import Callback, State
from research.trigger import Trigger


class EarlyStop(Callback):
    """Stop when the monitored metric was at `target` or better in `hold` evaluations in a row."""

    def __init__(self, target: FiniteFloat | None = None, hold: PositiveInt = 1) -> None:
        check_settings("callbacks.early_stop", EarlyStop.__init__.__annotations__, locals())
        self.target, self.hold, self.hold_count = target, hold, 0

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.hold_count, "target": self.target}  # the keys are frozen: saved runs have them

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hold_count = state["held"] if state["target"] == self.target else 0

    def on_start(self, state: State) -> None:
        self._stop_if_reached(state)  # a resumed run may have reached its target in the last process

    def on_step(self, state: State) -> None:
        if self.target is not None and state.info.monitor in state.logged:
            trigger = Trigger(metric=state.info.monitor, value=self.target)
            self.hold_count = (
                self.hold_count + 1 if trigger.fires(state.progress.step, state.logged, state.info.directions) else 0
            )
            self._stop_if_reached(state)

    def _stop_if_reached(self, state: State) -> None:
        if self.target is not None and self.hold_count >= self.hold:
            state.stop, state.resume_override = f"{state.info.monitor} reached {self.target:g}", "target=null"
