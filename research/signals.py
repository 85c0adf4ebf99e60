"""Asked to end from outside: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 end a run at the next safe moment, its state saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(BaseException):
    """The run was asked to end. Not an Exception: no library on the way may take it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def get_exit_code(signum: int) -> int:
    """130 for Ctrl-C, 143 for the others, SIGUSR1 included: schedulers send it as an early SIGTERM."""
    return 130 if signum == signal.SIGINT else 143


class Watch:
    """Remembers the signal that came; `check` raises Stopped where it is safe to. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signum = 0
        self.deferred = True  # False: raise in the handler, for nothing could be lost and it may take long

    def receive(self, signum: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum, self.signum or signum
        if again and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.deferred and not again:
            raise Stopped(signum)

    def check(self) -> None:
        if self.signum:
            raise Stopped(self.signum)

    @contextmanager
    def raise_immediately(self, enabled: bool = True) -> Iterator[None]:
        """Inside, a signal ends what is under way instead of waiting for `check`."""
        before, self.deferred = self.deferred, self.deferred and not enabled
        try:
            if enabled:
                self.check()
            yield
        finally:
            self.deferred = before


_watches: list[Watch] = []


@contextmanager
def watch() -> Iterator[Watch]:
    """Take the signals while inside; within another watch it is the same one. Other threads cannot take signals."""
    if _watches or threading.current_thread() is not threading.main_thread():
        yield _watches[0] if _watches and threading.current_thread() is threading.main_thread() else Watch()
        return
    one = Watch()
    before = {signum: signal.signal(signum, one.receive) for signum in STOP_SIGNALS}
    _watches.append(one)
    try:
        yield one
    finally:
        _watches.clear()
        for signum, handler in before.items():
            signal.signal(signum, handler)
