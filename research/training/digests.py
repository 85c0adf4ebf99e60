"""Digests of weights, by which a run knows its base and its teacher wherever they lie. Torch is not imported."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from research.cli import announce_wait
from research.contracts import contract
from research.files.weights import list_weight_files
from research.run_dir import expand_path, to_run_folder
from research.training.manifest import (
    DamagedError,
    check_digest,
    explain_unreadable,
    hash_file,
    is_checkpoint,
    rank_checkpoints,
    read_manifest,
)


@contract
def hash_checkpoint(folder: Path) -> str:
    """Return a digest of a checkpoint's weights: the sha256 of its file of them, or of several with their names.

    A checkpoint that holds adapters alone names its own base, which counts too. Raise DamagedError where it cannot be read.
    """
    manifest = read_manifest(folder)
    digests = {name: str(entry["sha256"]) for name, entry in manifest.files.items() if not name.endswith(".pt")}
    base = manifest.identity.get("base")
    return combine_digests(digests | ({"base": base} if base else {}))


@contract
def hash_run(run: Path) -> str:
    """Return the digest of a checkpoint's weights, or of a run's newest intact one. Raise ValueError where there is none."""
    damage = []
    for folder in [run] if is_checkpoint(run) else [folder for _, folder in rank_checkpoints(to_run_folder(run))]:
        try:
            for name, entry in read_manifest(folder).files.items():
                with explain_unreadable(folder / name), announce_wait(f"the digest of {folder / name}"):
                    actual = {"bytes": (folder / name).stat().st_size, "sha256": hash_once(folder / name)}
                check_digest(name, actual, entry)
            return hash_checkpoint(folder)
        except DamagedError as error:
            damage.append(f"{folder.name}: {error}")
    raise ValueError(f"it has no usable checkpoint ({'; '.join(damage) or 'it holds no checkpoints/step-*'})")


@contract
def find_weights(path: object, digest: str) -> Path | None:
    """Return a run, checkpoint or pretrained folder of weights with a digest, or else the checkpoint of its run."""
    run = expand_path(str(path))
    for folder in (run, *(folder for _, folder in rank_checkpoints(to_run_folder(run)))):
        for read in (hash_run, lambda folder: hash_folder(str(folder))):
            with suppress(ValueError, DamagedError):
                if read(folder) == digest:
                    return folder
    return None


def hash_folder(folder: str, setting: str = "model.folder") -> str:
    """Return a digest of a pretrained folder's weights and of the config.json that says what they compute.

    Raise ValueError, which names the setting, where it has none.
    """
    path = expand_path(folder)
    try:
        files = list_weight_files(path)
        digests = {file.name: hash_once(file) for file in [path / "config.json", *files]}
    except OSError as error:
        raise ValueError(f"{setting}={folder}: {error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{setting}={folder} cannot be read: {error}\ngive a folder that save_pretrained wrote") from error
    if not files:
        raise ValueError(f"{setting}={folder} has no weights to begin at\ngive a folder that save_pretrained wrote")
    return combine_digests(digests)


def hash_once(path: Path) -> str:
    """Return the sha256 of a file, which a command reads once, unless it is changed meanwhile. Raise OSError."""
    status = path.stat()
    return _hash_stamped(path, status.st_size, status.st_mtime_ns)


@cache
def _hash_stamped(path: Path, size: int, mtime_ns: int) -> str:
    return str(hash_file(path)["sha256"])


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the only digest, or the sha256 of several with their names."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()).hexdigest()
