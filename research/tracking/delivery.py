"""A background thread that carries metrics to a store in batches: a training step never waits for a database."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from research.cli import first_line

log = logging.getLogger(__name__)
BATCH_SIZE, BATCH_INTERVAL = 1000, 2.0  # points in one call (MLflow's limit), seconds between calls
FINISH_TIMEOUT = 60.0  # seconds that the end of a run waits for a store that does not answer


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    timestamp: int  # ms since 1970
    step: int


class Delivery:
    """Call `open_run` once, `log_points` for each batch and `close_run` at the end, all in one thread of its own.

    A call that raises is repeated until it works, so each of them must be safe to repeat.
    """

    def __init__(
        self,
        open_run: Callable[[], None],
        log_points: Callable[[Sequence[Point]], None],
        close_run: Callable[[], None],
    ) -> None:
        self.open_run, self.log_points, self.close_run = open_run, log_points, close_run
        self.queue: queue.SimpleQueue[list[Point] | None] = queue.SimpleQueue()  # None marks the end
        self.thread = threading.Thread(target=self._deliver, name="mlflow", daemon=True)
        self.deadline, self.error = float("inf"), ""

    def start(self) -> None:
        self.thread.start()

    @property
    def started(self) -> bool:
        return self.thread.ident is not None

    def put(self, step: int, metrics: dict[str, float]) -> None:
        """Queue the metrics of a step; return at once."""
        timestamp = int(time.time() * 1000)
        self.queue.put([Point(key, value, timestamp, step) for key, value in metrics.items()])

    def finish(self) -> str:
        """Wait for the rest to be delivered, at most FINISH_TIMEOUT. Return why it was not, or an empty text."""
        self.deadline = time.monotonic() + FINISH_TIMEOUT
        self.queue.put(None)
        # A call that is under way at the deadline has some seconds to return.
        self.thread.join(FINISH_TIMEOUT + 5)
        return self.error or ("no answer" if self.thread.is_alive() else "")

    # What follows runs in the thread.

    def _deliver(self) -> None:
        try:
            self._retry_until_done(self.open_run)
            for batch in self._iter_batches():
                self._retry_until_done(partial(self.log_points, batch))
            self._retry_until_done(self.close_run)
        except TimeoutError as error:
            self.error = str(error)

    def _retry_until_done(self, action: Callable[[], Any]) -> None:
        """Repeat a call until it works. Raise TimeoutError when it fails after the deadline, which `finish` sets."""
        pause = 0.2
        while True:
            try:
                action()
                return
            except Exception as error:  # stores raise errors of many kinds, and none of them may end the training
                log.warning("MLflow: %s", error)
                if time.monotonic() > self.deadline:
                    raise TimeoutError(first_line(error)) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _iter_batches(self) -> Iterator[list[Point]]:
        """Yield the queued points in batches, one each BATCH_INTERVAL or as soon as one is full, until the end mark."""
        ended = False
        points: list[Point] = []
        while not ended or points:
            deadline = time.monotonic() + BATCH_INTERVAL
            while not ended and len(points) < BATCH_SIZE and (wait := deadline - time.monotonic()) > 0:
                try:
                    queued = self.queue.get(timeout=wait)
                except queue.Empty:
                    break
                ended = queued is None
                points += queued or []
            if points:
                yield points[:BATCH_SIZE]
                points = points[BATCH_SIZE:]
