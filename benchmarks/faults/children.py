"""Work in a process of its own that can be killed at any moment. The process is a fork, so it has no start-up time."""

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

TIMEOUT = 120.0  # seconds without a message from a child


class Child:
    """Run `work(send)` in a fork and drop what it prints; `send` sends an object to this process."""

    def __init__(self, work: Callable[[Callable[[Any], None]], None]) -> None:
        reads, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run_child(work, os.fdopen(writes, "wb", buffering=0))
        os.close(writes)
        self.pipe = os.fdopen(reads, "rb")
        self.exit_status: int | None = None

    @staticmethod
    def _run_child(work: Callable[[Callable[[Any], None]], None], pipe: BinaryIO) -> None:
        """Do the work in the child, then end the child, whatever happens."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            work(lambda message: pickle.dump(message, pipe))
        except BaseException as error:
            pickle.dump(OSError(f"{type(error).__name__}: {error}"), pipe)
        os._exit(0)

    def receive(self) -> Any:
        """Return the next object. Raise EOFError after the last one, TimeoutError after TIMEOUT seconds without one."""
        if not select.select([self.pipe], [], [], TIMEOUT)[0]:
            raise TimeoutError(f"the child sent nothing for {TIMEOUT:.0f} s")
        try:
            return pickle.load(self.pipe)
        except pickle.UnpicklingError as error:  # killed while it sent
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
        if self.exit_status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.exit_status = os.waitpid(self.pid, 0)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self.pipe.close()


def run_in_child(work: Callable[[], Any]) -> Any:
    """Do the work in a fork and return its result. Raise OSError with the text of whatever error it raised."""
    with Child(lambda send: send(work())) as child:
        try:
            result = child.receive()
        except EOFError:
            raise OSError("the child died") from None
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
