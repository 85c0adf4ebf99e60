"""Handwritten digits, 8 x 8 pixels (UCI, 1,797 samples), from scikit-learn: it needs no download."""

from hashlib import sha256

import torch
from sklearn.datasets import load_digits

from research.data.spec import Dataset, Split, Vectors, majority_accuracy
from research.ranges import NonNegativeInt, OpenFraction
from research.seeding import SPLIT_STREAM, fold_in


def digits(train_fraction: OpenFraction = 0.8, split_seed: NonNegativeInt = 0) -> Dataset[Vectors]:
    """Return vectors of 64 pixels in [0, 1] with one of ten classes, split at random by `split_seed`."""
    # 16 is the largest pixel.
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(fold_in(split_seed, SPLIT_STREAM)))
    x, y, cut = x[order], y[order], round(train_fraction * len(x))
    return Dataset(
        shape=Vectors(num_features=64, num_classes=10),
        train=Split(x[:cut], y[:cut]),
        val=Split(x[cut:], y[cut:]),
        digest=sha256(x.numpy().tobytes() + y.numpy().tobytes() + bytes(f"{cut}", "ascii")).hexdigest(),
        source="scikit-learn digits, 8 x 8",
        unit="sample",
        baseline={"val/acc majority": majority_accuracy(y[cut:], 10)},
    )
