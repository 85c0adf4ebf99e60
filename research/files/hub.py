"""Data sets of the Hugging Face hub and of folders in its layout: what is requested, and the copy of it below outputs/.

The `datasets` library fills a copy once, in a process of its own (hub_fill.py). A run reads the copy alone: it needs neither
the library nor a network.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from research.cli import wait_for
from research.contracts import contract
from research.files.cache import hash_file
from research.files.network import is_hub_reachable
from research.files.sources import quote_setting
from research.rules import check_extra, enforce
from research.run_dir import ROOT, expand_path, read_json

CACHE = ROOT / "outputs" / "cache" / "hub"
VERSION = 1  # of copies: another one makes them anew
META, INDEX, CONTENT = "copy.json", ".jsonl", ".bin"
AUTO = "auto"  # of a split: the set's own, where it has one
KINDS = ("json", "csv", "text", "parquet", "arrow", "imagefolder", "audiofolder", "webdataset", "xml", "pandas", "sql")
ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
OFFLINE = (
    "give a folder in the hub's layout, as data.dataset=FOLDER with FOLDER/train-00000-of-00001.parquet,\n"
    "or files of text: data=text data.path=FILES; of images: data=images data.path=FOLDER.\n"
    "Nothing to download: data=text reads Python's own sources, data=images scikit-learn's digits"
)
# What the hub's libraries read when they are imported: their files stay below outputs/, and they report to nobody.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class Request:
    """What is read of a data set."""

    kind: Literal["text", "images"]
    dataset: str  # an id as OWNER/NAME, or a folder
    config_name: str | None
    revision: str | None
    splits: Mapping[str, str | None]  # of train, val and test: the name or expression of a split, AUTO, or None
    columns: tuple[str, ...]  # of text: joined by a line's end; of images: the image, and its class
    document_start: str | None = None  # a pattern of the rows that begin a document
    max_samples: int | None = None  # documents or images of training
    max_bytes: int | None = None  # of the training text

    @property
    def is_folder(self) -> bool:
        return expand_path(self.dataset).is_dir()

    def make_key(self) -> str:
        """Return a digest of what decides the copy: of a folder its files, whatever its name."""
        settings = asdict(self) | {"version": VERSION}
        if self.is_folder:
            settings |= {"dataset": hash_folder(expand_path(self.dataset))}
        return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Copy:
    """What is in a folder of the cache: a file for each split, of text JSONL, of images their contents beside an index."""

    folder: Path
    splits: dict[str, str]  # train, val, test -> what the data set calls it
    digests: dict[str, str]  # sha256 of each file
    classes: list[str] | None = None  # by number, where the data set names them
    revision: str = ""  # the commit of the hub

    def check(self) -> None:
        """Raise ValueError where a file is not what was written."""
        for name, digest in self.digests.items():
            file = self.folder / name
            if not file.is_file() or hash_file(file) != digest:
                raise ValueError(f"data: {file} is damaged\ndelete {self.folder}, and start again")


@contract
def hash_folder(folder: Path) -> str:
    """Return a digest of the names and contents of all files below a folder, but for hidden ones."""
    parts = []
    for parent, names, files in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in (Path(parent, name) for name in sorted(files) if not name.startswith(".")):
            parts.append((str(file.relative_to(folder)), hash_file(file)))
    return sha256(json.dumps(sorted(parts)).encode()).hexdigest()


def check_dataset(dataset: str | None) -> None:
    """Raise ValueError for what is neither a folder nor the id of a data set. Nothing is looked up."""
    if not dataset:
        raise ValueError("data.dataset needs a value\ngive an id of the hub, as roneneldan/TinyStories, or a folder")
    path = expand_path(dataset)
    if path.is_dir():
        script = path / f"{path.resolve().name}.py"
        if script.is_file():
            message = f"data.dataset={dataset}: {script.name} is a script, and programs of data sets are not run"
            raise ValueError(f"{message}\nconvert it to parquet, or give a data set without a script")
        return
    if path.exists():
        raise ValueError(
            f"data.dataset={dataset} is a file\ngive its folder, or data=text {quote_setting('data.path', dataset)}"
        )
    if url := re.match(r"(?:hf://|https?://[\w.]+/)(?:datasets/)?([\w.-]+/[\w.-]+)", dataset):
        raise ValueError(f"data.dataset={dataset} is an address\ngive data.dataset={url[1]}")
    if dataset in KINDS:
        raise ValueError(
            f"data.dataset={dataset} is a kind of files\ngive an id of the hub, as OWNER/NAME, or a folder of such files"
        )
    if not ID.fullmatch(dataset) or dataset.startswith("."):
        message = f"data.dataset={dataset}: there is no folder {path.absolute()}"
        raise ValueError(f"{message}\ngive one that exists, or an id of the hub, as OWNER/NAME")


def fetch(request: Request) -> Copy:
    """Return the copy of what is requested, made now unless it is there. Raise ValueError where it cannot be had."""
    check_dataset(request.dataset)
    if request.is_folder and request.revision:
        raise ValueError(f"data.revision={request.revision}: {request.dataset} is a folder, which has none\nleave it out")
    folder = CACHE / request.make_key()
    if copy := read_copy(folder):
        return copy
    enforce(check_extra(f"data.dataset={request.dataset}", "datasets", "hub"))
    run_filler(request, folder, is_offline=not request.is_folder and not is_hub_reachable())
    copy = read_copy(folder)
    assert copy, f"{folder} was filled"
    return copy


def has_copies() -> bool:
    """Return whether the cache has any copy, which needs no library."""
    return any(CACHE.glob(f"*/{META}"))


@contract
def read_copy(folder: Path) -> Copy | None:
    """Return what is in a folder of the cache; None where there is none."""
    record = read_json(folder / META) if (folder / META).exists() else {}
    if record.pop("version", None) != VERSION:
        return None
    copy = Copy(folder, **record)
    return copy if all((folder / name).is_file() for name in copy.digests) else None


def run_filler(request: Request, folder: Path, is_offline: bool) -> None:
    """Fill a copy in another process, which ends with this one. Raise ValueError with what it says."""
    where = expand_path(request.dataset).absolute() if request.is_folder else request.dataset
    words = json.dumps(asdict(request) | {"dataset": str(where)}), str(folder)
    command = [sys.executable, "-m", "research.files.hub_fill", *words]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = build_environment() | ({"HF_HUB_OFFLINE": "1"} if is_offline else {}) | {"PYTHONPATH": path}
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "process_group": 0,
        "env": environment,
    }
    with wait_for(f"the data set {request.dataset}"), subprocess.Popen(command, **pipes) as process:
        assert process.stdout
        try:
            answer = process.stdout.read()
        except BaseException:
            process.kill()
            raise
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError):
        error = f"data.dataset={request.dataset}: its reader ended with code {process.returncode}\nstart again: it goes on"
    if error:
        raise ValueError(error)


def find_home() -> Path:
    """Return the folder of the hub's libraries: below outputs/, unless HF_HOME names another."""
    return Path(os.environ.get("HF_HOME") or CACHE / "huggingface")


def build_environment() -> dict[str, str]:
    """Return the environment in which the hub's libraries are imported: only the login is read from the home folder."""
    login = Path.home() / ".cache/huggingface/token"
    own = {"HF_TOKEN_PATH": str(login)} if login.is_file() and not os.environ.get("HF_HOME") else {}
    return QUIET | dict(os.environ) | own | {"HF_HOME": str(find_home())}
