"""manifest.json: what a checkpoint holds, typed and versioned. It is written last, so it says that the rest is there."""

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

MANIFEST_FILE = "manifest.json"


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
        return cls(**{"version": 1} | content)


def _hash_json(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
