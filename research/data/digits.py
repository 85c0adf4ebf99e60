"""Handwritten digits, 8 x 8 pixels (UCI, 1,797 samples), from scikit-learn: it needs no download."""

import torch
from sklearn.datasets import load_digits

from research.data.spec import MemoryDataset, Vectors, split_at_random
from research.ranges import NonNegativeInt, OpenFraction, check_settings


def digits(train_fraction: OpenFraction = 0.8, split_seed: NonNegativeInt = 0) -> MemoryDataset[Vectors]:
    """Return vectors of 64 pixels in [0, 1] with one of ten classes, split at random by `split_seed`."""
    check_settings("data", digits.__annotations__, locals())
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels, dtype=torch.int64)  # 16 is the largest pixel
    return split_at_random(Vectors(64, 10), x, y, train_fraction, split_seed, "scikit-learn digits, 8 x 8")
