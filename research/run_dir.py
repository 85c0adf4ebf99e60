"""The run folder: what was requested, on which machine, what came out. A process that is alive holds its lock.

The preflight imports this file before anything heavy: what only a run needs is imported inside functions.
"""

import errno
import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any
from zlib import crc32

from research.contracts import contract

ROOT = Path(__file__).resolve().parents[1]
RUN_ID_PATTERN = r"[0-9a-f]{32}"  # of MLflow
TOKENIZER_FOLDER, MODEL_FOLDER = "tokenizer", "model"  # in a run folder: its tokenizer; the config.json of a model of hub
SUMMARY_FILE = "summary.json"
OUTER_KEYS = ("out", "resume", "tracker")  # settings of where a run goes, where it begins, who watches: no part of the result
MAX_TEXT_BYTES = 1 << 26  # of a file that describes a run
CHECKSUM_KEY = "crc32"  # in our records: of all that stands beside it
SUMMARY_V1 = {"rounded": "quantized_params"}  # keys of version 1 and what they are called now
SHAPE_V1 = {"vocab": "vocab_size", "length": "seq_len", "features": "num_features", "classes": "num_classes"}
# Environment variables, one table. The first three are ours to set, from process to process; the rest are the user's.
SWEPT_ENV_VAR = "GROKBIT_SWEPT"  # the swept keys of this command line, with commas: they name a run
TRIAL_ENV_VAR = "GROKBIT_TRIAL"  # JSON: the trial that this run is, for reports and pruning
WORKER_ENV_VAR = "GROKBIT_WORKER"  # JSON: which worker of which sweep this process is
CACHE_ENV_VAR = "GROKBIT_CACHE"  # the folder of compiled kernels
ISA_ENV_VAR = "GROKBIT_ISA"  # the instruction set of the C kernels, instead of the best
TARGETS_ENV_VAR = "GROKBIT_TARGETS"  # packages and modules, with commas, that a `_target_` may name besides ours
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """One run as it was requested, in plain types."""

    name: str  # short: what was chosen, or the swept keys
    study: str
    folder: Path
    config: dict[str, Any]  # resolved
    overrides: list[str]
    choices: dict[str, str]  # group -> option
    sweep_folder: Path | None = None  # the folder of the sweep that this run is part of
    swept_values: dict[str, str] = field(default_factory=dict)
    in_sweep: bool = False  # a sweep of ours started it and has the screen
    resume: Path | None = None  # the run folder or the checkpoint that it begins at
    resumed: bool = False  # from a checkpoint of its own

    @property
    def digest(self) -> str:
        """Return a digest of what the result depends on: not where it goes, nor who watches."""
        settings = {key: value for key, value in self.config.items() if key not in (*OUTER_KEYS, "name")}
        return sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Summary:
    """summary.json: how a run ended and what it reached. A run that could not be built has the first four only."""

    status: str  # FINISHED | PRUNED | STOPPED | FAILED | KILLED
    error: str = ""
    wall_s: float = 0.0
    config: str = ""  # a digest of its configuration
    monitor: str = ""
    value: float | None = None  # the best value of the monitor
    metrics: dict[str, float | None] = field(default_factory=dict)  # the last value of each metric
    best: dict[str, float | None] = field(default_factory=dict)  # every metric at the best evaluation, and its step
    baseline: dict[str, float] = field(default_factory=dict)  # what a trivial predictor reaches
    steps: int = 0
    stop: str = ""  # why it ended before its last step
    rollbacks: int = 0
    train_s: float = 0.0
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    peak_rss_mb: float = 0.0
    data: str = ""  # what the data set was: its source, how many samples
    notes: list[str] = field(default_factory=list)  # of the data set: leaks between splits, what was left out
    shape: dict[str, float | bool] = field(default_factory=dict)  # of the data set
    classes: list[str] = field(default_factory=list)  # their names, by number
    params: int = 0
    quantized_params: int = 0  # how many of them have quantized values
    learning_params: int = 0  # how many of them learn: fewer on a frozen base
    weights_sha256: str | None = None
    mlflow_run_id: str | None = None
    version: int = 2

    @contract
    def write(self, folder: Path) -> None:
        """Write it into a run folder, whole or not at all."""
        write_record(folder / SUMMARY_FILE, asdict(self))


@contract
def read_summary(folder: Path) -> Summary | None:
    """Return a run folder's summary; None where there is none, or one that this version cannot read.

    Version 1, which had no version field, had other names for some keys.
    """
    content = {SUMMARY_V1.get(key, key): value for key, value in read_json(folder / SUMMARY_FILE).items()}
    from research.ranges import take_fields

    content = take_fields(Summary, content, folder / SUMMARY_FILE)
    if not content or content.get("version", 1) not in (1, 2):
        return None
    shape = {SHAPE_V1.get(name, name): size for name, size in content.get("shape", {}).items()}
    return Summary(**{"status": ""} | content | {"shape": shape})


