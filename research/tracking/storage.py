"""Where runs are kept: a lock on a file, MLflow's URI, SQLite addresses."""

import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from research.cli import wait_for
from research.contracts import contract
from research.files.locks import open_lock
from research.run_dir import ROOT, expand_path

DEFAULT_STORE = ROOT / "outputs" / "mlflow.db"  # this project's own
DEFAULT_URI = f"sqlite:///{DEFAULT_STORE}"
UI_HOST, UI_PORT = "127.0.0.1", 5000  # where `make ui` serves MLflow's pages
SQLITE_URL = re.compile(r"(sqlite(?:\+\w+)?):///(?!:memory:)([^?]+)(\?.*)?")


@dataclass
class FileLock:
    """An exclusive lock on a file. The system releases it when the process ends, however that ends.

    `with` holds it.
    """

    path: Path
    file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Wait until no other process holds the lock, then hold it. Return True. A signal ends the wait, by Stopped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open_lock(self.path)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with wait_for(f"another process, which holds {self.path}"):
                    fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            file.close()
            reason = f"{self.path} cannot be locked ({error.strerror}): this file system has no locks"
            raise OSError(error.errno, f"{reason}, without which processes would lose what others write") from error
        except BaseException:
            file.close()
            raise
        self.file = file
        return True

    def release(self) -> None:
        assert self.file is not None
        self.file.close()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@contract
def is_server(uri: str) -> bool:
    """Return whether a store is a server, which has pages of its own."""
    return urlsplit(uri).scheme in ("http", "https")


@contract
def resolve_uri(uri: str | None = None) -> str:
    """Return MLflow's URI: the setting `tracker.uri`, else MLFLOW_TRACKING_URI, else this project's own store."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    return re.sub(r"(?<=^sqlite:///)~.*", lambda match: str(expand_path(match[0])), uri)


@contract
def find_sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite address as SQLAlchemy reads it: without its query, %20 as a space. None for any other."""
    match = SQLITE_URL.fullmatch(url)
    if match is None or "mode=memory" in (match[3] or ""):
        return None
    path = unquote(match[2])
    return Path(path.removeprefix("file:") if "uri=true" in (match[3] or "") else path)


@contract
def format_sqlite_url(file: Path, like: str = "sqlite:///") -> str:
    """Return the address of an SQLite file, with the driver and the query of the address `like`."""
    scheme, _, rest = like.partition("://")
    _, mark, query = rest.partition("?")
    prefix = "file:" if "uri=true" in query else ""
    return f"{scheme}:///{prefix}{str(file).replace('%', '%25').replace('?', '%3F')}{mark}{query}"
