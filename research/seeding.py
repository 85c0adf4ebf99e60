"""Randomness as a pure function of (seed, step): nothing to save, nothing to restore.

Each purpose has a stream of its own below the seed, so that one never shifts another.
"""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from research.contracts import contract

# the first key below a run's seed
INIT_STREAM, DROPOUT_STREAM, ORDER_STREAM, ROLLBACK_STREAM, MIX_STREAM = 0, 1, 2, 3, 4
SPLIT_STREAM = 3  # the first key below a data set's split_seed, which is another seed
TABLE_SIZE = 10**6  # samples: up to here an epoch's order is a table
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


@contract
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
@contract
def permutation(seed: int, epoch: int, n: int) -> Int[Tensor, "n"]:
    """Return the order of the n samples in one epoch."""
    generator = torch.Generator().manual_seed(fold_in(seed, ORDER_STREAM, epoch))
    return torch.randperm(n, generator=generator)


def permute(x: Int[Tensor, "count"], n: int, *key: int) -> Int[Tensor, "count"]:
    """Return where a keyed permutation of 0 .. n-1 puts the numbers `x`, without a table.

    A Feistel network of 6 rounds permutes the numbers of an even count of bits (Luby and Rackoff 1988). What falls outside
    of n is permuted again until it is inside (cycle walking, Black and Rogaway 2002): at most 4 times on average.
    """
    half = -(-max(2, (n - 1).bit_length()) // 2)
    mask, round_keys = (1 << half) - 1, [fold_in(*key, number) for number in range(6)]
    x, outside = x.clone(), torch.ones_like(x, dtype=torch.bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & mask
        for round_key in round_keys:
            mixed = (right ^ round_key) * -0x61C8864680B583EB  # wraps; the upper bits depend on all lower ones
            mixed = (mixed ^ (mixed >> 29)) * -0x40A7B892E31B1A47
            left, right = right, left ^ ((mixed >> 32) & mask)
        x[outside] = (left << half) | right
        outside = x >= n
    return x


def sample_indices(seed: int, start: int, count: int, n: int) -> Int[Tensor, "count"]:
    """Return samples number start .. start+count-1 of the endless stream of epochs over n samples.

    Every batch is full: one that reaches the end of an epoch continues in the next. Above TABLE_SIZE samples the order needs
    no table: one of 10^8 takes 22 s and 1.5 GB an epoch.
    """
    end, parts = start + count, []
    for epoch in range(start // n, -(-end // n)):
        first, last = max(start - epoch * n, 0), min(end - epoch * n, n)
        if n <= TABLE_SIZE:
            parts.append(permutation(seed, epoch, n)[first:last])
        else:
            parts.append(permute(torch.arange(first, last), n, seed, ORDER_STREAM, epoch))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
