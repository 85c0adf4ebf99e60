"""Which trial comes next, and whose: leases tell trials that run from those whose process has died.

A lease is written right after `ask` and renewed by a thread. A dead trial keeps its number, so its folder, its checkpoint
and its MLflow run: another process takes it over and goes on where it stopped.
"""

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

LEASE, TRIES, EXCLUDED = "lease", "tries", "aside"  # a trial's attributes
TAKEOVER_WAIT = 1.0  # seconds in which two that take over the same trial find out
LEASE_GRACE = 10.0  # seconds that a trial may be without a lease: its process writes one at once, or has died


class Queue:
    """The trials of one study, as one process of it sees them."""

    def __init__(self, study: Study, folder: Path, total: int, lease: float, max_retries: int) -> None:
        self.study, self.folder, self.total, self.lease, self.max_retries = study, folder, total, lease, max_retries
        self.held_trials, self.token, self.host = dict[int, int](), uuid.uuid4().hex[:12], socket.gethostname()
        self.stop_event = threading.Event()
        self.lock_file = self._open_lock_file()
        self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.thread.start()

    def take_next(self) -> tuple[Trial | None, bool]:
        """A trial to run, if there is one, and whether there may be one later: while others run, one of them may die."""
        with self.lock_folder():
            for each in self.list_running():
                if each._trial_id not in self.held_trials and self.is_dead(each):
                    if each.user_attrs.get(TRIES, 1) > self.max_retries:
                        self.study._storage.set_trial_user_attr(each._trial_id, "error", "its process died, again and again")
                        self.study.tell(each.number, state=TrialState.FAIL, skip_if_finished=True)
                    elif self._take_over(each):
                        return Trial(self.study, each._trial_id), True
            if self.count_used(self.study.get_trials(deepcopy=False)) < self.total:
                trial = self.study.ask()
                self._hold(trial._trial_id, trial.number, 1)
                if not self._exclude_if_surplus(trial):
                    return trial, True
            return None, bool(self.list_running())

    def list_running(self) -> list[FrozenTrial]:
        """Trials that some process has begun and none has ended."""
        return [each for each in self.study.get_trials(deepcopy=False) if each.state == TrialState.RUNNING]

    def count_used(self, trials: list[FrozenTrial]) -> int:
        """Trials that have used up a place: all but those waiting, and those put aside."""
        return sum(each.state != TrialState.WAITING and EXCLUDED not in each.user_attrs for each in trials)

    def _exclude_if_surplus(self, trial: Trial) -> bool:
        """Whether other machines asked at the same moment for what was left: the later ones give theirs back."""
        before = [t for t in self.study.get_trials(deepcopy=False) if t.number < trial.number]
        if self.count_used(before) < self.total:
            return False
        self.exclude(trial, "one more than asked for")
        return True

    def exclude(self, trial: Trial, reason: str) -> None:
        """The trial is none of the study's total."""
        trial.set_user_attr(EXCLUDED, reason)
        self.release(trial)
        self.study.tell(trial, state=TrialState.FAIL)

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether the process that ran the trial is gone: known at once on this machine, after `lease` on others."""
        held = trial.user_attrs.get(LEASE)
        if held is None:
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            return time.time() - started > LEASE_GRACE
        if held["host"] == self.host and (path := self._get_lock_path(held["token"])).exists():
            return not is_locked(path)
        return time.time() - float(held["beat"]) > self.lease

    def owns(self, trial: Trial) -> bool:
        """Whether nobody has taken the trial over meanwhile, as after a pause longer than the lease."""
        held = self.study._storage.get_trial_user_attrs(trial._trial_id).get(LEASE, {})
        return bool(held.get("token") == self.token)

    def release(self, trial: Trial) -> None:
        """No more to be renewed."""
        self.held_trials.pop(trial._trial_id, None)

    def close(self) -> None:
        """Let go of what is still held: the next process takes it over at once."""
        self.stop_event.set()
        self.thread.join()
        for trial_id in self.held_trials:
            self.study._storage.set_trial_user_attr(trial_id, LEASE, {"host": "", "token": "", "beat": 0.0})
        self.lock_file.close()
        self._get_lock_path(self.token).unlink(missing_ok=True)

    def _take_over(self, trial: FrozenTrial) -> bool:
        """Take over a dead trial; of two that try, the later one has it."""
        held = trial.user_attrs.get(LEASE, {})
        died = held.get("token") != ""  # or it was let go, as by Ctrl-C, which is nobody's fault
        self._hold(trial._trial_id, trial.number, trial.user_attrs.get(TRIES, 1) + died)
        if held.get("host") != self.host:
            time.sleep(TAKEOVER_WAIT)  # those of one machine come one after the other, by `turn`
            held = self.study._storage.get_trial_user_attrs(trial._trial_id).get(LEASE, {})
            if held.get("token") != self.token:
                self.held_trials.pop(trial._trial_id, None)
                return False
        return True

    def _hold(self, trial_id: int, number: int, tries: int) -> None:
        self._write_lease(trial_id)
        if tries > 1:
            self.study._storage.set_trial_user_attr(trial_id, TRIES, tries)  # its process died: not more than max_retries
        self.held_trials[trial_id] = number

    def _write_lease(self, trial_id: int) -> None:
        held = {"host": self.host, "pid": os.getpid(), "token": self.token, "beat": time.time()}
        self.study._storage.set_trial_user_attr(trial_id, LEASE, held)

    def _renew(self) -> None:
        while not self.stop_event.wait(self.lease / 4):
            for trial_id in list(self.held_trials):
                try:
                    attrs = self.study._storage.get_trial_user_attrs(trial_id)
                    if attrs.get(LEASE, {}).get("token") == self.token and trial_id in self.held_trials:
                        self._write_lease(trial_id)
                except Exception:  # a storage that is away for a while: the trial goes on
                    continue

    @contextmanager
    def lock_folder(self) -> Iterator[None]:
        """One process of this folder at a time."""
        with (self.folder / ".turn").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _get_lock_path(self, token: str) -> Path:
        return self.folder / ".alive" / token

    def _open_lock_file(self) -> IO[Any]:
        self._get_lock_path("").mkdir(parents=True, exist_ok=True)
        file = self._get_lock_path(self.token).open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file


def is_locked(path: Path) -> bool:
    """Whether a process holds the file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
