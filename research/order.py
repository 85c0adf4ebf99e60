"""The order of samples: a pure function of (seed, epoch, position), the same for any number of processes."""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from research.seeding import fold_in


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Int[Tensor, "n"]:
    """The order of the n samples in one epoch."""
    generator = torch.Generator().manual_seed(fold_in(seed, 2, epoch))
    return torch.randperm(n, generator=generator)


def sample_indices(seed: int, start: int, count: int, n: int) -> Int[Tensor, "count"]:
    """Samples number start .. start+count-1 of the endless stream of epochs.

    Every batch is full: one that reaches the end of an epoch goes on in the next.
    """
    parts = []
    while count > 0:
        epoch, offset = divmod(start, n)
        part = permutation(seed, epoch, n)[offset : offset + count]
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
