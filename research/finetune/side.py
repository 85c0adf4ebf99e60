"""Fine-tune a low rank in full precision beside frozen layers: the LoRA of peft."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from research.contracts import contract
from research.finetune.base import take_weights
from research.nn.lowrank import check_rank, select_layers
from research.ranges import Fraction, PositiveFloat, PositiveInt, check_settings
from research.rules import check_extra, enforce


def side(
    model: nn.Module,
    base: str | None = None,
    digest: str | None = None,
    rank: PositiveInt = 8,
    alpha: PositiveFloat = 16.0,
    dropout: Fraction = 0.0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = ("*head", "*embed*"),
) -> nn.Module:
    """Return the model with a base's frozen weights, where W x + alpha / rank B A dropout(x) is computed, and A and B learn.

    The adapters are peft's, in the model's own layers. Raise ValueError where peft is missing or no layer matches.
    """
    check_settings("finetune", side.__annotations__, locals())
    enforce(check_extra("finetune=side", "peft", "peft"))
    from peft import LoraConfig, inject_adapter_in_model

    layers = select_layers(take_weights(model, base, digest), include, exclude, "side", only_ternary=False)
    check_rank(layers, rank)
    model.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[*layers],
        bias="none",
    )
    inject_adapter_in_model(config, model)
    return model


@contract
def list_adapters(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers by name: each has a `base_layer` and `get_delta_weight`."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
@contract
def merge_side(model: nn.Module) -> nn.Module:
    """Add each adapter to the weight of its layer, in place; return the model, which is plain then.

    In full precision it computes the same to rounding. A ternary layer rounds the sum, which loses most of the adapter.
    """
    for name, layer in list_adapters(model).items():
        plain = layer.base_layer
        plain.weight.add_(layer.get_delta_weight("default"))
        model.set_submodule(name, plain)
    return model
