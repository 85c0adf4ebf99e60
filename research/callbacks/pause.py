"""A callback that ends a run for now: population-based training compares its members at such steps."""

from research.contracts import contract
from research.ranges import PositiveInt, check_settings
from research.training.state import Callback, State


class Pause(Callback):
    """End the run after step `step`, evaluated and saved. Schedules still see all steps, so resuming changes nothing."""

    def __init__(self, step: PositiveInt) -> None:
        check_settings("callbacks.pause", Pause.__init__.__annotations__, locals())
        self.step = step

    def on_start(self, state: State) -> None:
        self._stop_if_due(state, state.progress.step)

    def on_gradients(self, state: State) -> None:
        self._stop_if_due(state, state.progress.step + 1)

    def _stop_if_due(self, state: State, done: int) -> None:
        if done >= self.step:
            state.stop = state.stop or describe_pause(self.step)  # a target that was reached is the reason to report


@contract
def describe_pause(step: int) -> str:
    """Return the reason to stop of a paused run, as it stands in summary.json."""
    return f"a pause at step {step}"
