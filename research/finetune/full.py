"""Fine-tune everything."""

from torch import nn

from research.contracts import contract
from research.finetune.base import take_weights


@contract
def full(model: nn.Module, base: str | None = None, digest: str | None = None) -> nn.Module:
    """Return the model with the weights of a base, which learn as far as the model lets them."""
    return take_weights(model, base, digest)
