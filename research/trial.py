"""The trial of a study that a run is, wherever it runs: what it reports goes to the study's storage, which knows the others.

The sweeper leaves word of it in the environment. Optuna is imported once there is something to report.
"""

import fcntl
import json
import os
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

VARIABLE = "GROKBIT_TRIAL"
PRUNED = "pruned"  # the trial's attribute with the step at which it was stopped


class Trial:
    """What a run may say and ask about the trial that it is."""

    def __init__(self, told: dict[str, Any]) -> None:
        import optuna

        self.number, self.id = int(told["number"]), int(told["id"])
        self.storage = opened(told["storage"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.load_study(study_name=told["study"], storage=self.storage, pruner=made(told["pruner"]))

    def report(self, value: float, step: int) -> None:
        """The objective at a step; told again after a resume, it is the same."""
        self.storage.set_trial_intermediate_value(self.id, step, value)

    def should_prune(self) -> bool:
        """Whether the pruner gives this trial up, now or in an earlier process. The study keeps the answer."""
        frozen = self.storage.get_trial(self.id)
        if PRUNED not in frozen.user_attrs:
            if not self.study.pruner.prune(self.study, frozen):
                return False
            self.storage.set_trial_user_attr(self.id, PRUNED, frozen.last_step)
        return True

    def pruned(self) -> bool:
        """Whether it was given up in an earlier process."""
        return PRUNED in self.storage.get_trial(self.id).user_attrs


def current() -> Trial | None:
    """The trial that this process runs, if its study prunes."""
    told = json.loads(os.environ.get(VARIABLE) or "{}")
    return Trial(told) if told.get("pruner") else None


def swept() -> bool:
    """Whether this run is one of a sweep's, which has the screen."""
    return VARIABLE in os.environ


def opened(spec: Any) -> "BaseStorage":
    """The storage that a URL or a `_target_` names, one a process. Whatever cannot be reached raises its own error."""
    return _opened(json.dumps(spec, sort_keys=True))


@cache
def _opened(spec: str) -> "BaseStorage":
    from optuna import storages
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages.journal import JournalFileBackend, JournalRedisBackend

    where = json.loads(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if isinstance(where, dict):
            return made(where)  # type: ignore[no-any-return]
        kind, _, rest = str(where).partition("://")
        if kind == "journal":
            path = Path(rest).expanduser().absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            mend(path)
            return storages.JournalStorage(JournalFileBackend(str(path), lock_obj=Held(path)))  # type: ignore[arg-type]
        if kind in ("redis", "rediss"):
            return storages.JournalStorage(JournalRedisBackend(where))
        if kind == "grpc":
            host, _, port = rest.rpartition(":")
            proxy = storages.GrpcStorageProxy(host=host, port=int(port))
            proxy.wait_server_ready(timeout=10)
            return proxy
        return storages.RDBStorage(where)


class Held:
    """The lock of a journal, which ends with the process that holds it, however that ends."""

    file: IO[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.lock")

    def acquire(self) -> bool:
        file = self.path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        self.file = file
        return True

    def release(self) -> None:
        assert self.file is not None
        self.file.close()


def mend(journal: Path) -> None:
    """Cut off a last line that a full disk has left half-written: what came after it could not be read."""
    lock = Held(journal)
    lock.acquire()
    try:
        if journal.exists() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def made(spec: Any) -> Any:
    """What a `_target_` makes of its arguments, nested ones first; anything else is itself. None means: not given."""
    if isinstance(spec, list):
        return [made(each) for each in spec]
    if not isinstance(spec, dict):
        return spec
    parts = {key: made(value) for key, value in spec.items() if value is not None and key not in ("_target_", "_partial_")}
    if "_target_" not in spec:
        return parts
    module, _, name = spec["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**parts)
