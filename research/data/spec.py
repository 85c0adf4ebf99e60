"""What a data set is to the rest of the program: two splits of tensors, and the shape that a model must fit."""

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor


class Tokens(NamedTuple):
    """Sequences of symbols: the model gives a distribution over `vocab` at each of `length` positions."""

    vocab_size: int
    seq_len: int


class Vectors(NamedTuple):
    """Vectors of `features` numbers, each of one of `classes`."""

    num_features: int
    num_classes: int


Shape = TypeVar("Shape", Tokens, Vectors)


@dataclass(frozen=True)
class Split:
    """Samples along the first axis. The whole split is indexed at once: a batch costs two gathers."""

    inputs: Num[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, index: Int[Tensor, "batch"] | slice) -> tuple[Num[Tensor, "batch ..."], Tensor]:
        """The samples at `index`; symbols come as int64 whatever small type they are kept in."""
        x, y = self.inputs[index], self.targets[index]
        return (x if x.is_floating_point() else x.long()), y.long()

    def to(self, device: torch.device) -> "Split":
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset(Generic[Shape]):
    """A task: what is learnt, what is held back, and what a guesser would reach."""

    shape: Shape
    train: Split
    val: Split
    digest: str  # sha256 of the samples and of the split
    source: str  # where the samples come from, for people
    unit: str  # what a sample is made of, for throughput: "token" or "sample"
    baseline: dict[str, float] = field(default_factory=dict)  # "metric predictor" -> what a trivial one reaches
    notes: tuple[str, ...] = ()  # facts that the user should see, as the leak between the splits


def majority_accuracy(targets: Int[Tensor, "n"], num_classes: int) -> float:
    """Accuracy of always answering the most frequent class."""
    return torch.bincount(targets, minlength=num_classes).max().item() / len(targets)


def unigram_cross_entropy(train: Int[Tensor, "n"], val: Int[Tensor, "m"], num_classes: int) -> Float[Tensor, ""]:
    """Cross entropy (nats) on `val` of the symbol frequencies of `train`, with one count added to each."""
    counts = torch.bincount(train, minlength=num_classes).double() + 1
    log_p = (counts / counts.sum()).log()
    return -log_p[val].mean()
