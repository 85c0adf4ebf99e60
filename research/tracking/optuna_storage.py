"""Where a study is stored: the URLs and `_target_`s of `hydra.sweeper.storage`. Optuna is imported on first use."""

import json
import random
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from research.cli import announce_wait, redact
from research.contracts import contract
from research.options.targets import locate_target
from research.ranges import MAX_NESTING
from research.run_dir import expand_path
from research.tracking.journal import Journal

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

PRUNED_ATTR = "pruned"  # the attribute of a trial with the step at which it was pruned
EXCLUDED_ATTR = "aside"  # the attribute of a trial that the study does not count, with the reason
POSTPONED_ATTR = "postponed"  # why a trial waits for the next start of the command; empty once that has begun
REUSED_ATTR = "reused"  # the number of the earlier trial of the same values, whose result it has
STOP_REASON_ATTR = "over"  # the attribute of a study with the reason why it ended before its last trial
TEXTS_ATTR = "texts"  # the attribute of a study with the parameters whose values it stores as overrides
STORAGE_EXAMPLES = "journal://FILE sqlite:///FILE postgresql://USER@HOST/NAME redis://HOST:6379/0 grpc://HOST:13000"
DRIVERS = {"postgres": "psycopg2", "postgresql": "psycopg2", "redis": "redis", "rediss": "redis", "grpc": "grpcio"}
EXTRAS = {"psycopg2": "postgres", "redis": "redis", "grpcio": "grpc"}  # driver -> the extra of this package that installs it
SERVER_TIMEOUT = 10  # seconds


@contextmanager
def silence_optuna() -> Iterator[None]:
    """Suppress Optuna's messages below errors, and warnings about experimental and deprecated parts: the user chose them."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (optuna.exceptions.ExperimentalWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", "Some regimes|Target and region", UserWarning)  # PED-ANOVA, of few trials
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contract
def is_storage_unreachable(error: BaseException) -> bool:
    """Return whether a storage raised this error because it cannot be reached. Each kind of storage has its own error."""
    # By name: the libraries of the other kinds need not be installed.
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return bool(
        kinds
        & {
            "optuna.StorageInternalError",
            "sqlalchemy.DBAPIError",
            "redis.ConnectionError",
            "redis.TimeoutError",
            "grpc.RpcError",
        }
    )


def get_storage(spec: Any) -> "BaseStorage":
    """Return the storage of a URL or a `_target_` node, cached per process.

    Raise ValueError for a URL of no known kind or a missing driver, and the storage's own error where it cannot be reached.
    """
    return _connect_storage(json.dumps(spec, sort_keys=True))


@cache
def _connect_storage(spec: str) -> "BaseStorage":
    url = json.loads(spec)
    with silence_optuna(), announce_wait(f"the study's storage, {redact(str(url))}"):
        if isinstance(url, dict):
            return instantiate_spec(url, "hydra.sweeper.storage")  # type: ignore[no-any-return]
        scheme, _, rest = str(url).partition("://")
        if not scheme or not rest.strip("/"):
            raise ValueError(f"it is none of {STORAGE_EXAMPLES}")
        kind = scheme.partition("+")[0]  # without a driver, as in postgresql+psycopg2
        openers = {"journal": open_journal, "redis": open_redis, "rediss": open_redis, "grpc": open_proxy}
        try:
            return openers.get(kind, open_database)(url)
        except ImportError as error:
            message = f"its driver is not installed: {error.__cause__ or error}"
            if driver := DRIVERS.get(kind):
                message = f"{driver} is not installed; pip install -e '.[{EXTRAS[driver]}]'"
            raise ValueError(message) from error


def open_journal(url: str) -> "BaseStorage":
    """Open a journal file. Several processes append to it, also on a file system that several machines share."""
    from optuna.storages.journal import JournalStorage

    path = expand_path(url.partition("://")[2]).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(Journal(path))  # type: ignore[arg-type]  # it has the methods, and does not need the class


def open_redis(url: str) -> "BaseStorage":
    """Open a journal in Redis."""
    from optuna.storages.journal import JournalRedisBackend, JournalStorage

    for name in ("socket_connect_timeout", "socket_timeout"):  # else a server that hangs would hold a sweep for ever
        url += "" if f"{name}=" in url else f"{'&' if '?' in url else '?'}{name}={SERVER_TIMEOUT}"
    return JournalStorage(forget_snapshots(JournalRedisBackend(url)))


def forget_snapshots(part: Any) -> Any:
    """Return a part of a storage. Of a journal in Redis it keeps no snapshots: these are pickles, which could run code.

    Its records are JSON, and are all that a process needs.
    """
    from optuna.storages.journal import JournalRedisBackend

    if isinstance(part, JournalRedisBackend):
        vars(part).update(load_snapshot=lambda: None, save_snapshot=lambda _: None)
    return part


def open_proxy(url: str) -> "BaseStorage":
    """Open a gRPC proxy, which shares a few connections to a database. Raise ConnectionError where none answers."""
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
    """Open a database through SQLAlchemy, and create its tables where they are missing.

    Of several processes that open an empty database at once only one can create the tables: the others try again.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError

    # Name the driver: the default one depends on SQLAlchemy's release.
    url = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", url)
    timeouts = {"sqlite": {"timeout": 60}, "postgresql+psycopg2": {"connect_timeout": SERVER_TIMEOUT}}
    # A connection may have died during a long trial, hence the ping.
    options = {"pool_pre_ping": True, "connect_args": timeouts.get(url.partition("://")[0], {})}
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


@contract
def instantiate_spec(spec: Any, setting: str, depth: int = MAX_NESTING) -> Any:
    """Return the object that a `_target_` node makes, nested nodes first; return any other value as it is.

    It is not `load.instantiate`: Hydra's takes no optional arguments away, and that room is above this one. Both ask
    `targets.locate_target`. Arguments that are None are left out, so the target's own default holds. Raise ValueError, naming
    the setting, for a target that may not be named, and for nodes nested deeper than `depth`.
    """
    if not depth:
        raise ValueError(f"{setting}: its nodes are nested {MAX_NESTING} deep\ngive a target that makes the inner ones")
    if isinstance(spec, list):
        return [instantiate_spec(item, setting, depth - 1) for item in spec]
    if not isinstance(spec, dict):
        return spec
    build = locate_target(f"{setting}._target_", str(spec["_target_"])) if "_target_" in spec else dict
    settings = {key: value for key, value in spec.items() if value is not None and key not in ("_target_", "_partial_")}
    arguments = {key: instantiate_spec(value, f"{setting}.{key}", depth - 1) for key, value in settings.items()}
    return forget_snapshots(build(**arguments))
