"""The digits for a search: few to train on, some to choose by, and a half that no run of the search ever sees."""

from dataclasses import replace

from research.contracts import contract
from research.data.digits import digits
from research.data.spec import MemoryDataset, Split, Vectors
from research.ranges import NonNegativeInt, OpenFraction


@contract
def search_digits(train_fraction: OpenFraction = 0.2, split_seed: NonNegativeInt = 0) -> MemoryDataset[Vectors]:
    """Return the first half: `train_fraction` of it to train on, the rest of it to choose by."""
    half = digits(0.5, split_seed)
    x, y, cut = half.train.inputs, half.train.targets, round(train_fraction * len(half.train))
    digest = f"{cut:08x}{half.digest}"
    return replace(half, train=Split(x[:cut], y[:cut]), val=Split(x[cut:], y[cut:]), digest=digest, baseline={})


@contract
def load_held_out(split_seed: int = 0) -> Split:
    """Return the second half."""
    return digits(0.5, split_seed).val
