"""Fine-tune everything."""

from torch import nn

from research.finetune.base import take_weights
from research.ranges import check_settings


def full(model: nn.Module, base: str | None = None, digest: str | None = None) -> nn.Module:
    """Return the model with the weights of a base, which learn as far as the model lets them."""
    check_settings("finetune", full.__annotations__, locals())
    return take_weights(model, base, digest)
