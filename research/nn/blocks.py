"""Find the blocks that a deep model repeats: the units of sharding, of recomputing activations and of gradient statistics."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the children of every outermost ModuleList and Sequential in the model, by name."""
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") or name == block for block in blocks)
        if name and not inside and isinstance(module, nn.ModuleList | nn.Sequential):
            blocks |= {f"{name}.{part}": block for part, block in module.named_children()}
    return blocks


def recompute(model: nn.Module) -> None:
    """Save only each block's input for the backward pass, and compute the rest again there (Chen et al. 2016, 1604.06174).

    It takes less memory, a third more arithmetic, and gives the same bits. Raise ValueError if the model has no blocks.
    """
    if not find_blocks(model):
        raise ValueError(f"trainer.checkpoint_activations: {type(model).__name__} has no ModuleList or Sequential of blocks")
    for block in find_blocks(model).values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
