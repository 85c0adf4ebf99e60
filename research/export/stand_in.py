"""A model of the same layout with random weights, in which a wrong layout shows that a model of little learning hides."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from research.contracts import contract
from research.export.layout import Source
from research.files.silence import silence_libraries
from research.models.hub import Hub

BLOCKS = 2  # a mistake at the boundary between blocks shows up, and the run stays short


@contract
def build_stand_in(source: Source) -> Source:
    """Return the first two blocks with random weights, so large that attention is not uniform and all norms differ."""
    if isinstance(source.model, Hub):
        model: Any = deepcopy(source.model, {id(source.net): build_short_net(source)})
        net = model.net
        wide = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
        wide |= {id(head.weight) for head in [net.get_output_embeddings()] if head is not None}
    else:
        model = deepcopy(source.model)
        model.blocks = model.blocks[:BLOCKS]
        wide = {id(p) for name, p in model.named_parameters() if name in ("embed.weight", "head.weight")}
    random = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        draw_random(name, p, id(p) in wide, random)
    return replace(source, model=model)


def draw_random(name: str, p: Tensor, is_wide: bool, random: torch.Generator) -> None:
    """Fill a parameter: gains from 0.5 to 1.5, biases and matrices so that outputs have the size of one."""
    if p.ndim == 1 and not name.endswith("bias"):
        p.uniform_(0.5, 1.5, generator=random)
    elif p.ndim == 1:
        p.uniform_(-0.5, 0.5, generator=random)
    else:
        size = 2.0 if is_wide else 1 + torch.rand((), generator=random).item()
        p.normal_(std=size / math.sqrt(p.shape[1]), generator=random)


def build_short_net(source: Source) -> nn.Module:
    """Return a new net of transformers with two layers of the architecture, ternary where the trained one is."""
    from transformers import AutoModelForCausalLM

    config = deepcopy(source.net.config)
    config.num_hidden_layers = min(BLOCKS, config.num_hidden_layers)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[: config.num_hidden_layers]
    with silence_libraries():
        net: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names = {name for name, _ in net.named_modules()}
    for name, layer in source.linears.items():
        if (own := name.removeprefix("net.")) in names:
            net.set_submodule(own, deepcopy(layer))
    return net.eval().requires_grad_(False)
