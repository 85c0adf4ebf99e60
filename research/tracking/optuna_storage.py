"""Where a study is stored: the URLs and `_target_`s of `hydra.sweeper.storage`. Optuna is imported on first use."""

import fcntl
import json
import os
import random
import re
import time
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

TRIAL_ENV_VAR = "GROKBIT_TRIAL"
PRUNED_ATTR = "pruned"  # the trial's attribute with the step at which it was stopped
STORAGE_EXAMPLES = "journal://FILE sqlite:///FILE postgresql://USER@HOST/NAME redis://HOST:6379/0 grpc://HOST:13000"
DRIVERS = {"postgres": "psycopg2", "postgresql": "psycopg2", "redis": "redis", "rediss": "redis", "grpc": "grpcio"}
EXTRAS = {"psycopg2": "postgres", "redis": "redis", "grpcio": "grpc"}  # of this package, which bring the drivers
SERVER_TIMEOUT = 10  # seconds that a server has to answer


def is_storage_unreachable(error: BaseException) -> bool:
    """Whether this is what a storage raises that cannot be reached: each kind has its own."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return bool(kinds & {"optuna.StorageInternalError", "sqlalchemy.DBAPIError", "redis.ConnectionError", "grpc.RpcError"})


def is_swept() -> bool:
    """Whether this run is one of a sweep's, which has the screen."""
    return TRIAL_ENV_VAR in os.environ


def get_storage(spec: Any) -> "BaseStorage":
    """The storage that a URL or a `_target_` names, one a process. Whatever cannot be reached raises its own error."""
    return _connect_storage(json.dumps(spec, sort_keys=True))


@cache
def _connect_storage(spec: str) -> "BaseStorage":
    from optuna.exceptions import ExperimentalWarning

    where = json.loads(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if isinstance(where, dict):
            return instantiate_spec(where)  # type: ignore[no-any-return]
        kind, _, rest = str(where).partition("://")
        if not kind or not rest.strip("/"):
            raise ValueError(f"it is none of {STORAGE_EXAMPLES}")
        kind = kind.partition("+")[0]
        try:
            return {"journal": open_journal, "redis": open_redis, "rediss": open_redis, "grpc": open_proxy}.get(
                kind, open_database
            )(where)
        except ImportError as error:
            raise ValueError(explain_missing_driver(kind, error)) from error


def explain_missing_driver(kind: str, error: ImportError) -> str:
    """Which package a storage needs that is not there, and how to get it."""
    if driver := DRIVERS.get(kind):
        return f"{driver} is not installed; pip install -e '.[{EXTRAS[driver]}]'"
    return f"its driver is not installed: {error.__cause__ or error}"


def open_journal(url: str) -> "BaseStorage":
    """A file that several processes append to, also on a file system that several machines share."""
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    path = Path(url.partition("://")[2]).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    truncate_partial_line(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=FileLock(path)))  # type: ignore[arg-type]


def open_redis(url: str) -> "BaseStorage":
    """A journal in Redis."""
    from optuna.storages.journal import JournalRedisBackend, JournalStorage

    limit = "" if "socket_connect_timeout" in url else f"{'&' if '?' in url else '?'}socket_connect_timeout={SERVER_TIMEOUT}"
    return JournalStorage(JournalRedisBackend(url + limit))


def open_proxy(url: str) -> "BaseStorage":
    """A process that keeps the connections to a database for many others. Raises ConnectionError where none answers."""
    from optuna.storages import GrpcStorageProxy

    host, _, port = url.partition("://")[2].rstrip("/").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("give its host and its port, as grpc://HOST:13000")
    storage = GrpcStorageProxy(host=host, port=int(port))
    try:
        storage.wait_server_ready(timeout=SERVER_TIMEOUT)
    except ConnectionError as error:
        raise ConnectionError(f"no proxy has answered at {host}:{port} within {SERVER_TIMEOUT} s") from error
    return storage


def open_database(url: str) -> "BaseStorage":
    """A database. Of several processes that come to an empty one at once, one makes its tables, and the others try again."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError

    url = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", url)  # which driver that means depends on SQLAlchemy's release
    kind = url.partition("://")[0]
    limits = {"sqlite": {"timeout": 60}, "postgresql+psycopg2": {"connect_timeout": SERVER_TIMEOUT}}.get(kind, {})
    options = {"pool_pre_ping": True, "connect_args": limits}  # a connection may have died during a long trial
    for wait in (0.1, 0.3, 1.0, 3.0):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except NoSuchModuleError as error:
            raise ValueError(f"it is none of {STORAGE_EXAMPLES}") from error
        except DBAPIError as error:
            if not re.search("already exists|UNIQUE constraint", str(error)):
                raise
            time.sleep(wait * (1 + random.random()))
    return RDBStorage(url, engine_kwargs=options)


class FileLock:
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


def truncate_partial_line(journal: Path) -> None:
    """Cut off a last line that a full disk has left half-written: what came after it could not be read."""
    lock = FileLock(journal)
    lock.acquire()
    try:
        if journal.exists() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def instantiate_spec(spec: Any) -> Any:
    """What a `_target_` makes of its arguments, nested ones first; anything else is itself. None means: not given."""
    if isinstance(spec, list):
        return [instantiate_spec(each) for each in spec]
    if not isinstance(spec, dict):
        return spec
    parts = {
        key: instantiate_spec(value)
        for key, value in spec.items()
        if value is not None and key not in ("_target_", "_partial_")
    }
    if "_target_" not in spec:
        return parts
    module, _, name = spec["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**parts)
