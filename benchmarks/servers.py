"""Servers of a test's own on the loopback device: each in a folder of its own, and gone with it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import wait_for
from research.contracts import contract

make_folder = partial(tempfile.TemporaryDirectory, prefix="grokbit-", ignore_cleanup_errors=True)
PROXY_PROGRAM = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


class NotInstalledError(Exception):
    """The server is not on this machine; the text names the package that brings it."""


@contract
def find_program(name: str, package: str) -> str:
    """Return the path of a program; Debian keeps PostgreSQL's out of the PATH. Raise NotInstalledError."""
    paths = [shutil.which(name), *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)]
    if path := next(filter(None, paths), None):
        return str(path)
    raise NotInstalledError(f"there is no {name} on this machine: apt-get install {package}")


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    """Return true if a server takes connections at the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
@contract
def start_server(port: int, *command: str) -> Iterator[None]:
    """Run a server for as long as the block lasts, which begins once it takes connections; then kill all its processes."""
    with make_folder() as folder, Path(folder, "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait_for(lambda: is_listening(port) or process.poll() is not None)
            assert process.poll() is None, Path(log.name).read_text()
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def start_postgresql() -> Iterator[str]:
    """Yield the URL of an empty database."""
    initdb, control = find_program("initdb", "postgresql"), find_program("pg_ctl", "postgresql")
    with make_folder() as folder:
        somebody: dict[str, Any] = {}
        if os.geteuid() == 0:  # as root PostgreSQL refuses to run
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            somebody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

        def call(*command: str) -> None:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, **somebody)
            assert done.returncode == 0, done.stdout + done.stderr

        data, port = f"{folder}/data", find_free_port()
        call(initdb, "-D", data, "-A", "trust", "-U", "grokbit", "-E", "UTF8", "--no-locale", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off"
        call(control, "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://grokbit@127.0.0.1:{port}/postgres"
        finally:
            call(control, "-D", data, "-m", "immediate", "stop")


@contextmanager
def start_redis() -> Iterator[str]:
    """Yield the URL of an empty Redis that keeps nothing on disk."""
    server, port = find_program("redis-server", "redis-server"), find_free_port()
    with start_server(port, server, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def start_grpc_proxy(storage: str) -> Iterator[str]:
    """Yield the URL of Optuna's gRPC proxy in front of a database."""
    port = find_free_port()
    with start_server(port, sys.executable, "-c", PROXY_PROGRAM, storage, str(port)):
        yield f"grpc://127.0.0.1:{port}"


# Of studies: a function of a folder that starts an empty one and yields its URL, or raises NotInstalledError.
STORAGES: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "journal": lambda folder: nullcontext(f"journal://{folder}/study.journal"),
    "sqlite": lambda folder: nullcontext(f"sqlite:///{folder}/study.db"),
    "postgresql": lambda folder: start_postgresql(),
    "redis": lambda folder: start_redis(),
    "grpc": lambda folder: start_grpc_proxy(f"sqlite:///{folder}/study.db"),
}
