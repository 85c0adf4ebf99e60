"""Ends a run for now: population-based training looks at its members at such moments."""

from research.callback import Callback, State
from research.ranges import Count


class Pause(Callback):
    """Step `step` is the last one; it is judged and saved. Schedules still see all steps: a run that goes on is the same."""

    def __init__(self, step: Count) -> None:
        self.step = step

    def on_start(self, state: State) -> None:
        self._judge(state, state.step)

    def on_gradients(self, state: State) -> None:
        self._judge(state, state.step + 1)

    def _judge(self, state: State, done: int) -> None:
        if done >= self.step:
            state.stop = state.stop or reason(self.step)  # a run that has reached its aim says so


def reason(step: int) -> str:
    """Why a paused run has ended."""
    return f"a pause at step {step}"
