"""A callback that ends a run after some seconds."""

from research.ranges import PositiveFloat, check_settings
from research.training.state import TIME_LIMIT, Callback, State


class TimeLimit(Callback):
    """End the run after `seconds` of training in this process; the step under way is completed and evaluated."""

    def __init__(self, seconds: PositiveFloat | None = None) -> None:
        check_settings("callbacks.time_limit", TimeLimit.__init__.__annotations__, locals())
        self.seconds = seconds

    def on_start(self, state: State) -> None:
        self.seconds_at_start = state.progress.seconds

    def on_gradients(self, state: State) -> None:
        if self.seconds is not None and state.progress.seconds - self.seconds_at_start >= self.seconds:
            state.stop = f"{TIME_LIMIT} of {self.seconds:g} s was reached"
            state.resume_override = "callbacks.time_limit.seconds=null"
