"""Checkpoints that are whole or not there, and that notice a flipped bit.

A checkpoint is a folder step-XXXXXXXX: `model.safetensors`, `average.safetensors` where weights are averaged, `state.pt`, and
`manifest.json` with the size and the sha256 of each. It is written into a draft, hashed while written, synced, and renamed once
complete; so a kill at any moment leaves the old ones intact.
"""

import io
import json
import logging
import math
import os
import shutil
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.utils.serialization import config as serialization

from research.cli import first_line
from research.contracts import contract
from research.ranges import MAX_NESTING
from research.run_dir import parse_step, sync, to_run_folder
from research.training import distributed, sharding
from research.training.files import HashingFile, open_hashed, remove
from research.training.manifest import (
    MANIFEST_FILE,
    SHARDS_FOLDER,
    DamagedError,
    Manifest,
    check_digest,
    check_file,
    explain_unreadable,
    is_checkpoint,
    rank_checkpoints,
    read_manifest,
)

STATE_FILE, TENSORS_SUFFIX = "state.pt", ".safetensors"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
log = logging.getLogger(__name__)


@dataclass
class Snapshot:
    """All of a run at one step."""

    manifest: Manifest
    tensors: dict[str, dict[str, Tensor]]  # a file each: "model", and "average" where weights are averaged
    state: dict[str, Any]  # all else: numbers, texts, lists, dicts and tensors
    sharded_state: dict[str, Any] | None = None  # spread over the processes: to be written by all of them together

    @property
    def step(self) -> int:
        return self.manifest.step


@contract
def get_weights(model: nn.Module, learnt_only: bool = False) -> dict[str, Tensor]:
    """Return the model's tensors by name, complete and on the host. Tied ones stand once, under their first name.

    With `learnt_only` leave out parameters that do not learn.
    """
    first, frozen = dict[object, str](), list_frozen(model) if learnt_only else set()
    named = {name: sharding.full_tensor(tensor) for name, tensor in model.state_dict().items() if name not in frozen}
    memory = {k: (v.data_ptr(), v.shape, v.stride()) if v.numel() else k for k, v in named.items()}
    return {k: v.detach().cpu().contiguous() for k, v in named.items() if first.setdefault(memory[k], k) == k}


@contract
def list_frozen(model: nn.Module) -> set[str]:
    """Return the names of the parameters that do not learn, which a checkpoint beside its base leaves out."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


@contract
def hash_weights(model: nn.Module) -> str:
    """Return the sha256 over names and bytes of all weights: equal only if two runs ended in the same bits."""
    digest = sha256()
    for name, tensor in sorted(get_weights(model).items()):
        digest.update(name.encode())
        digest.update(_view_bytes(tensor))
    return digest.hexdigest()


@contract
def commit(root: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint below `root` and return its folder. Of a sharded one every process writes its part.

    Raise OSError, as on a full disk or where the folder of `root` is gone, with the older checkpoints as they were and nothing
    of this one left. The other processes that write a part raise RuntimeError then.
    """
    final, draft = root / f"step-{snapshot.step:08d}", root / f".draft-{snapshot.step:08d}"
    synchronize = nullcontext if snapshot.sharded_state is None else distributed.synchronize_errors
    is_first, files = snapshot.sharded_state is None or distributed.rank() == 0, {}
    try:
        with synchronize():
            if is_first:
                clean(root)
                root.mkdir(exist_ok=True)  # not its parents: a run folder that was moved meanwhile must not come back
                draft.mkdir()
                sync(root)
                sync(root.parent)
        with synchronize():
            if snapshot.sharded_state is not None:
                files = sharding.save_shards(snapshot.sharded_state, draft / SHARDS_FOLDER)
                sync(draft / SHARDS_FOLDER)
        with synchronize():
            if is_first:
                _write(draft, snapshot, files)
                _replace(final, draft)
    except BaseException:
        if is_first:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return final


def _write(draft: Path, snapshot: Snapshot, files: dict[str, Any]) -> None:
    """Write all files but the shards, the manifest last."""
    for name, tensors in snapshot.tensors.items():
        with open_hashed(draft / f"{name}{TENSORS_SUFFIX}", files) as file:
            _write_safetensors(tensors, file)
    without_crc = serialization.patch("save.compute_crc32", False)  # type: ignore[attr-defined]
    with open_hashed(draft / STATE_FILE, files) as file, without_crc:  # sha256 is the better check
        torch.save(snapshot.state, file)  # type: ignore[arg-type]
    with open_hashed(draft / MANIFEST_FILE, {}) as file:
        file.write(replace(snapshot.manifest, files=files).to_json().encode())


