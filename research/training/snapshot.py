"""A run's state as a checkpoint holds it, and back: everything that the next step depends on, and what tells its story."""

import math
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.optim.param_groups import INITIAL_SETTINGS, remember_settings
from research.training import checkpoint, distributed, sharding
from research.training.checkpoint import Snapshot, get_weights
from research.training.ema import Average
from research.training.state import State

PROGRESS_FIELDS = {  # attributes of State by their key in state.pt
    "step": "step",
    "pending": "eval_pending",
    "metrics": "metrics",
    "best": "best",
    "safe": "last_finite_checkpoint",
    "rollbacks": "rollbacks",
    "halvings": "oom_halvings",
    "seconds": "seconds",
    "total": "loss_sum",
    "counted": "loss_count",
    "told": "extra_metrics",
    "grad_norm": "grad_norm",
}


def capture(state: State) -> Snapshot:
    """The run as it is now. Its tensors are the run's own: write or copy them before the next step."""
    progress = {key: getattr(state, name) for key, name in PROGRESS_FIELDS.items()} | {"task": state.task}
    progress["told"] = {name: float(value) for name, value in state.extra_metrics.items()}
    progress |= {"total": float(state.loss_sum), "counted": int(state.loss_count), "grad_norm": float(state.grad_norm)}
    parts = {name: part.state_dict() for name, part in state.stateful.items()}
    for name, part in parts.items():
        _check_serializable(part, f"{name}.state_dict()")
    rest = {"progress": progress, "parts": parts}
    if state.sharded:
        return Snapshot(
            state.step, {}, rest, get_identity(state), sharding.get_sharded_state(state.model, state.optimizer, state.average)
        )
    _check_serializable(memory := state.optimizer.state_dict(), f"{type(state.optimizer).__name__}.state_dict()")
    tensors = {"model": get_weights(state.model)}
    if state.average:
        tensors["average"] = {name: tensor.cpu() for name, tensor in state.average.averages.items()}
    return Snapshot(state.step, tensors, rest | {"optimizer": memory}, get_identity(state))


def load_newest(path: Path, until: int | None = None) -> tuple[Path, Snapshot]:
    """The newest good checkpoint that `path` means: the same one in all processes, as the first of them sees it."""
    if distributed.world_size() == 1:
        return checkpoint.load_newest(path, until)
    folder, found = checkpoint.load_newest(path, until) if distributed.rank() == 0 else (path, None)
    folder = distributed.broadcast(folder)
    return folder, found or checkpoint.read(folder)


def get_identity(state: State) -> dict[str, str]:
    """What must be the same where a run goes on; but for the config, which only says what it came from."""
    return {
        "model": describe_structure(state.model),
        "optimizer": type(state.optimizer).__name__,
        "data": state.data.digest[:12],
        "config": state.config,
    }


def describe_structure(model: nn.Module) -> str:
    """What a model is, but for its weights: its class, and a digest of its tensors' names and shapes."""
    shapes = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(model.state_dict().items()))
    return f"{type(model).__name__.removeprefix('FSDP')} {sha256(shapes.encode()).hexdigest()[:12]}"


def resume(state: State, path: Path, until: int | None = None) -> Path:
    """Go on from the newest good checkpoint that `path` means, of no later step than `until`, and return it.

    Settings of the optimizer that were changed since are those given now: lr=1e-4 beside resume= means that lr. The
    averages begin at the weights where the checkpoint has none. Raises ValueError where no checkpoint is whole, where
    the model, the optimizer or the data is another one, or where more steps are done than are asked for.
    """
    folder, snapshot = load_newest(path, until)
    _check_identity(snapshot, state, path, ("model", "optimizer", "data"))
    progress = snapshot.state["progress"]
    if progress["step"] > state.steps:
        raise ValueError(f"resume: step {snapshot.step} of {state.steps} is done; give trainer.steps more than {snapshot.step}")
    _load(snapshot, folder, state)
    for name, part in state.stateful.items():
        if held := snapshot.state["parts"].get(name):
            part.load_state_dict(held)
    for key, name in PROGRESS_FIELDS.items():
        setattr(state, name, progress[key])
    if progress["task"] != state.task:
        state.best = {}  # of another monitor or of other samples
    state.first_step, state.seconds_before = state.step, state.seconds
    return folder


