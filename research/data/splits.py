"""Which samples are of train, val and test: by rank, with the share of each class, groups kept together."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64, Num, Shaped, UInt64
from torch import Tensor

from research import rules
from research.contracts import contract
from research.data.spec import MemoryDataset, Shape, Split


@contract
def rank_keys(keys: Sequence[bytes], split_seed: int) -> UInt64[np.ndarray, "n"]:
    """Return the numbers by which samples are ranked: another order for each seed, whatever their names and places."""
    seed = split_seed.to_bytes(8, "big")
    return np.array([int.from_bytes(sha256(seed + key).digest()[:8], "big") for key in keys], dtype=np.uint64)


@contract
def count_parts(total: int, fractions: tuple[float, float]) -> tuple[int, int]:
    """Return how many of `total` are for val and for test: one at least where a fraction is not 0.

    Raise ValueError for fractions that leave nothing.
    """
    rules.enforce(rules.check_fractions(*fractions))
    num_val, num_test = (max(int(fraction > 0), round(total * fraction)) for fraction in fractions)
    return num_val, num_test


@contract
def spread_evenly(count: int, total: int) -> Int[Tensor, "count"]:
    """Return `count` of the numbers below `total`, evenly spread, the first and the last among them."""
    dtype = torch.float32 if total < 1 << 24 else torch.float64  # which whole numbers it holds
    return torch.linspace(0, total - 1, count, dtype=dtype).round().long()


@contract
def split_by_rank(
    ranks: UInt64[np.ndarray, "n"],
    classes: Int64[np.ndarray, "n"] | None,
    fractions: tuple[float, float],
    members: Int64[np.ndarray, "n"] | None = None,
) -> dict[str, Int64[np.ndarray, "_"]]:
    """Return the samples of train, val and test: their numbers, by rank. `fractions` are those of val and test.

    With `classes` each split has its share of every class; a class of one sample is in train. With `members` a sample
    stands for so many, and goes to the first of val, test and train that has room.
    Raise ValueError where a split would be empty.
    """
    order = np.argsort(ranks, kind="stable")
    if classes is not None:
        ordered = classes[order]
        sizes = np.bincount(ordered)
        starts = np.cumsum(sizes) - sizes
        position = np.empty(len(order))  # in its class, 0 to 1
        grouped = np.argsort(ordered, kind="stable")
        position[grouped] = (np.arange(len(order)) - starts[ordered[grouped]] + 0.5) / sizes[ordered[grouped]]
        position[sizes[ordered] == 1] = 1
        order = order[np.argsort(position, kind="stable")]
    if members is not None and (members > 1).any():
        order, num_val, num_test = fill_parts(order, members, count_parts(int(members.sum()), fractions))
    else:
        num_val, num_test = count_parts(len(order), fractions)
    if num_val + num_test >= len(order):
        shares = f"data.val_fraction={fractions[0]:g} and data.test_fraction={fractions[1]:g}"
        raise ValueError(f"{shares} leave no training sample of {len(order)}\ngive smaller ones, or more samples")
    parts = order[num_val + num_test :], order[:num_val], order[num_val : num_val + num_test]
    by_rank = np.empty(len(ranks), dtype=np.int64)
    by_rank[np.argsort(ranks, kind="stable")] = np.arange(len(ranks))
    return {name: part[np.argsort(by_rank[part])] for name, part in zip(("train", "val", "test"), parts, strict=True)}


def fill_parts(
    order: Int64[np.ndarray, "n"], sizes: Int64[np.ndarray, "n"], rooms: tuple[int, int]
) -> tuple[Int64[np.ndarray, "n"], int, int]:
    """Return the order with the groups of val, then those of test, at its start, and how many groups each has.

    They are the first that have room; where none has, the smallest.
    """
    rest, parts = order.tolist(), list[list[int]]()
    for room in rooms:
        part, left = list[int](), room
        for group in rest:
            if sizes[group] <= left:
                part.append(group)
                left -= int(sizes[group])
        part = part or [min(rest, key=lambda group: sizes[group])] * (room > 0 and len(rest) > 0)
        parts.append(part)
        taken = set(part)
        rest = [group for group in rest if group not in taken]
    return np.array([*parts[0], *parts[1], *rest], dtype=np.int64), len(parts[0]), len(parts[1])


@contract
def select_parts(
    shape: Shape, x: Num[Tensor, "n ..."], y: Shaped[Tensor, "n ..."], parts: Mapping[str, Int64[np.ndarray, "_"]], **facts: Any
) -> MemoryDataset[Shape]:
    """Return the data set of some samples; parts are their numbers in train, val and test."""
    splits = {name: Split(x[part], y[part]) for name, part in parts.items() if len(part)}
    digest = sha256()
    for name, split in splits.items():
        for part in (name.encode(), split.inputs.numpy().data.cast("B"), split.targets.numpy().data.cast("B")):
            digest.update(part)
    test = splits.get("test")
    return MemoryDataset(shape, splits["train"], splits["val"], digest.hexdigest(), unit="sample", test=test, **facts)
