"""Work in a process of its own that can be killed at any moment. The process is a fork, so it has no start-up time."""

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

FORK = multiprocessing.get_context("fork")
TIMEOUT = 120.0  # seconds without a message from a child


class Child:
    """Run `work(send)` in a fork and drop what it prints; `send` sends an object to this process."""

    def __init__(self, work: Callable[[Callable[[Any], None]], None]) -> None:
        self.pipe, child_pipe = FORK.Pipe(duplex=False)

        def run() -> None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            try:
                work(child_pipe.send)
            except BaseException as error:
                child_pipe.send(OSError(f"{type(error).__name__}: {error}"))
            os._exit(0)

        self.process = FORK.Process(target=run)
        self.process.start()
        child_pipe.close()  # so that `recv` raises EOFError once the child has ended

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
        with suppress(EOFError):
            while True:
                messages.append(self.receive())
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
