"""Loops that take turns, so that each is compared with the others in the same second on the same core.

Each loop has its own thread, and one moves at a time: a round lets every loop do a few steps, in an order drawn anew, and
hands over between two steps. A step is measured in CPU time of its thread, which is steadier than wall time: with one
compute thread the whole step happens there, and the waiting for a busy core is left out.
"""

import random
import threading
import time
from collections.abc import Callable

import torch

Done = Callable[[], bool]  # to be called after each step; true once the loop is to end
WARM_UP = 5  # rounds that do not count: first calls, lazy state, caches


class Lane(threading.Thread):
    """One loop in its own thread, which moves only while `advance` waits for it."""

    def __init__(self, name: str, loop: Callable[[Done], None], steps: int) -> None:
        super().__init__(name=name, daemon=True)
        self.loop, self.steps, self.taken = loop, steps, 0
        self.go, self.rest = threading.Semaphore(0), threading.Semaphore(0)
        self.started, self.seconds, self.over, self.error = 0.0, 0.0, False, ""

    def run(self) -> None:
        self.go.acquire()
        torch.set_num_threads(1)  # each thread has its own setting
        try:
            self.loop(self.done)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        self.rest.release()

    def done(self) -> bool:
        """One more step; after `steps` of them the next loop has its turn."""
        self.taken += 1
        if self.taken % self.steps == 0:
            self.seconds = time.thread_time() - self.started
            self.rest.release()
            self.go.acquire()
            self.started = time.thread_time()
        return self.over

    def advance(self) -> float:
        """CPU seconds of the next `steps` steps."""
        self.go.release()
        self.rest.acquire()
        if self.error:
            raise RuntimeError(f"{self.name}: {self.error}")
        return self.seconds

    def end(self) -> None:
        self.over = True
        self.go.release()
        self.join()


def in_turn(loops: dict[str, Callable[[Done], None]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each loop in each round."""
    lanes = [Lane(name, loop, steps) for name, loop in loops.items()]
    for lane in lanes:
        lane.start()
        lane.advance()
    times: dict[str, list[float]] = {lane.name: [] for lane in lanes}
    for turn in range(WARM_UP + rounds):
        for lane in random.sample(lanes, len(lanes)):
            seconds = lane.advance()
            if turn >= WARM_UP:
                times[lane.name].append(seconds / steps)
    for lane in lanes:
        lane.end()
    return times
