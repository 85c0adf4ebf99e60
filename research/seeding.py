"""Randomness as a pure function of (seed, step): nothing to save, nothing to restore.

Each purpose has a stream of its own below the seed, so that one never shifts another.
"""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

INIT_STREAM, DROPOUT_STREAM, ORDER_STREAM, ROLLBACK_STREAM = 0, 1, 2, 3  # the first key below a run's seed
SPLIT_STREAM = 3  # the first key below a data set's split_seed, which is another seed
_MASK = (1 << 64) - 1


def fold_in(*keys: int) -> int:
    """Mix integers into one seed of 63 bits (SplitMix64, Steele et al. 2014): near keys give unrelated seeds."""
    state = 0
    for key in keys:
        state = (state + (key & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_all(seed: int) -> None:
    """Seed what draws at construction: weights. One stream, whatever was drawn before."""
    torch.manual_seed(fold_in(seed, INIT_STREAM))


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed the draws of one training step (dropout) on this process.

    Not `torch.manual_seed`: without a GPU it costs 240 us a call, this costs 2 us.
    """
    key = fold_in(seed, DROPOUT_STREAM, step, rank)
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(key)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Int[Tensor, "n"]:
    """Return the order of the n samples in one epoch."""
    generator = torch.Generator().manual_seed(fold_in(seed, ORDER_STREAM, epoch))
    return torch.randperm(n, generator=generator)


def sample_indices(seed: int, start: int, count: int, n: int) -> Int[Tensor, "count"]:
    """Return samples number start .. start+count-1 of the endless stream of epochs over n samples.

    Every batch is full: one that reaches the end of an epoch continues in the next.
    """
    end = start + count
    epochs = range(start // n, -(-end // n))
    parts = [permutation(seed, epoch, n)[max(start - epoch * n, 0) : end - epoch * n] for epoch in epochs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
