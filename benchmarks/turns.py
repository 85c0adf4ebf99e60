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

FinishStep = Callable[[], bool]  # to be called after each step; true once the loop is to end
WARM_UP = 5  # rounds that do not count: first calls, lazy state, caches


class Lane(threading.Thread):
    """One loop in its own thread, which moves only while `advance` waits for it."""

    def __init__(self, name: str, loop: Callable[[FinishStep], None], steps: int) -> None:
        super().__init__(name=name, daemon=True)
        self.loop, self.steps, self.num_steps = loop, steps, 0
        self.go_signal, self.rest_signal = threading.Semaphore(0), threading.Semaphore(0)
        self.start_time, self.seconds, self.stopping, self.error = 0.0, 0.0, False, ""

    def run(self) -> None:
        self.go_signal.acquire()
        torch.set_num_threads(1)  # each thread has its own setting
        try:
            self.loop(self.finish_step)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        self.rest_signal.release()

    def finish_step(self) -> bool:
        """One more step; after `steps` of them the next loop has its turn."""
        self.num_steps += 1
        if self.num_steps % self.steps == 0:
            self.seconds = time.thread_time() - self.start_time
            self.rest_signal.release()
            self.go_signal.acquire()
            self.start_time = time.thread_time()
        return self.stopping

    def advance(self) -> float:
        """CPU seconds of the next `steps` steps."""
        self.go_signal.release()
        self.rest_signal.acquire()
        if self.error:
            raise RuntimeError(f"{self.name}: {self.error}")
        return self.seconds

    def end(self) -> None:
        self.stopping = True
        self.go_signal.release()
        self.join()


def run_interleaved(loops: dict[str, Callable[[FinishStep], None]], steps: int, rounds: int) -> dict[str, list[float]]:
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
