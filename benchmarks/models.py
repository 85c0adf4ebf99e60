"""The models, weights and training steps that several benchmarks measure."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from research.data.spec import Dataset
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.packed import PackedLinear
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.training.state import Callback, State
from research.training.trainer import Trainer

Parts = tuple[nn.Module, Optimizer]


def build_parts(
    data: Dataset[Any], dim: int, depth: int, heads: int, sub_norm: bool = False, weight_decay: float = 0.0
) -> Parts:
    """Return a full-precision transformer, the same at each call, and its fused AdamW."""
    torch.manual_seed(0)
    model = Transformer(data.shape, dim, depth, heads, nn.Linear, sub_norm=sub_norm)
    adamw: partial[Any] = partial(AdamW, betas=(0.9, 0.98), fused=True)
    return model, from_base(model, adamw, lr=1e-3, weight_decay=weight_decay)


def fit(trainer: Trainer, parts: Parts, data: Dataset[Any], callback: Callback, folder: Path | None = None) -> State:
    """Train `parts` on `data` at a constant rate; return the last state."""
    return trainer.fit(trainer.setup(*parts, constant, last_token, data, [callback], folder=folder))


def make_step(
    model: nn.Module, optimizer: Optimizer, tokens: Tensor, autocast: bool, clip_norm: float | None
) -> Callable[[], None]:
    """Return a function that does one training step on the same tokens, under bf16 autocast if wished."""
    params, x, y = list(model.parameters()), tokens[:, :-1], tokens[:, 1:].flatten()

    def step() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x).flatten(0, 1).float(), y)
        loss.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(params, clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_packed(out: int, width: int, scale: float = 1.0) -> PackedLinear:
    """Return a packed layer with random codes."""
    layer = PackedLinear(width, out, bias=False)
    layer.codes.random_(0, 3).mul_(0b01010101)
    layer.scale.fill_(scale)
    return layer
