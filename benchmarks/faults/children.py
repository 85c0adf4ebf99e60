"""Work in a process of its own that can be killed at any moment. Forked, so that it costs no start-up."""

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

TIMEOUT = 120.0  # seconds for a child to say something


class Child:
    """Runs `work(said)` in a fork, its prints dropped; `said` sends an object here."""

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
        """In the child: it ends here, whatever happens."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            work(lambda thing: pickle.dump(thing, pipe))
        except BaseException as error:
            pickle.dump(OSError(f"{type(error).__name__}: {error}"), pipe)
        os._exit(0)

    def receive(self) -> Any:
        """The next thing that it says. Raises EOFError once it is gone and has said all, TimeoutError after PATIENCE."""
        if not select.select([self.pipe], [], [], TIMEOUT)[0]:
            raise TimeoutError(f"the child said nothing for {TIMEOUT:.0f} s")
        try:
            return pickle.load(self.pipe)
        except pickle.UnpicklingError as error:  # killed while it spoke
            raise EOFError from error

    def receive_all(self) -> list[Any]:
        """All that it still had to say."""
        things = []
        try:
            while True:
                things.append(self.receive())
        except EOFError:
            return things

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
    """What the work gives, done in a fork. Raises OSError with the text of whatever it raised."""
    with Child(lambda said: said(work())) as child:
        try:
            found = child.receive()
        except EOFError:
            raise OSError("it died") from None
    if isinstance(found, OSError):
        raise found
    return found


def wait_for(condition: Callable[[], Any], seconds: float = TIMEOUT) -> Any:
    """What `found` gives once it is not empty. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while not (there := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.02)
    return there


def read_lines(path: Path) -> list[str]:
    """A file's lines; none where it is not there."""
    return path.read_text().splitlines() if path.exists() else []
