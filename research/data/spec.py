"""A data set: its splits, whose samples are had by number, and the shape that a model must fit."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Num, Shaped
from torch import Tensor

from research.contracts import contract
from research.data.tokenizers import Tokenizer
from research.files.labels import predict_majority
from research.losses import IGNORE, num_valid_targets
from research.seeding import SPLIT_STREAM, fold_in


class Tokens(NamedTuple):
    """Sequences of tokens: a model returns logits over `vocab_size` tokens at each of `seq_len` positions.

    With `num_classes` each sequence is of one class: the logits of the last position are over classes.
    """

    vocab_size: int
    seq_len: int
    end: int = -1  # the token between two documents; -1: none
    num_classes: int = 0  # 0: tokens are predicted


class Vectors(NamedTuple):
    """Vectors of `num_features` numbers, each of one of `num_classes` classes, or with a number to predict.

    A model's output times `scale` plus `mean` is in the unit of that number: losses and metrics are in it too.
    """

    num_features: int
    num_classes: int  # 1 where the target is a number
    mean: float = 0.0
    scale: float = 1.0


class Images(NamedTuple):
    """Images of 0 to 255, each of one of `num_classes` classes; `per_pixel`: each of its pixels."""

    channels: int
    height: int
    width: int
    num_classes: int
    per_pixel: bool = False


Shape = TypeVar("Shape", Tokens, Vectors, Images)


@contract
def restore_shape(sizes: dict[str, Any]) -> Tokens | Vectors | Images:
    """Return the shape whose `_asdict()` this is. Raise ValueError where it is of none."""
    for kind in (Tokens, Vectors, Images):
        if kind._fields[0] in sizes:
            return kind(**sizes)
    raise ValueError(f"{sizes} is no shape of data")


@runtime_checkable
class Samples(Protocol):
    """Samples by number. `Split` holds them in memory, `Bins` reads them from the disk."""

    @property
    def has_classes(self) -> bool:
        """Return whether targets are classes or tokens, and no floating-point numbers."""

    @property
    def target_shape(self) -> torch.Size:
        """Return the shape of the targets of a sample: empty for one, (seq_len) where every token is a target."""

    @property
    def token_bytes(self) -> Int[Tensor, "vocab"] | None:
        """Return how many bytes of text each token stands for; None for one each, or where there is no text."""

    @property
    def device(self) -> torch.device:
        """Return where batches are."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: Int[Tensor, "batch"]) -> tuple[Num[Tensor, "batch ..."], Shaped[Tensor, "batch ..."]]:
        """Return the inputs and targets at `index`; tokens and classes as int64, whatever smaller type stores them."""

    def count_targets(self, index: Int[Tensor, "batch"]) -> Tensor | int:
        """Return how many targets of these samples count: those that are not IGNORE, at least 1."""

    def take(self, count: int | None) -> "Samples":
        """Return the first so many samples; None: all."""

    def to(self, device: torch.device) -> "Samples":
        """Return the samples with batches on this device."""


@dataclass(frozen=True)
class Split:
    """Inputs and targets with one sample a row, in memory: a batch costs two gathers.

    Targets are classes or tokens, or floating-point numbers for a loss of one's own. Raise ValueError for a split without
    samples, with another number of targets, or with none that counts. So it does for numbers that a batch could not hold.
    """

    inputs: Num[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]
    token_bytes: Int[Tensor, "vocab"] | None = None

    def __post_init__(self) -> None:
        if not len(self.inputs) or len(self.inputs) != len(self.targets):
            sizes = f"{len(self.inputs)} inputs and {len(self.targets)} targets"
            raise ValueError(f"a split has {sizes}: give at least one sample, and a target for each")
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if tensor.is_complex() or (tensor.dtype == torch.uint64 and (tensor.long() < 0).any()):
                fix = "give real numbers" if tensor.is_complex() else "give numbers below 2^63"
                raise ValueError(f"the {name} of a split are {tensor.dtype}, which a batch would cut to int64: {fix}")
        if not self.num_valid:
            message = f"no target of the {len(self.inputs)} samples of a split counts: all are {IGNORE}"
            raise ValueError(f"{message}, which losses ignore; give targets that count")

    @property
    def has_classes(self) -> bool:
        return not self.targets.is_floating_point()

    @property
    def target_shape(self) -> torch.Size:
        return self.targets.shape[1:]

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @cached_property
    def num_valid(self) -> int:
        """Return the number of targets that count: at once, as to ask later would let the host wait for a device."""
        return int(num_valid_targets(self.targets))

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, index: Int[Tensor, "batch"] | slice) -> tuple[Num[Tensor, "batch ..."], Shaped[Tensor, "batch ..."]]:
        x, y = self.inputs[index], self.targets[index]
        return (x if x.is_floating_point() else x.long()), (y if y.is_floating_point() else y.long())

    def count_targets(self, index: Int[Tensor, "batch"]) -> Tensor | int:
        if self.num_valid < self.targets.numel():
            return num_valid_targets(self.targets[index]).clamp(min=1)
        return len(index) * self.target_shape.numel()

    @contract
    def take(self, count: int | None) -> "Split":
        return replace(self, inputs=self.inputs[:count], targets=self.targets[:count])

    @contract
    def to(self, device: torch.device) -> "Split":
        token_bytes = None if self.token_bytes is None else self.token_bytes.to(device)
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device), token_bytes=token_bytes)


@dataclass(frozen=True)
class Dataset(Generic[Shape]):
    """A task: training and validation samples, and the metrics of trivial predictors."""

    shape: Shape
    train: Samples
    val: Samples
    digest: str  # sha256 of the samples and of the split
    source: str  # where the samples come from, for people
    unit: str  # what throughput counts: "token" or "sample"
    baseline: dict[str, float] = field(default_factory=dict)  # "metric predictor" -> what a trivial predictor reaches
    notes: tuple[str, ...] = ()  # facts for the console, as the leak between the splits
    test: Samples | None = None  # what nothing is chosen by
    tokenizer: Tokenizer | None = None  # of text
    classes: tuple[str, ...] = ()  # their names, by number


@dataclass(frozen=True)
class MemoryDataset(Dataset[Shape]):
    """A task whose samples are held in memory, as tensors."""

    train: Split
    val: Split
    test: Split | None = None


def split_at_random(
    shape: Shape, x: Num[Tensor, "n ..."], y: Shaped[Tensor, "n"], train_fraction: float, split_seed: int, source: str
) -> MemoryDataset[Shape]:
    """Return samples with one class each, split by `split_seed` alone: the seed of a run must not move the split.

    Its baseline always answers the most frequent class of training. Raise ValueError for an empty split, and for no classes.
    """
    if y.is_floating_point():
        raise ValueError(
            f"split_at_random takes classes, the targets are {y.dtype}\ngive targets.long(), or for numbers two Splits"
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(fold_in(split_seed, SPLIT_STREAM)))
    x, y, cut = x[order], y[order], round(train_fraction * len(x))
    if not 0 < cut < len(x):
        raise ValueError(f"data.train_fraction={train_fraction} leaves one split of {len(x)} samples empty")
    train, val = Split(x[:cut], y[:cut]), Split(x[cut:], y[cut:])
    digest = sha256(x.numpy().tobytes() + y.numpy().tobytes() + bytes(f"{cut}", "ascii")).hexdigest()
    baseline = predict_majority(y.numpy(), {"train": np.arange(cut), "val": np.arange(cut, len(y))})
    return MemoryDataset(shape, train, val, digest, source, unit="sample", baseline=baseline)
