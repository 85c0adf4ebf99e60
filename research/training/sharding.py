"""Models spread over processes: torch's fully_shard (FSDP2), and its distributed checkpoint for their parts.

Not accelerate's plugin: on a CPU it silently becomes plain data parallelism.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.contracts import contract
from research.nn.blocks import find_blocks
from research.training import distributed
from research.training.ema import Average
from research.training.manifest import hash_file

OPTIMIZER_STATE_PREFIX = "optimizer.state."  # before a parameter's name, and what is kept of it


@contract
def shard(model: nn.Module) -> None:
    """Spread the parameters, block by block, over the processes. Before the optimizer is built: they become new objects."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):
        return
    for block in find_blocks(model).values():
        fully_shard(block)
    fully_shard(model)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as a full one, on every process; return any other tensor as it is."""
    if distributed.world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor  # here: a run of one process need not wait for its import

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contract
def get_sharded_state(model: nn.Module, optimizer: Optimizer | None = None, average: Average | None = None) -> dict[str, Any]:
    """Return the sharded state, with names that do not depend on the number of processes."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer)
    if average:
        state["average"] = average.averages
    return state


@contract
def check_tensors(own: Mapping[str, Tensor], sizes: Mapping[str, torch.Size], what: str = "tensor") -> None:
    """Raise RuntimeError, naming the first, where these are not the same tensors with the same shapes."""
    for name in sorted(own.keys() ^ sizes.keys()):
        raise RuntimeError(f"the {what} {name} is in the {'model' if name in own else 'checkpoint'} alone")
    for name, tensor in own.items():
        if tensor.shape != sizes[name]:
            raise RuntimeError(
                f"the {what} {name} is {tuple(tensor.shape)} in the model, {tuple(sizes[name])} in the checkpoint"
            )


@contract
def load_full(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load full tensors into a model, sharded or not. Of tied tensors one name is enough.

    Raise RuntimeError where the model has others, or one of another shape. Then nothing is loaded.
    """
    own = model.state_dict(keep_vars=True)
    memory = {name: local_shard(tensor).data_ptr() or id(tensor) for name, tensor in own.items()}
    loaded = {memory[name] for name in tensors if name in own}
    needed = {name: own[name] for name in own if name in tensors or (own[name].numel() and memory[name] not in loaded)}
    check_tensors(needed, {name: tensor.shape for name, tensor in tensors.items()})
    if distributed.world_size() == 1:
        model.load_state_dict(tensors, strict=False)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, dict(tensors), options=StateDictOptions(full_state_dict=True, strict=False))


@contextmanager
def unwrap_failures() -> Iterator[None]:
    """Raise what has failed in a process: torch's distributed checkpoint wraps it into what is no Exception.

    An OSError and a signal remain what they are; all else is a RuntimeError.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        failure = next(failure for failure, _ in error.failures.values())
        if isinstance(failure, Exception) and not isinstance(failure, OSError):
            raise RuntimeError(f"{type(failure).__name__}: {failure}") from failure
        raise failure from None


@contract
def save_shards(sharded_state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the shards of this process. Return, on every process, size and digest of all files by their name."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    from research.training.shard_files import write_metadata

    with unwrap_failures():
        metadata = save(sharded_state, storage_writer=FileSystemWriter(folder))
    if distributed.rank() == 0:
        write_metadata(folder, metadata)
    names = distributed.broadcast(sorted(path.name for path in folder.iterdir()))
    own = names[distributed.rank() :: distributed.world_size()]
    parts = distributed.all_gather({f"{folder.name}/{name}": hash_file(folder / name) for name in own})
    return {name: entry for part in parts for name, entry in part.items()}


@contract
def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor; return any other tensor as it is."""
    if distributed.world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contract
def load_shards(
    model: nn.Module,
    folder: Path,
    listed: Collection[str],
    optimizer: Optimizer | None = None,
    average: Average | None = None,
) -> None:
    """Load the state from the files, however many processes wrote them. Averages that they do not hold are the weights.

    `listed` names the files that may be read, as the manifest does. Raise ValueError for any other, and for shards that only
    a pickle describes; RuntimeError where they hold other weights or averages, or cannot be read. Then nothing is loaded.
    """
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    from research.training.shard_files import Planner, Reader

    files = Reader(folder, listed)
    metadata = files.read_metadata().state_dict_metadata
    has_average = any(name.startswith("average.") for name in metadata)
    state = get_sharded_state(model, optimizer, average if has_average else None)
    for part, what in (("model", "tensor"), ("average", "average of")):
        if part in state:
            prefix = f"{part}."
            entries = {name.removeprefix(prefix): entry for name, entry in metadata.items() if name.startswith(prefix)}
            check_tensors(state[part], {name: get_size(entry) for name, entry in entries.items()}, what)
            state[part] = {name: torch.zeros_like(tensor) for name, tensor in state[part].items()}
    if optimizer:
        state["optimizer"]["state"] = allocate_optimizer_state(metadata, state["model"])
    with unwrap_failures():
        load(state, storage_reader=files, planner=Planner(), no_dist=distributed.world_size() == 1)
    set_model_state_dict(model, state["model"])
    if optimizer:
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    if average:
        average.load(state.get("average"))


def get_size(entry: Any) -> torch.Size:
    """Return the size of a tensor by its description; raise AttributeError for what is none."""
    return torch.Size(entry.size)


def allocate_optimizer_state(metadata: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Allocate the state that the files hold, by parameter: a fresh optimizer may keep less or more, as a filter is not on."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    state: dict[str, dict[str, Any]] = {}
    for key, entry in metadata.items():
        if key.startswith(OPTIMIZER_STATE_PREFIX):
            name, _, part = key.removeprefix(OPTIMIZER_STATE_PREFIX).rpartition(".")
            is_tensor = isinstance(entry, TensorStorageMetadata)
            value = empty_like_param(params[name], entry.size, entry.properties.dtype) if is_tensor else None
            state.setdefault(name, {})[part] = value
    return state


def empty_like_param(p: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return zeros of `size`, sharded like the parameter if they have its shape or are a stack of such; else not sharded."""
    if size == p.shape:
        return torch.zeros_like(p, dtype=dtype)
    if size[1:] == p.shape:
        return torch.stack([torch.zeros_like(p, dtype=dtype)] * size[0])
    return torch.zeros(size, dtype=dtype)
