"""Training loops that own their control flow, stopped and resumed between two steps, so that they can run in turn.

Each loop has its own thread, and one thread moves at a time. Steps are measured in CPU time of the thread. With one
compute thread the whole step happens there, and waiting for a busy core does not count.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

FinishStep = Callable[[], bool]  # a loop calls it after each step; true tells the loop to end
Loop = Callable[[FinishStep], None]


class Lane(threading.Thread):
    """One loop in its own thread, which moves only while `advance` waits for it."""

    def __init__(self, name: str, loop: Loop, steps: int) -> None:
        super().__init__(name=name, daemon=True)
        self.loop, self.steps, self.num_steps = loop, steps, 0
        self.go_signal, self.rest_signal = threading.Semaphore(0), threading.Semaphore(0)
        self.start_time, self.seconds, self.stopping, self.error = 0.0, 0.0, False, ""

    def run(self) -> None:
        self.go_signal.acquire()
        torch.set_num_threads(1)  # a setting of each thread
        try:
            self.loop(self.finish_step)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        self.rest_signal.release()

    def finish_step(self) -> bool:
        """Count a step; after `steps` of them wait for the next `advance`. Return true once the loop has to end."""
        self.num_steps += 1
        if self.num_steps % self.steps == 0:
            self.seconds = time.thread_time() - self.start_time
            self.rest_signal.release()
            self.go_signal.acquire()
            self.start_time = time.thread_time()
        return self.stopping

    def advance(self) -> float:
        """Let the loop do `steps` steps; return CPU seconds a step. Raise RuntimeError with the loop's own error."""
        self.go_signal.release()
        self.rest_signal.acquire()
        if self.error:
            raise RuntimeError(f"{self.name}: {self.error}")
        return self.seconds / self.steps

    def end(self) -> None:
        self.stopping = True
        self.go_signal.release()
        self.join()


@contextmanager
def start_lanes(loops: Mapping[str, Loop], steps: int) -> Iterator[dict[str, Callable[[], float]]]:
    """Start all loops; yield an arm for each, which does `steps` steps. End the loops afterwards."""
    lanes = [Lane(name, loop, steps) for name, loop in loops.items()]
    for lane in lanes:
        lane.start()
        lane.advance()
    yield {lane.name: lane.advance for lane in lanes}
    for lane in lanes:
        lane.end()
