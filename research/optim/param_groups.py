"""Build the parameter groups of a model, with one rule for what weight decay skips; what all optimizers share."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research import rules
from research.contracts import contract
from research.ranges import NonNegativeFloat, PositiveFloat, check_settings

OptimizerType = TypeVar("OptimizerType", bound=Optimizer)  # partial is invariant: a partial[SGD] is no partial[Optimizer]
ParamGroup = dict[str, Any]
ParamGroups = list[ParamGroup]
INITIAL_SETTINGS = "as_built"  # key in a parameter group, as checkpoints store it


@contract
def split_group(group: ParamGroup, words: Sequence[str], others: ParamGroup, matching: ParamGroup) -> ParamGroups:
    """Return up to two groups: names that contain one of `words` get the settings `matching`, the others `others`."""
    parts: dict[bool, list[tuple[str, nn.Parameter]]] = {False: [], True: []}
    for name, p in group["params"]:
        parts[any(word in name for word in words)].append((name, p))
    return [group | (matching if kind else others) | {"params": part} for kind, part in parts.items() if part]


@contract
def build_param_groups(model: nn.Module, weight_decay: float, no_decay: Sequence[str]) -> ParamGroups:
    """Return up to two groups of named parameters: with weight decay, and without (the name contains one of `no_decay`).

    By default the embedding is decayed: grokking on modular arithmetic needs it. Parameters that do not learn are in none.
    """
    group = {"params": [(name, p) for name, p in model.named_parameters() if p.requires_grad]}
    return split_group(group, no_decay, {"weight_decay": weight_decay}, {"weight_decay": 0.0})


def from_base(
    model: nn.Module,
    base: partial[OptimizerType],  # a torch optimizer class and its own settings
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
) -> Optimizer:
    """Return the optimizer of `base` over the two groups of `build_param_groups`."""
    check_settings("optim", from_base.__annotations__, locals())
    check_base(base)
    return base(build_param_groups(model, weight_decay, no_decay), lr=lr)


@contract
def check_base(base: Any) -> None:
    """Raise ValueError for a setting of the base that it ignores, or that is out of range. A class has no settings here."""
    if isinstance(base, partial):
        rules.enforce(*starmap(rules.check_base_setting, base.keywords.items()))
        if "betas" in base.keywords and isinstance(base.func, type):
            rules.enforce(rules.check_betas(f"{base.func.__module__}.{base.func.__name__}", base.keywords["betas"]))


def run_closure(closure: Callable[[], Any] | None) -> Any:
    """Call a step's closure, which computes the gradients, and return its loss; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def promote(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least: a copy of one in half precision, else the tensor itself."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contract
def restore_promoted_state(optimizer: Optimizer, saved: dict[str, Any], keys: Sequence[str]) -> None:
    """After a load_state_dict of `saved`, restore these state entries in float32: torch casts them to the parameter's type."""
    for saved_group, group in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for index, p in zip(saved_group["params"], group["params"], strict=True):
            for key in set(keys) & set(saved["state"].get(index, ())):
                optimizer.state[p][key] = saved["state"][index][key].to(p.device, promote(p).dtype, copy=True)


@contract
def remember_settings(optimizer: Optimizer) -> None:
    """Store in each parameter group, once, the settings that it was built with: schedules and optimizers change them.

    Keys that begin with _ are the optimizer's progress, not settings.
    """
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key not in ("params", "param_names") and key[0] != "_"}
        group.setdefault(INITIAL_SETTINGS, settings)
