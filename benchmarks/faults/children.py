"""Work in a process of its own that can be killed at any moment. The process is a fork, so it has no start-up time."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

FORK = multiprocessing.get_context("fork")
TIMEOUT = 120.0  # seconds without a message from a child
Work = Callable[[Callable[[Any], None]], None]


class Child:
    """Run `work(send)` in a fork and drop what it prints; `send` sends an object to this process."""

    def __init__(self, work: Work) -> None:
        self.pipe, child_pipe = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._run_child, args=(work, child_pipe))
        self.process.start()
        child_pipe.close()  # so that `recv` raises EOFError once the child has ended

    @staticmethod
    def _run_child(work: Work, pipe: Any) -> None:
        """Do the work in the child, then end the child, whatever happens."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            work(pipe.send)
        except BaseException as error:
            pipe.send(OSError(f"{type(error).__name__}: {error}"))
        os._exit(0)

    def receive(self) -> Any:
        """Return the next object. Raise EOFError after the last one, TimeoutError after TIMEOUT seconds without one."""
        if not self.pipe.poll(TIMEOUT):
            raise TimeoutError(f"the child sent nothing for {TIMEOUT:.0f} s")
        try:
            return self.pipe.recv()
        except OSError as error:  # killed while it sent
            raise EOFError from error

    def receive_all(self) -> list[Any]:
        """Return all objects that are still to come."""
        messages = []
        try:
            while True:
                messages.append(self.receive())
        except EOFError:
            return messages

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.pipe.close()


def run_in_child(work: Callable[[], Any]) -> Any:
    """Do the work in a fork and return its result. Raise OSError with the text of whatever error it raised."""
    with Child(lambda send: send(work())) as child:
        result = next(iter(child.receive_all()), OSError("the child died"))
    if isinstance(result, OSError):
        raise result
    return result


def wait_for(condition: Callable[[], Any], seconds: float = TIMEOUT) -> Any:
    """Return the first true value of `condition`. Raise TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition was not true within {seconds:.0f} s")
        time.sleep(0.02)
    return value


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file; none if it does not exist."""
    return path.read_text().splitlines() if path.exists() else []
