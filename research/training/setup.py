"""What a run is made of before its first step: checked, wrapped and on its device."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from research.data.spec import Dataset, Split
from research.nn.blocks import recompute
from research.run_dir import ROOT
from research.training import distributed
from research.training.state import Callback, Stateful


def select_callbacks(callbacks: Sequence[Callback], sharded: bool) -> list[Callback]:
    """Return the callbacks of this process, those that save last: what they save includes the others' state."""
    if distributed.rank() > 0:
        callbacks = [callback for callback in callbacks if callback.saves and sharded]
    return sorted(callbacks, key=lambda callback: callback.saves)


def name_callbacks(callbacks: Sequence[Callback]) -> dict[str, Stateful]:
    """Return callbacks by the names that checkpoints know them by: the class and a count, as "Checkpoint 0"."""
    names = [type(callback).__name__ for callback in callbacks]
    return {f"{name} {names[:i].count(name)}": callbacks[i] for i, name in enumerate(names)}


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise ValueError where the optimizer holds parameters that the model does not have."""
    known = {id(p) for p in model.parameters()}
    if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer has other parameters than the model: build it after trainer.to_device(model)")


def wrap(model: nn.Module, checkpoint_activations: bool, compiled: bool, ddp: bool) -> nn.Module:
    """Return what the loop calls: the model, compiled and wrapped as requested."""
    model.train()
    if checkpoint_activations:
        recompute(model)
    if compiled:  # a cache of our own: a compile that was killed leaves a broken file in the shared one
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "outputs" / "compiled"))
        model.compile()
    return nn.parallel.DistributedDataParallel(model) if ddp else model


def select_splits(data: Dataset[Any], overfit: int, device: torch.device) -> tuple[Split, Split]:
    """Return the training and the held-back split on the device; with `overfit` both are the first so many samples."""
    part = slice(overfit or None)
    splits = (data.train, data.train if overfit else data.val)
    train, val = (Split(split.inputs[part], split.targets[part]).to(device) for split in splits)
    return train, val
