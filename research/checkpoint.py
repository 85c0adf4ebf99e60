"""Checkpoints that are whole or not there, and that notice a flipped bit.

A checkpoint is a folder step-XXXXXXXX with `model.safetensors`, `state.pt` and `manifest.json`. It is written beside
its place, hashed while written, synced, and renamed once complete; so a kill at any moment leaves the old ones intact.
"""

import io
import json
import logging
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.optim import Optimizer

MODEL, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"
SETTINGS = "as_built"  # the key in a parameter group
log = logging.getLogger(__name__)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors on the host by name, each once: tied ones are kept under the first of their names."""
    first: dict[object, str] = {}
    named = model.state_dict()
    place = {k: (v.data_ptr(), v.shape, v.stride()) if v.numel() else k for k, v in named.items()}
    return {k: v.detach().cpu().contiguous() for k, v in named.items() if first.setdefault(place[k], k) == k}


def weights_digest(model: nn.Module) -> str:
    """sha256 over names and bytes of all weights: equal if and only if two runs ended in the same bits."""
    digest = sha256()
    for name, tensor in sorted(weights(model).items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(root: Path, step: int, model: nn.Module, optimizer: Optimizer, best: dict[str, float], task: str = "") -> Path:
    """Commit a checkpoint below `root` and return its folder. `best` is the best evaluation so far of `task`."""
    state = io.BytesIO()
    torch.save({"step": step, "optimizer": optimizer.state_dict(), "best": best, "task": task}, state)
    final = root / f"step-{step:08d}"
    draft = root / f".draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    files = {}
    for name, content in ((MODEL, save_safetensors(weights(model))), (STATE, state.getvalue())):
        _write(draft / name, content)
        files[name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    _write(draft / MANIFEST, json.dumps({"step": step, "files": files}, indent=1).encode())
    _sync(draft)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    _sync(root)
    return final


def verify(folder: Path) -> str:
    """Empty if the checkpoint is whole, else what is wrong with it: the file, what was expected, what was found."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            content = (folder / name).read_bytes()
            if len(content) != expected["bytes"]:
                return f"{name} has {len(content)} bytes, expected {expected['bytes']}"
            if (found := sha256(content).hexdigest()) != expected["sha256"]:
                return f"{name} has sha256 {found[:12]}, expected {expected['sha256'][:12]}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def find(path: Path) -> list[Path]:
    """The checkpoints that a path means, newest first: itself, or those of a run folder."""
    if (path / MANIFEST).exists():
        return [path]
    return sorted((path / "checkpoints").glob("step-*"), reverse=True)


def newest_good(path: Path) -> Path:
    """The newest checkpoint that is whole. Raises ValueError, naming each damage, when there is none."""
    damage: list[str] = []
    for folder in find(path):
        if not (wrong := verify(folder)):
            if damage:
                log.warning("resume: %s; going on from %s", "; ".join(damage), folder.name)
            return folder
        damage.append(f"{folder.name}: {wrong}")
    reasons = "; ".join(damage) or "it holds no checkpoints/step-*"
    raise ValueError(f"resume={path}: no usable checkpoint ({reasons}); start afresh without resume")


def restore(path: Path, model: nn.Module, optimizer: Optimizer, task: str = "") -> tuple[int, dict[str, float]]:
    """Load the newest good checkpoint into model and optimizer; return its step, and the best evaluation if of this task.

    The optimizer keeps the settings that it was built with where they are not those of the checkpoint's: lr=1e-4 beside
    resume= means that lr. Raises ValueError when it is of another model or optimizer, naming what differs.
    """
    folder = newest_good(path)
    loaded, own = load_safetensors((folder / MODEL).read_bytes()), weights(model)
    differing = [
        k for k in sorted(own.keys() | loaded.keys()) if k not in own or k not in loaded or own[k].shape != loaded[k].shape
    ]
    if differing:
        raise ValueError(f"resume={path} is of another model: {len(differing)} tensors differ, as {', '.join(differing[:3])}")
    model.load_state_dict(loaded, strict=False)  # a tied name is absent: its twin fills it
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
    remember_settings(optimizer)
    built = [group[SETTINGS] for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise ValueError(f"resume={path} is of another optimizer: {error}") from error
    for group, now in zip(optimizer.param_groups, built, strict=True):
        then = group.get(SETTINGS, {})
        group.update({key: value for key, value in now.items() if key not in then or then[key] != value})
        group[SETTINGS] = now
    return int(state["step"]), dict(state["best"]) if state.get("task") == task else {}


def remember_settings(optimizer: Optimizer) -> None:
    """Keep in each parameter group, once, the settings that it was built with: schedules and optimizers move them."""
    for group in optimizer.param_groups:
        group.setdefault(SETTINGS, {key: value for key, value in group.items() if key not in ("params", "param_names")})


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
