"""What the processes of one run agree on. With one process every function here is free."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

HOW_TO_START = "start it as: torchrun --nproc-per-node 2 train.py ...  (accelerate launch --cpu starts one process without MPI)"


def count() -> int:
    """Processes of this run: those that torchrun or accelerate launch started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 writes."""
    return dist.get_rank() if count() > 1 else 0


def launched() -> tuple[int, int]:
    """Rank and number of processes as the launcher's environment says, before they know each other."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if count() > 1:
        dist.all_reduce(value)
    return value


def highest(value: int) -> int:
    """The largest of all processes' numbers."""
    if count() == 1:
        return value
    device = torch.cuda.current_device() if dist.get_backend() == "nccl" else "cpu"
    agreed = torch.tensor(value, device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return int(agreed.item())


def everywhere(value: Any) -> Any:
    """Rank 0's value, on all."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gathered(value: Any) -> list[Any]:
    """Each process's value, by rank, on all."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        dist.barrier()
