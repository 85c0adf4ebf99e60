"""What a data set says of itself: its classes, what was left out or changed, what trivial predictors reach."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from research.contracts import contract
from research.files.sources import Counts

NUM_NAMES = 10  # of classes that a note names


@contract
def predict_majority(classes: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the accuracy of the class that is most frequent in training."""
    return {"val/acc majority": float(np.mean(classes[parts["val"]] == np.bincount(classes[parts["train"]]).argmax()))}


@contract
def unigram_cross_entropy(counts: Int[Tensor, "classes"], val: Int[Tensor, "m"]) -> Float[Tensor, ""]:
    """Return the cross entropy (nats) on `val` of the frequencies of tokens in training, with one added to each count."""
    smoothed = counts.double() + 1
    return -(smoothed / smoothed.sum()).log()[val].mean()


@contract
def describe_classes(names: Sequence[str], classes: np.ndarray, parts: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return notes: the number of each class, how many samples of training it has, and which ones a split lacks."""
    more = f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else ""
    notes = [
        f"classes: {', '.join(f'{i} {name}' for i, name in enumerate(names[:NUM_NAMES]))}{more}",
        describe_sizes(names, np.bincount(classes[parts["train"]], minlength=len(names))),
    ]
    if alike := [name for name in names if sum(name.casefold() == other.casefold() for other in names) > 1]:
        notes.append(f"classes that differ in capitals alone: {', '.join(alike[:NUM_NAMES])}")
    for part in ("train", "val"):
        lacking = [name for i, name in enumerate(names) if i not in set(classes[parts[part]].tolist())]
        if lacking:
            notes.append(f"{part} has no sample of {len(lacking)} classes: {', '.join(lacking[:NUM_NAMES])}")
    return tuple(notes)


@contract
def describe_sizes(names: Sequence[str], sizes: Int[np.ndarray, "classes"], unit: str = "samples") -> str:
    """Return how many samples of training each class has: of ten classes, and the range of all others."""
    shown = ", ".join(f"{size:,} of {name}" for name, size in zip(names[:NUM_NAMES], sizes.tolist(), strict=False))
    rest = sizes[NUM_NAMES:]
    return f"{unit} in training: {shown}{f', {min(rest):,} to {max(rest):,} of each other class' if len(rest) else ''}"


@contract
def describe_counts(counts: Counts, treated: Counts) -> tuple[str, ...]:
    """Return notes of what was left out, and of what was changed."""
    pairs = (("left out", counts), ("changed", treated))
    return tuple(f"{word}: {number.describe()}" for word, number in pairs if number.numbers)
