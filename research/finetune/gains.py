"""Fine-tune a gain for each output of frozen ternary layers, and the norms."""

from torch import nn

from research.finetune.base import take_weights
from research.nn.lowrank import add_gains, let_norms_learn
from research.ranges import check_settings


def gains(model: nn.Module, base: str | None = None, digest: str | None = None, norms: bool = True) -> nn.Module:
    """Return the model with a base's frozen ternary weights, where one gain an output, and the norms learn.

    Raise ValueError for a base without ternary layers.
    """
    check_settings("finetune", gains.__annotations__, locals())
    add_gains(take_weights(model, base, digest))
    if norms:
        let_norms_learn(model)
    return model
