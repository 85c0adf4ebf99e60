"""Ends a run after a given time."""

from research.ranges import PositiveFloat
from research.training.state import Callback, State


class TimeLimit(Callback):
    """The step under way after `seconds` of training in this process is the last; it is still judged."""

    def __init__(self, seconds: PositiveFloat | None = None) -> None:
        self.seconds = seconds

    def on_start(self, state: State) -> None:
        self.seconds_at_start = state.progress.seconds

    def on_gradients(self, state: State) -> None:
        if self.seconds is not None and state.progress.seconds - self.seconds_at_start >= self.seconds:
            state.stop = f"{self.seconds:g} s are over"