@contract
def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; numbers that it does not have become null."""
    replace_text(path, json.dumps(replace_nonfinite(content), indent=2) + "\n")


@contract
def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with a checksum, which `read_json` looks at."""
    write_json(path, add_checksum(replace_nonfinite(content)))


@contract
def add_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record with a checksum as its last key. Other programs read it as any JSON object."""
    return content | {CHECKSUM_KEY: f"{crc32(json.dumps(content, sort_keys=True).encode()):08x}"}


def parse_json(text: str) -> dict[str, Any]:
    """Return a JSON object without its checksum, if it has one. Raise ValueError for a wrong one, and for anything else."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    if (expected := content.pop(CHECKSUM_KEY, None)) and add_checksum(content)[CHECKSUM_KEY] != expected:
        raise ValueError(f"it does not have the {CHECKSUM_KEY} that it names")
    return content


@contract
def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Once this returns it outlives a power cut. Raise OSError where less was written."""
    content = text.encode()
    with replace_file(path) as draft:
        draft.write_bytes(content)
        sync(draft)
        if draft.stat().st_size != len(content):  # some network disks say no word
            raise OSError(errno.EIO, "less was written than was to be written", str(draft))
    sync(path.parent)


@contextmanager
@contract
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file at; then it takes the place of `path`, also of a link there, which is not followed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.unlink(missing_ok=True)  # somebody's link
    yield draft
    draft.replace(path)


@contract
def sync(path: Path) -> None:
    """Let a file's content, or the names in a folder, outlive a power cut from here on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contract
def make_folder(path: Path) -> None:
    """Make a folder and its parents, whose names outlive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contract
def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file; nothing where it is not there, or damaged, which a warning names."""
    try:
        return parse_json(read_text(path))
    except (OSError, ValueError) as error:
        if path.exists():
            log.warning("%s is damaged and left out: %s", path, error)
        return {}


@contract
def open_file(path: Path) -> BufferedReader:
    """Open a file to read. Raise OSError for a pipe or a device, which would be waited for, or have no end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


@contract
def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a file that describes a run. Raise OSError for one too large for that, or no regular file."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_TEXT_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {MAX_TEXT_BYTES} bytes", str(path))
        return file.read().decode(errors=errors)


@contract
def find_link(folder: Path) -> Path | None:
    """Return a link through which what is written to a run or a sweep would go elsewhere; None where there is none.

    Folders may be links, as checkpoints on another disk, but not `plots`, whose pictures are replaced.
    """
    links = filter(Path.is_symlink, (*folder.glob("*"), *folder.glob("plots/*")))
    return next((link for link in links if link == folder / "plots" or not link.is_dir()), None)


@contract
def check_links(folder: Path) -> None:
    """Raise ValueError for a folder that has such a link."""
    if link := find_link(folder):
        raise ValueError(f"{link} is a link: what is written there would go elsewhere\nremove it, or give another folder")


@contract
def replace_nonfinite(value: Any) -> Any:
    """Return what JSON makes of a value, with None for NaN and infinities, which it does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


@contract
def expand_path(path: str | Path) -> Path:
    """Return a path with a leading ~ replaced by the home folder. The ~ of a user who does not exist stays."""
    return Path(os.path.expanduser(path))


@contract
def parse_step(name: str) -> int | None:
    """Return the step of a checkpoint by the name of its folder; None for any other name, as of a copy by hand."""
    return int(match[1]) if (match := re.fullmatch(r"(?:\.old-)?step-(\d+)", name)) else None


@contract
def to_run_folder(path: Path) -> Path:
    """Return the run of RUN/checkpoints/step-* or of RUN/checkpoints. Any other path, as a copied checkpoint, is its own."""
    folder = path if parse_step(path.name) is None else path.parent
    return folder.parent if folder.name == "checkpoints" else path


@contract
def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by their step, the newest first.

    One that was about to be replaced when a kill came counts; copies by hand, as step-00000008-good, and files do not.
    """
    folders = [path for pattern in (".old-step-*", "step-*") for path in (folder / "checkpoints").glob(pattern)]
    paths = {step: path for path in folders if (step := parse_step(path.name)) is not None and path.is_dir()}
    return {step: paths[step] for step in sorted(paths, reverse=True)}


@contract
def holds_run(folder: Path) -> bool:
    """Return whether a run has left something here that another one would overwrite."""
    metrics = folder / "metrics.jsonl"
    return bool(list_checkpoints(folder)) or (metrics.exists() and metrics.stat().st_size > 0)
