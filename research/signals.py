"""SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGHUP end a run at the next safe point, with its state saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """A signal ends the run. Not an Exception, so no library on the way takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def get_exit_code(signum: int) -> int:
    """Return 130 for Ctrl-C, 129 for a closed terminal, 143 for the others: schedulers send SIGUSR1 as an early SIGTERM."""
    return 128 + signum if signum in (signal.SIGINT, signal.SIGHUP) else 143


class Watch:
    """Remembers the first signal; `check` raises Stopped for it. A second Ctrl-C raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.signum = 0
        self.count = 0  # of the signals that came
        self.deferred = True  # False: raise in the handler

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal. Python calls this in the main thread."""
        again, self.signum = self.signum, self.signum or signum
        self.count += 1
        if again and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.deferred and not again:
            raise Stopped(signum)

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.signum:
            raise Stopped(self.signum)

    @contextmanager
    def raise_immediately(self, enabled: bool = True) -> Iterator[None]:
        """Inside, a signal raises Stopped at once: for long work in which nothing can be lost."""
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
    """Handle the stop signals inside the block. A nested block gets the outer one's Watch.

    Outside the main thread, where Python delivers no signals, the Watch never sees any. Nor does it see a SIGHUP that
    nohup has told this process to ignore.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if _watches or not in_main_thread:
        yield _watches[0] if _watches and in_main_thread else Watch()
        return
    new = Watch()
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    handlers = {signum: signal.signal(signum, new.receive) for signum in STOP_SIGNALS if signum not in ignored}
    _watches.append(new)
    try:
        yield new
    finally:
        _watches.clear()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
