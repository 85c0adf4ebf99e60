"""Fine-tune a low rank inside the rounding of frozen ternary layers."""

from collections.abc import Sequence

from torch import nn

from research.finetune.base import take_weights
from research.nn.lowrank import add_low_rank, let_norms_learn
from research.ranges import PositiveFloat, PositiveInt, check_settings


def inside(
    model: nn.Module,
    base: str | None = None,
    digest: str | None = None,
    rank: PositiveInt = 8,
    alpha: PositiveFloat = 16.0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    norms: bool = False,
) -> nn.Module:
    """Return the model with a base's frozen weights W, where W + alpha / rank B A is rounded, and A and B learn.

    Raise ValueError for a base without ternary layers, a pattern that matches none, or a rank above a layer's smaller side.
    """
    check_settings("finetune", inside.__annotations__, locals())
    add_low_rank(take_weights(model, base, digest), rank, alpha, include, exclude)
    if norms:
        let_norms_learn(model)
    return model