@contract
def clean(root: Path) -> None:
    """Remove what a kill in the middle of a save has left. A checkpoint that was about to be replaced comes back."""
    for old in root.glob(".old-step-*"):
        final = root / old.name.removeprefix(".old-")
        if final.is_dir():
            remove(old)
        else:
            remove(final)  # a file, or a link that leads nowhere
            old.rename(final)
    for draft in root.glob(".draft-*"):
        remove(draft)


def _replace(final: Path, draft: Path) -> None:
    """Rename the complete draft to its final name. An older checkpoint of that step makes way only then."""
    sync(draft)
    old = final.with_name(f".old-{final.name}")
    if os.path.lexists(final):  # also a link that leads nowhere
        final.rename(old)
    draft.rename(final)
    sync(final.parent)
    with suppress(OSError):
        remove(old)


def _write_safetensors(tensors: dict[str, Tensor], file: HashingFile) -> None:
    """Write the length of a JSON header, the header, and the tensors' memory: the library first copies all of it twice."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        offset, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(_view_bytes(tensor))


def _view_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the host, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def read(folder: Path) -> Snapshot:
    """Return a checkpoint, every byte of it checked against its manifest. Raise DamagedError."""
    manifest, name = read_manifest(folder), MANIFEST_FILE
    tensors, state = dict[str, dict[str, Tensor]](), None
    try:
        for name, expected in manifest.files.items():
            content = _read_checked(folder / name, expected)
            if name.endswith(TENSORS_SUFFIX):
                tensors[Path(name).stem] = load_safetensors(content)
            elif name == STATE_FILE:
                state = torch.load(io.BytesIO(content), weights_only=True)
    except (DamagedError, MemoryError):
        raise
    except UnpicklingError as error:
        raise DamagedError(f"{name} holds what cannot be loaded") from error
    except Exception as error:  # with right digests: safetensors, pickle, zip and JSON have no common class of errors
        raise DamagedError(f"{name} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    if not (tensors or (folder / SHARDS_FOLDER).is_dir()):
        raise DamagedError(f"{MANIFEST_FILE} lists no weights")
    if not isinstance(state, dict):
        raise DamagedError(f"{STATE_FILE} holds no state")
    return Snapshot(manifest, tensors, state)


def _read_checked(path: Path, expected: dict[str, Any]) -> bytes:
    """Return a file's bytes, checked; none of a shard, which is read where it is needed."""
    if path.parent.name == SHARDS_FOLDER:
        check_file(path, expected)
        return b""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DamagedError(f"{path.name} is no regular file")
    with explain_unreadable(path):
        content = path.read_bytes()
    check_digest(path.name, {"bytes": len(content), "sha256": sha256(content).hexdigest()}, expected)
    return content


@contract
def load_newest(path: Path, until: float = math.inf, setting: str = "resume") -> tuple[Path, Snapshot]:
    """Return the furthest intact checkpoint of a run up to step `until`, or the one at `path`, and its folder.

    Raise ValueError where there is none; it names the setting that gave the path, and every damage.
    """
    damage: list[str] = []
    run = to_run_folder(path)
    for folder in [path] if is_checkpoint(path) else [folder for step, folder in rank_checkpoints(run) if step <= until]:
        try:
            snapshot = read(folder)
        except DamagedError as error:
            damage.append(f"{folder.name}: {error}")
        else:
            if damage:
                log.warning("%s: %s; resuming from %s", setting, "; ".join(damage), folder.name)
            if parse_step(folder.name) not in (None, snapshot.step):
                log.warning("%s: %s holds step %d, as its %s says", setting, folder.name, snapshot.step, MANIFEST_FILE)
            return folder, snapshot
    reasons = "; ".join(damage) or "it holds no checkpoints/step-*"
    fix = "start afresh without resume" if setting == "resume" else "give another run"
    raise ValueError(f"{setting}={path}: no usable checkpoint ({reasons}); {fix}")


@contract
def describe_structure(model: nn.Module) -> str:
    """Name a model but for its weights: its class, and a digest of its tensors' names and shapes."""
    shapes = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(model.state_dict().items()))
    return f"{type(model).__name__.removeprefix('FSDP')} {sha256(shapes.encode()).hexdigest()[:12]}"


def copy_to_host(value: Any, depth: int = MAX_NESTING) -> Any:
    """Copy tensors in containers to the host, so that training can continue meanwhile. Raise ValueError below `depth`."""
    if not depth:
        raise ValueError(f"a state has containers in containers {MAX_NESTING} deep: state_dict() must return a flatter one")
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_host(inner, depth - 1) for key, inner in value.items()}
    is_group = isinstance(value, list | tuple | set)
    return type(value)(copy_to_host(inner, depth - 1) for inner in value) if is_group else value
