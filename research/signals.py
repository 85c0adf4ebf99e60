"""How this process was started and how it is ended: the launcher's variables, and signals.

SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGHUP end a run at the next safe point, with its state saved.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from research.contracts import contract

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

MAX_CAUSES = 10  # of an exit that are looked at: errors may name each other


class Stopped(BaseException):
    """A signal ends the run. Not an Exception, so no library on the way takes it for a failure."""

    @contract
    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contract
def get_exit_code(signum: int) -> int:
    """Return 130 for Ctrl-C, 129 for a closed terminal, 143 for the others: schedulers send SIGUSR1 as an early SIGTERM."""
    return 128 + signum if signum in (signal.SIGINT, signal.SIGHUP) else 143


@contract
def get_signum(error: BaseException | None) -> int:
    """Return the signal that a process ends by, from the exception that ends it; 0 for any other."""
    codes = {get_exit_code(signum): signum for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)}
    signum = 0
    for _ in range(MAX_CAUSES):
        if not isinstance(error, SystemExit):
            break
        signum = codes.get(error.code, 0) or signum if isinstance(error.code, int) else signum
        error = error.__cause__
    if isinstance(error, Stopped):
        return error.signum
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else signum


class Watch:
    """Remembers the first signal; `check` raises Stopped for it. A second Ctrl-C raises KeyboardInterrupt at once."""

    @contract
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


def find_program() -> str:
    """Return train.py as a command names it from the working folder: by its path, where that is not the clone."""
    program = Path(__file__).resolve().parents[1] / "train.py"
    return program.name if Path(program.name).resolve() == program else str(program)


def get_launched_ranks() -> tuple[int, int]:
    """Return rank and number of processes from the launcher's environment, before they know each other.

    A variable that is set to nothing is removed: it means the default, and torch and accelerate cannot read it.
    Raise ValueError for a number of processes below 1, or for what is no number.
    """
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        if not os.environ.get(name, "").strip():
            os.environ.pop(name, None)
        elif not re.fullmatch("[1-9][0-9]*" if "WORLD" in name else "[0-9]+", text := os.environ[name]):
            raise ValueError(f"{name}={text} is no number of a launcher's\nunset {name}, or start it by torchrun")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ.get("RANK", 0)) if world_size > 1 else 0, world_size


def check_environment() -> None:
    """Raise ValueError for variables of a launcher that are not complete, and for threads that OpenMP cannot have.

    An empty OMP_NUM_THREADS is removed.
    """
    launcher = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    if (local := os.environ.get("LOCAL_RANK")) and (missing := [name for name in launcher if not os.environ.get(name)]):
        raise ValueError(f"LOCAL_RANK={local} without {', '.join(missing)}\nunset LOCAL_RANK, or start it by torchrun")
    threads = os.environ.get("OMP_NUM_THREADS", "1").strip()
    if not threads:
        del os.environ["OMP_NUM_THREADS"]
    elif not re.fullmatch(r"[1-9][0-9]{0,4}(\s*,\s*[1-9][0-9]{0,4})*", threads):
        raise ValueError(f"OMP_NUM_THREADS={threads} is no number of threads\nunset it, or give a whole number above 0")
