"""What the processes of one run agree on. With one process every function here is free."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from research import rules
from research.cli import announce_wait
from research.contracts import contract
from research.signals import get_launched_ranks


@contract
def make_accelerator(device: str, precision: str) -> Accelerator:
    """Return the device, the precision and the processes of a run. Raise ValueError where some processes are missing."""
    started = get_launched_ranks()[1]
    AcceleratorState._reset_state(reset_partial_state=True)  # it is global: a sweep makes one after the other
    cpu = device == "cpu" or not torch.accelerator.is_available()  # else several processes on a CPU stay apart
    with announce_wait(f"all {started} processes of this run to start") if started > 1 else nullcontext():
        accelerator = Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision)
    if (count := accelerator.num_processes) != started:
        raise ValueError(f"{started} processes were started, accelerate made {count} of them\n{rules.LAUNCH_HINT}")
    return accelerator


@contract
def describe(sharded: bool) -> str:
    """Describe the actual process group; some launchers start fewer processes than requested."""
    if world_size() == 1:
        return "1 process"
    return f"{world_size()} processes, {'fsdp' if sharded else 'ddp'} over {dist.get_backend()}"


def world_size() -> int:
    """Return the number of processes of this run: those that torchrun or accelerate launch started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@atexit.register
def destroy_process_group() -> None:
    """End the groups' threads before the program ends: now and then it aborts where they outlive it."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number; 0 writes."""
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


@cache
def _get_host_group(world_group: Any) -> Any:
    """Return a group whose messages stay on the host: no process waits for a GPU to finish its step."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else world_group


@contract
def all_reduce_max(value: int) -> int:
    """Return the maximum over all processes."""
    if world_size() == 1:
        return value
    agreed = torch.tensor(int(value))
    dist.all_reduce(agreed, dist.ReduceOp.MAX, group=_get_host_group(dist.group.WORLD))
    return int(agreed.item())


@contract
def broadcast(value: Any) -> Any:
    """Return rank 0's value, on every process."""
    return all_gather(value)[0]  # the values are small, and seldom needed


@contract
def all_gather(value: Any) -> list[Any]:
    """Return the values of all processes, by rank, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_get_host_group(dist.group.WORLD))
    return values


@contextmanager
def synchronize_errors() -> Iterator[None]:
    """Let every process raise if one does: the others raise RuntimeError. All leave the block together."""
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if all_reduce_max(failed is not None):
        raise failed or RuntimeError("another process failed: see its message")
