"""Ends a run for now: population-based training looks at its members at such moments."""

from research.ranges import PositiveInt
from research.training.state import Callback, State


class Pause(Callback):
    """Step `step` is the last one; it is judged and saved. Schedules still see all steps: a run that goes on is the same."""

    def __init__(self, step: PositiveInt) -> None:
        self.step = step

    def on_start(self, state: State) -> None:
        self._stop_if_due(state, state.progress.step)

    def on_gradients(self, state: State) -> None:
        self._stop_if_due(state, state.progress.step + 1)

    def _stop_if_due(self, state: State, done: int) -> None:
        if done >= self.step:
            state.stop = state.stop or describe_pause(self.step)  # a run that has reached its aim says so


def describe_pause(step: int) -> str:
    """Why a paused run has ended."""
    return f"a pause at step {step}"
