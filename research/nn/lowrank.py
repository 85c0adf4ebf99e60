"""Fine-tune BitLinears whose weights stay as they are: by a low rank inside the rounding, or by a gain an output.

Both are parametrizations of torch: `layer.weight` is computed from the frozen weight and what learns, and the layer rounds it
as any other. So the gradient is BitLinear's straight-through one and the chain rule, and a plain layer that holds the
computed weight gives the same bits: `merge_adapters` makes it one.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from research.contracts import contract
from research.nn.bitlinear import BitLinear, bitlinear_layers, has_hooks
from research.nn.blocks import find_useless_pattern, match_names
from research.nn.quantize import Quantizer
from research.options.finetuning import get_gain_settings

NO_LAYER_FIX = "give finetune=full, or another base, as a run of model=bitnet"


class LowRank(nn.Module):
    """W + alpha / rank B A (Hu et al. 2021, arXiv 2106.09685, section 4.1), which begins as W."""

    def __init__(self, weight: Float[Tensor, "out in"], rank: int, alpha: float) -> None:
        super().__init__()
        self.scaling = alpha / rank
        self.lora_a = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.lora_b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        with torch.autocast(weight.device.type, enabled=False):  # merged, it is computed in full precision
            return torch.addmm(weight, self.lora_b, self.lora_a, alpha=self.scaling)


class Gain(nn.Module):
    """A gain an output, which begins as 1. What learns is gain - 1, so weight decay pulls it to the base."""

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        self.gain_minus_one = nn.Parameter(weight.new_zeros(weight.shape[0], 1))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight * (1 + self.gain_minus_one)


@contract
def add_low_rank(model: nn.Module, rank: int, alpha: float, include: Sequence[str], exclude: Sequence[str]) -> nn.Module:
    """Let a low rank learn inside each BitLinear whose name matches, in place; all else is frozen. Return the model.

    Raise ValueError, with nothing changed, where no layer matches or the rank is above a layer's smaller side.
    """
    layers = select_layers(model, include, exclude, "inside")
    check_rank(layers, rank)
    model.requires_grad_(False)
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
    return model


@torch.no_grad()
@contract
def add_gains(model: nn.Module) -> nn.Module:
    """Let one gain an output of every BitLinear learn, in place; all else is frozen. Return the model.

    A layer's weight becomes codes times scale times gain. With a scale an output, its maximum, that is a ternary weight again:
    rounding finds the same codes, their signs those of the gain. Raise ValueError for layers that are not ternary.
    """
    for name, layer in select_layers(model, ("*",), (), "gains").items():
        if isinstance(layer, BitLinear) and not layer.quantizer.is_ternary:
            bits = f"model.linear.weight_bits={layer.quantizer.weight_bits}"
            raise ValueError(
                f"finetune=gains: {name} has {bits}: a gain folds into ternary weights alone\ngive finetune=inside"
            )
    model.requires_grad_(False)
    for layer in bitlinear_layers(model).values():
        codes, scale = layer.quantizer.quantize_weight(layer.weight)
        layer.weight.copy_(codes * scale)
        layer.quantizer = make_gain_quantizer(layer.quantizer)
        parametrize.register_parametrization(layer, "weight", Gain(layer.weight))
    return model


def make_gain_quantizer(quantizer: Quantizer) -> Quantizer:
    """Return the quantizer that gives back ternary codes times any scale an output, or a group of inputs, to the bit."""
    return replace(quantizer, **get_gain_settings(quantizer.granularity))


@contract
def let_norms_learn(model: nn.Module) -> None:
    """Let the parameters of all norms learn: of modules whose class is called so."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            for p in module.parameters(recurse=False):
                p.requires_grad_()


def select_layers(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], kind: str, only_ternary: bool = True
) -> dict[str, nn.Linear]:
    """Return the linear layers that match, by name: BitLinears alone, or all but a head that is tied to an embedding.

    Raise ValueError where there are none, or they cannot be fine-tuned so.
    """
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BitLinear if only_ternary else nn.Linear)}
    layers = {name: layer for name, layer in layers.items() if id(layer.weight) not in tied}
    if not layers:
        what = "ternary layer: nothing inside a rounding" if only_ternary else "linear layer: nothing beside one"
        raise ValueError(f"finetune={kind}: the base has no {what} can learn\n{NO_LAYER_FIX}")
    check_patterns(layers, include, exclude)
    chosen, owners = {name: layers[name] for name in match_names(layers, include, exclude)}, dict[int, str]()
    for name, layer in chosen.items():
        if has_hooks(layer) or parametrize.is_parametrized(layer) or (only_ternary and type(layer) is not BitLinear):
            raise ValueError(f"finetune={kind}: {name} has hooks, a computed weight or a class of its own\nleave it out")
        if isinstance(layer, BitLinear) and layer.warmup:
            fix = "give model.linear.warmup=0, or finetune=full, in which layers may begin in full precision"
            raise ValueError(f"model.linear.warmup={layer.warmup}: finetune={kind} keeps ternary weights as they are\n{fix}")
        if (first := owners.setdefault(id(layer.weight), name)) != name:
            raise ValueError(f"finetune={kind}: {first} and {name} share one weight\nleave them out by finetune.exclude")
    return chosen


def check_patterns(names: Collection[str], include: Sequence[str], exclude: Sequence[str]) -> None:
    """Raise ValueError for a pattern that matches no layer, and for patterns that leave none."""
    known = list(names)
    first = f"{', '.join(known[:4])}{', ...' if len(known) > 4 else ''}"
    if useless := find_useless_pattern(known, include, exclude):
        raise ValueError(f"finetune.{useless[0]}: the pattern {useless[1]} matches no layer\nthe layers are {first}")
    if not match_names(known, include, exclude):
        message = f"finetune.include={list(include)}, finetune.exclude={list(exclude)} leave no layer"
        raise ValueError(f"{message}\nthe layers are {first}")


@contract
def check_rank(layers: Mapping[str, nn.Linear], rank: int) -> None:
    """Raise ValueError for a rank above the smaller side of a layer, where a matrix of its size would be the cheaper one."""
    for name, layer in layers.items():
        if rank > (smaller := min(layer.in_features, layer.out_features)):
            sizes = f"{name} has {layer.in_features} inputs and {layer.out_features} outputs"
            raise ValueError(
                f"finetune.rank={rank}: {sizes}\ngive at most {smaller}, or leave the layer out by finetune.exclude"
            )


@torch.no_grad()
@contract
def merge_adapters(model: nn.Module) -> nn.Module:
    """Put a plain layer that holds the computed weight, and gives the same bits, where a layer is fine-tuned; return the model.

    It is a new layer, as torch's own removal of a parametrization breaks the copies of a model.
    """
    for name, layer in bitlinear_layers(model).items():
        if has_adapter(layer):
            sizes = layer.in_features, layer.out_features, layer.bias is not None
            plain = BitLinear(*sizes, **vars(layer.quantizer), backend=cast(Any, layer.backend), device=torch.device("meta"))
            plain.weight, plain.bias = nn.Parameter(layer.weight.detach(), requires_grad=False), layer.bias
            plain.mix = layer.mix
            model.set_submodule(name, plain.train(layer.training))
    return model


def has_adapter(layer: BitLinear) -> bool:
    """Return whether the weight of a layer is computed by what is made here."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    return all(isinstance(part, LowRank | Gain) for part in cast(Any, layer.parametrizations)["weight"])


@contract
def count_learning(model: nn.Module) -> int:
    """Return how many parameters learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
