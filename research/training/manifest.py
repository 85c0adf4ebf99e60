"""manifest.json: what a checkpoint holds, typed and versioned. It is written last, so it says that the rest is there.

Torch is not imported: the preflight chooses by it the run that resume=auto goes on with.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from research.contracts import contract
from research.run_dir import list_checkpoints, open_file, parse_step, read_text

MANIFEST_FILE, SHARDS_FOLDER = "manifest.json", "shards"


class DamagedError(ValueError):
    """A checkpoint is not what was written; the message says which file, what was expected and what was found."""


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says of a checkpoint."""

    step: int
    identity: dict[str, str]  # what must be the same where the run is resumed
    samples: int | None = None  # training samples consumed; None: version 1 did not count them
    config: dict[str, Any] = field(default_factory=dict)  # resolved; empty for a run without one
    numerics: dict[str, Any] = field(default_factory=dict)  # what bit-exactness rests on: threads, instruction set ...
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> "bytes" and "sha256"
    version: int = 2

    @property
    def is_sharded(self) -> bool:
        """True where the files of the shards are listed: what merely lies there is not read."""
        return any(name.startswith(f"{SHARDS_FOLDER}/") for name in self.files)

    def to_json(self) -> str:
        """Return the text of the file, which ends with a digest of all that stands before it."""
        content = json.loads(json.dumps(asdict(self), default=str))  # as it will be read: keys of a config may be numbers
        return json.dumps(content | {"sha256": _hash_json(content)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Return a manifest of this version or of version 1, which named none. Raise DamagedError for a wrong digest."""
        content = json.loads(text)
        if content.pop("sha256") != _hash_json(content):
            raise DamagedError(f"{MANIFEST_FILE} does not have the sha256 that it names")
        if content.get("version", 1) > cls.version:
            raise DamagedError(f"{MANIFEST_FILE} has version {content['version']}: a later Grokbit wrote it")
        kinds = {"step": int, "identity": dict, "files": dict}
        if wrong := [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]:
            raise DamagedError(f"{MANIFEST_FILE} holds no {wrong[0]}")
        manifest = cls(**{"version": 1} | content)
        if foreign := [name for name in manifest.files if not re.fullmatch(rf"({SHARDS_FOLDER}/)?[\w.-]+", name)]:
            raise DamagedError(f"{MANIFEST_FILE} lists {foreign[0]!r}, which is no file of a checkpoint")
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint. Raise DamagedError where it cannot be read."""
    try:
        return Manifest.from_json(read_text(folder / MANIFEST_FILE))
    except DamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST_FILE}: {type(error).__name__}: {error}") from error


def _hash_json(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contract
def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint, wherever it lies and whatever it is called; RUN/checkpoints/step-* is always."""
    return (path / MANIFEST_FILE).is_file() or (parse_step(path.name) is not None and path.parent.name == "checkpoints")


@contract
def rank_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run with their steps, the furthest first.

    The step is the one in the manifest; a folder may have been renamed. Its name counts where the manifest is damaged.
    """
    ranked = []
    for step, folder in list_checkpoints(run).items():
        try:
            ranked.append((read_manifest(folder).step, folder))
        except DamagedError:
            ranked.append((step, folder))
    return sorted(ranked, key=lambda pair: pair[0], reverse=True)


@contract
def is_intact(folder: Path) -> bool:
    """Return whether every file of a checkpoint is what its manifest says. Each is read once."""
    try:
        for name, expected in read_manifest(folder).files.items():
            check_file(folder / name, expected)
    except DamagedError:
        return False
    return True


@contract
def hash_file(path: Path) -> dict[str, Any]:
    """Return "bytes" and "sha256" of a file that may be larger than the memory."""
    with open_file(path) as file:
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


@contract
def check_file(path: Path, expected: dict[str, Any]) -> None:
    """Raise DamagedError where a file is not what a manifest says of it."""
    with explain_unreadable(path):
        actual = hash_file(path)
    check_digest(path.name, actual, expected)


def check_digest(name: str, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise DamagedError where size or sha256 of a file differ from what a manifest says of it."""
    if actual["bytes"] != expected["bytes"]:
        raise DamagedError(f"{name} has {actual['bytes']} bytes, expected {expected['bytes']}")
    if actual["sha256"] != expected["sha256"]:
        raise DamagedError(f"{name} has sha256 {actual['sha256'][:12]}, expected {expected['sha256'][:12]}")


@contextmanager
@contract
def explain_unreadable(path: Path) -> Iterator[None]:
    """Raise DamagedError with the file's name in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}") from error
