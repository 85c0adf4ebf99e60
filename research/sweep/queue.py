"""Choose the next trial and hold it: leases tell trials that run from those whose process has died.

A lease is written right after `ask` and renewed by a thread. A dead trial keeps its number, so its folder, its checkpoint
and its MLflow run: another process takes it over and resumes it.
"""

import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from research.cli import announce_wait
from research.contracts import contract
from research.files.locks import is_file_locked, is_locked
from research.sweep.optuna_private import get_storage, get_trial_id
from research.tracking.optuna_storage import EXCLUDED_ATTR, POSTPONED_ATTR
from research.tracking.storage import FileLock

LEASE, TRIES = "lease", "tries"  # a trial's attributes
LACK_ATTR = "lack"  # what a trial lacks that goes on with the next start: room, memory or a store
LATE_ATTR = "late"  # the result that a process has reached after another one had taken the trial over
TAKEOVER_WAIT = 1.0  # seconds in which two processes that take over the same trial notice each other
LEASE_GRACE = 10.0  # seconds that a trial may be without a lease: its process writes one at once, or has died
log = logging.getLogger(__name__)


@contract
class Queue:
    """The trials of one study, as one process of it sees them."""

    def __init__(self, study: Study, folder: Path, total: int, lease: float, max_retries: int) -> None:
        self.study, self.folder, self.total, self.lease, self.max_retries = study, folder, total, lease, max_retries
        self.storage = get_storage(study)  # it sets attributes of trials that another process has asked for
        self.held_trials = set[int]()  # ids of the trials whose lease this process renews
        self.token, self.host = uuid.uuid4().hex[:12], socket.gethostname()
        self.stop_event = threading.Event()
        self.folder_lock = FileLock(folder / ".turn")  # one process at a time chooses trials in this folder
        self.own_lock = FileLock(self._get_lock_path(self.token))  # others see by it that this process is alive
        self.own_lock.acquire()
        self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.thread.start()

    def take_next(self) -> tuple[Trial | None, bool]:
        """Return a trial to run, or None, and True if there may be one later: a trial that runs elsewhere may die."""
        with self.folder_lock, announce_wait("the study's storage"):
            for trial in filter(self.is_dead, self.list_trials(TrialState.RUNNING)):
                if trial.user_attrs.get(TRIES, 1) > self.max_retries:
                    reason = "its process died, or had too little memory, again and again"
                    self.storage.set_trial_user_attr(get_trial_id(trial), "error", reason)
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                elif self._take_over(trial):
                    return Trial(self.study, get_trial_id(trial)), True
            if self.count_used(self.list_trials()) < self.total:
                fresh = self.study.ask()
                self._hold(get_trial_id(fresh), 1)
                # Other machines may have taken the rest of the total at the same moment.
                if self.count_used([trial for trial in self.list_trials() if trial.number < fresh.number]) < self.total:
                    return fresh, True
                self.exclude(fresh, "one more than the total")
            return None, bool(self.list_under_way())

    def list_trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials of the study in some states; without any, all trials. They must not be changed."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def list_under_way(self) -> list[FrozenTrial]:
        """Return the trials that run, or may be taken over: not those that wait for the next start of the command."""
        return [trial for trial in self.list_trials(TrialState.RUNNING) if not trial.user_attrs.get(POSTPONED_ATTR)]

    def list_postponed(self) -> list[FrozenTrial]:
        """Return the trials that wait for the next start of the command."""
        return [trial for trial in self.list_trials(TrialState.RUNNING) if trial.user_attrs.get(POSTPONED_ATTR)]

    def postpone(self, trial: Trial, lack: str, error: str) -> None:
        """Leave the trial to the next start of the command, with its number and its folder; one without memory has failed."""
        self.release(trial)
        self.storage.set_trial_user_attr(get_trial_id(trial), LACK_ATTR, lack)
        self.storage.set_trial_user_attr(get_trial_id(trial), POSTPONED_ATTR, f"{lack}: {error}")
        self._give_up(get_trial_id(trial), "failed" if lack == "memory" else "")

    def give_up(self, trial: Trial) -> None:
        """Let the trial be taken over, by this process or another one, once nobody holds its folder."""
        self.release(trial)
        self._give_up(get_trial_id(trial))

    def recall_postponed(self) -> None:
        """Let the trials that an earlier start of the command has postponed be taken."""
        for trial in self.list_postponed():
            self.storage.set_trial_user_attr(get_trial_id(trial), POSTPONED_ATTR, "")

    def count_used(self, trials: list[FrozenTrial]) -> int:
        """Return how many of the study's total these trials use: all but those waiting and those excluded."""
        return sum(trial.state != TrialState.WAITING and EXCLUDED_ATTR not in trial.user_attrs for trial in trials)

    def exclude(self, trial: Trial, reason: str) -> None:
        """End the trial without counting it in the study's total."""
        trial.set_user_attr(EXCLUDED_ATTR, reason)
        self.release(trial)
        self.study.tell(trial, state=TrialState.FAIL)

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Return True if the trial's process is gone: known at once on this machine, after `lease` seconds on others.

        While a process holds the trial's run folder it is not: one that slept wakes up, and a job may outlive its sweeper.
        """
        if get_trial_id(trial) in self.held_trials or trial.user_attrs.get(POSTPONED_ATTR) or self.is_folder_held(trial):
            return False
        lease = trial.user_attrs.get(LEASE)
        if lease is None:
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            return time.time() - started > LEASE_GRACE
        if lease["host"] == self.host and (path := self._get_lock_path(lease["token"])).exists():
            return not is_file_locked(path)
        return time.time() - float(lease["beat"]) > self.lease

    def is_folder_held(self, trial: FrozenTrial) -> bool:
        """Return True while a process writes to the run folder of a trial, or of one of its repeats."""
        folder = Path(trial.user_attrs.get("folder") or self.folder / str(trial.number))
        return any(map(is_locked, (folder, *(lock.parent for lock in folder.glob("*/.lock")))))

    def owns(self, trial: Trial) -> bool:
        """Return False if another process has taken the trial over, as after a pause longer than the lease."""
        return self._load_token(get_trial_id(trial)) == self.token

    def release(self, trial: Trial) -> None:
        """Stop renewing the trial's lease."""
        self.held_trials.discard(get_trial_id(trial))

    def close(self) -> None:
        """Give up the trials that are still held, so that the next process can take them over at once."""
        self.stop_event.set()
        self.thread.join()
        for trial_id in self.held_trials:
            self._give_up(trial_id)
        self.own_lock.release()
        self._get_lock_path(self.token).unlink(missing_ok=True)

    def _take_over(self, trial: FrozenTrial) -> bool:
        """Hold a dead trial; return False if another machine did so too, and later than this one."""
        lease, trial_id = trial.user_attrs.get(LEASE, {}), get_trial_id(trial)
        has_died = lease.get("token") != ""  # else it was given up, as by Ctrl-C, which is no failed try
        self._hold(trial_id, trial.user_attrs.get(TRIES, 1) + has_died)
        # Processes of one machine come one after the other, by the lock of the folder.
        if lease.get("host") != self.host:
            time.sleep(TAKEOVER_WAIT)
            if self._load_token(trial_id) != self.token:
                self.held_trials.discard(trial_id)
                return False
        return True

    def _give_up(self, trial_id: int, token: str = "") -> None:
        """Leave a lease that is over. Whoever takes the trial over counts a failed try unless the token is empty."""
        self.storage.set_trial_user_attr(trial_id, LEASE, {"host": "", "token": token, "beat": 0.0})

    def _hold(self, trial_id: int, tries: int) -> None:
        self._write_lease(trial_id)
        if tries > 1:
            self.storage.set_trial_user_attr(trial_id, TRIES, tries)
        self.held_trials.add(trial_id)

    def _load_token(self, trial_id: int) -> str:
        """Return the token of the process that holds the trial now; empty where none does."""
        return str(self.storage.get_trial_user_attrs(trial_id).get(LEASE, {}).get("token", ""))

    def _write_lease(self, trial_id: int) -> None:
        lease = {"host": self.host, "pid": os.getpid(), "token": self.token, "beat": time.time()}
        self.storage.set_trial_user_attr(trial_id, LEASE, lease)

    def _renew(self) -> None:
        """Renew the leases of held trials until `close`; runs in a thread."""
        while not self.stop_event.wait(self.lease / 4):
            for trial_id in list(self.held_trials):
                try:
                    if self._load_token(trial_id) == self.token and trial_id in self.held_trials:
                        self._write_lease(trial_id)
                except Exception as error:  # an unreachable storage must not end the trial
                    log.debug("the lease of trial %d could not be renewed: %s", trial_id, error)

    def _get_lock_path(self, token: str) -> Path:
        return self.folder / ".alive" / token
