"""Any torch optimizer over a model, with one visible rule for what weight decay skips."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from research import rules
from research.ranges import NonNegativeFloat, PositiveFloat

INITIAL_SETTINGS = "as_built"  # the key in a parameter group


def build_param_groups(model: nn.Module, weight_decay: float, no_decay: Sequence[str]) -> list[dict[str, Any]]:
    """Two groups of named parameters: decayed, and not (the name holds one of `no_decay`).

    The embedding is decayed unless you say so: grokking on modular arithmetic needs it.
    """
    skipped: list[tuple[str, nn.Parameter]] = []
    decayed: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        (skipped if any(word in name for word in no_decay) else decayed).append((name, parameter))
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": skipped, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def from_base(
    model: nn.Module,
    base: partial[Optimizer],  # a torch optimizer class and its own settings
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
) -> Optimizer:
    """The optimizer itself, over the two groups."""
    rules.enforce(*map(rules.check_base_setting, base.keywords))
    return base(build_param_groups(model, weight_decay, no_decay), lr=lr)


def run_closure(closure: Callable[[], Any] | None) -> Any:
    """What a step's closure gives: the loss, whose gradients it computes; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def promote_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which a mean of numbers is kept: float32 of those in half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def restore_promoted_state(optimizer: Optimizer, saved: dict[str, Any], keys: Sequence[str]) -> None:
    """After a load_state_dict of `saved`: these parts of the state as they were saved. torch has rounded them to the
    parameter's type.
    """
    for then, group in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for index, p in zip(then["params"], group["params"], strict=True):
            for key in set(keys) & set(saved["state"].get(index, ())):
                optimizer.state[p][key] = saved["state"][index][key].to(p.device, promote_dtype(p.dtype), copy=True)


def remember_settings(optimizer: Optimizer) -> None:
    """Keep in each parameter group, once, the settings that it was built with: schedules and optimizers move them.

    A key that begins with _ is no setting but how far the optimizer is.
    """
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key not in ("params", "param_names") and key[0] != "_"}
        group.setdefault(INITIAL_SETTINGS, settings)
