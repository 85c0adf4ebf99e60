"""Servers of a test's own on the loopback device: each in a folder of its own, and gone with it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from benchmarks.harness import EMPTY, wait_for

PROXY_PROGRAM = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


STORAGES = ("journal", "sqlite", "postgresql", "redis", "grpc")


class NotInstalledError(Exception):
    """The server is not on this machine; the text names the package that brings it."""


def find_program(name: str, package: str) -> str:
    """Return the path of a program; Debian keeps PostgreSQL's out of the PATH. Raise NotInstalledError."""
    paths = [shutil.which(name), *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)]
    if path := next(filter(None, paths), None):
        return str(path)
    raise NotInstalledError(f"there is no {name} on this machine: apt-get install {package}")


def is_listening(port: int) -> bool:
    """Return true if a server takes connections at the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def make_folder() -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield a folder, and whom to run as: PostgreSQL refuses to run as root, so there somebody else owns the folder."""
    with tempfile.TemporaryDirectory(prefix="grokbit-", ignore_cleanup_errors=True) as name:
        somebody: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(name, nobody.pw_uid, nobody.pw_gid)
            somebody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        yield Path(name), somebody


@contextmanager
def start_postgresql() -> Iterator[str]:
    """Yield the URL of an empty database."""
    initdb, control = find_program("initdb", "postgresql"), find_program("pg_ctl", "postgresql")
    with make_folder() as (folder, somebody):

        def call(*command: str) -> None:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, **somebody)
            assert done.returncode == 0, done.stdout + done.stderr

        data, port = str(folder / "data"), find_free_port()
        call(initdb, "-D", data, "-A", "trust", "-U", "grokbit", "-E", "UTF8", "--no-locale", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off"
        call(control, "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://grokbit@127.0.0.1:{port}/postgres"
        finally:
            call(control, "-D", data, "-m", "immediate", "stop")


@contextmanager
def start_redis() -> Iterator[str]:
    """Yield the URL of an empty Redis that keeps nothing on disk."""
    server = find_program("redis-server", "redis-server")
    with make_folder() as (folder, somebody):
        port = find_free_port()
        keep_nothing = ["--save", "", "--appendonly", "no", "--dir", str(folder)]
        with start_server([server, "--bind", "127.0.0.1", "--port", str(port), *keep_nothing], port, folder, somebody):
            yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def start_grpc_proxy(storage: str) -> Iterator[str]:
    """Yield the URL of Optuna's gRPC proxy in front of a database."""
    with tempfile.TemporaryDirectory(prefix="grokbit-") as folder:
        port = find_free_port()
        with start_server([sys.executable, "-c", PROXY_PROGRAM, storage, str(port)], port, Path(folder)):
            yield f"grpc://127.0.0.1:{port}"


@contextmanager
def start_server(command: list[str], port: int, folder: Path, user_args: Mapping[str, Any] = EMPTY) -> Iterator[None]:
    """Run a server for as long as the block lasts, which begins once it takes connections; then kill all its processes."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **user_args
        )
    try:
        wait_for(lambda: is_listening(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_storage(kind: str, folder: Path) -> AbstractContextManager[str]:
    """Return the context of an empty storage for studies, one of STORAGES, which gives its URL.

    On entry it raises NotInstalledError where the server is not on this machine.
    """
    sqlite = f"sqlite:///{folder}/study.db"
    if kind in ("postgresql", "redis"):
        return start_postgresql() if kind == "postgresql" else start_redis()
    if kind == "grpc":
        return start_grpc_proxy(sqlite)
    return nullcontext(sqlite if kind == "sqlite" else f"journal://{folder}/study.journal")