def begin_from(state: State, path: Path) -> Path:
    """A fresh run from the weights alone of the newest good checkpoint that `path` means; return it.

    They are the averages where it has them. Raises ValueError where no checkpoint is whole or the model is another one.
    """
    folder, snapshot = load_newest(path)
    _check_identity(snapshot, state, path, ("model",))
    load_weights(state.model, folder, snapshot)
    if state.average:
        state.average.reset()
    return folder


def load_weights(model: nn.Module, folder: Path, snapshot: Snapshot) -> None:
    """A checkpoint's weights into the model that it is of: the averages where it has them."""
    if (folder / checkpoint.SHARDS_FOLDER).exists():
        sharding.load_shards(model, folder / checkpoint.SHARDS_FOLDER)
        average = Average(model, 0.0)
        if sharding.load_average(average, folder / checkpoint.SHARDS_FOLDER):
            average.swap()
    else:
        sharding.load_full(model, snapshot.tensors["model"] | snapshot.tensors.get("average", {}))


def _check_identity(snapshot: Snapshot, state: State, path: Path, keys: tuple[str, ...]) -> None:
    here = get_identity(state)
    differing = [f"{key} is {here[key]} here, was {snapshot.identity.get(key)} there" for key in keys
                 if here[key] != snapshot.identity.get(key)]  # fmt: skip
    if differing:
        fix = "give what it was trained with, or resume.weights_only=true for a fresh run from its weights"
        raise ValueError(f"resume={path} is of another run: {'; '.join(differing)}\n{fix}")


def _load(snapshot: Snapshot, folder: Path, state: State) -> None:
    """Weights, averages and the optimizer's memory."""
    remember_settings(state.optimizer)
    built = [group[INITIAL_SETTINGS] for group in state.optimizer.param_groups]
    if (folder / checkpoint.SHARDS_FOLDER).exists():
        sharding.load_shards(state.model, folder / checkpoint.SHARDS_FOLDER, state.optimizer)
        if state.average and not sharding.load_average(state.average, folder / checkpoint.SHARDS_FOLDER):
            state.average.reset()
    elif state.sharded:
        raise ValueError(f"resume={folder} was not saved by trainer=fsdp\ngo on without it, or give resume.weights_only=true")
    else:
        sharding.load_full(state.model, snapshot.tensors["model"])
        if state.average:
            state.average.load(snapshot.tensors.get("average", snapshot.tensors["model"]))
        try:
            state.optimizer.load_state_dict(snapshot.state["optimizer"])
        except ValueError as error:
            fix = "give the optim.* settings that it was trained with, or resume.weights_only=true"
            raise ValueError(f"resume={folder}: the optimizer groups other parameters here: {error}\n{fix}") from error
    for group, now in zip(state.optimizer.param_groups, built, strict=True):
        then = group.get(INITIAL_SETTINGS, {})
        group.update({key: value for key, value in now.items() if key not in then or then[key] != value})
        group[INITIAL_SETTINGS] = now


def _check_serializable(value: Any, name: str) -> None:
    """Raises TypeError for what could be written but not read again: better told at the first save than at the resume."""
    if type(value) in (dict, OrderedDict):
        value = [*value.keys(), *value.values()]
    if type(value) in (list, tuple, set):
        for inner in value:
            _check_serializable(inner, name)
    elif type(value) not in (bool, int, float, str, bytes, type(None), Tensor, nn.Parameter):
        raise TypeError(f"{name} holds a {type(value).__name__}: give numbers, texts, lists, dicts and tensors")


def has_finite_weights(state: State) -> bool:
    """Whether every weight is finite; of sharded ones, in all processes."""
    mine = [part for p in state.model.parameters() if (part := sharding.local_shard(p.detach())).numel()]
    ends = [end for part in mine for end in part.aminmax()]  # a fraction of isfinite's time, and NaN comes through
    broken = bool(ends) and not all(map(math.isfinite, torch.stack(ends).tolist()))
    return not (distributed.all_reduce_max(broken) if state.sharded else broken)


def copy_to_host(value: Any) -> Any:
    """Tensors at any depth of dicts and lists copied to the host, so that training can go on meanwhile."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_host(inner) for key, inner in value.items()}
    return [copy_to_host(inner) for inner in value] if isinstance(value, list) else value
