"""A background thread that carries metrics to a store in batches: a training step never waits for a database."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from research.cli import first_line

log = logging.getLogger(__name__)
BATCH_SIZE, BATCH_INTERVAL = 1000, 2.0  # points in one call (MLflow's limit), seconds between deliveries
FINISH_TIMEOUT = 60.0  # seconds that the end of a run waits for a store that does not answer


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    timestamp: int  # ms since 1970
    step: int


class Delivery(threading.Thread):
    """Call `open_run` once, `log_points` for each batch and `close_run` at the end, all in this thread.

    A call that raises is repeated until it works, so each of them must be safe to repeat.
    """

    def __init__(
        self, open_run: Callable[[], None], log_points: Callable[[Sequence[Point]], None], close_run: Callable[[], None]
    ) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.open_run, self.log_points, self.close_run = open_run, log_points, close_run
        self.points: deque[Point] = deque()
        self.finishing, self.deadline, self.error = threading.Event(), float("inf"), ""

    def put(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step; return at once."""
        timestamp = int(time.time() * 1000)
        self.points.extend(Point(key, value, timestamp, step) for key, value in metrics.items())

    def finish(self) -> str:
        """Wait for the rest to be delivered, at most FINISH_TIMEOUT. Return why it was not, or an empty text."""
        self.deadline = time.monotonic() + FINISH_TIMEOUT
        self.finishing.set()
        self.join(FINISH_TIMEOUT + 5)  # a call that is under way at the deadline has some seconds to return
        return self.error or ("no answer" if self.is_alive() else "")

    def run(self) -> None:
        """Deliver every BATCH_INTERVAL, and once more when `finish` is called. This is what runs in the thread."""
        try:
            self._retry_until_done(self.open_run)
            is_last = False
            while not is_last:
                is_last = self.finishing.wait(BATCH_INTERVAL)
                while batch := [self.points.popleft() for _ in range(min(BATCH_SIZE, len(self.points)))]:
                    self._retry_until_done(partial(self.log_points, batch))
            self._retry_until_done(self.close_run)
        except TimeoutError as error:
            self.error = str(error)

    def _retry_until_done(self, action: Callable[[], None]) -> None:
        """Repeat a call until it works. Raise TimeoutError when it fails after the deadline, which `finish` sets."""
        pause = 0.2
        while True:
            try:
                return action()
            except Exception as error:  # stores raise errors of many kinds, and none of them may end the training
                log.warning("MLflow: %s", error)
                if time.monotonic() > self.deadline:
                    raise TimeoutError(first_line(error)) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
