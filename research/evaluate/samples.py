"""The samples that a model is judged on: a split, or all of them, and which of them belong together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int, Num, Shaped
from torch import Tensor

from research.contracts import contract
from research.data.bins import Windows
from research.data.spec import Dataset, Samples, Tokens
from research.evaluate.intervals import number_parts

CHUNK = 1024  # samples that are looked at together


@contract
@dataclass(frozen=True)
class JoinedSplits:
    """The samples of several splits, one split after the other."""

    splits: Sequence[Samples]

    @property
    def has_classes(self) -> bool:
        return self.splits[0].has_classes

    @property
    def target_shape(self) -> torch.Size:
        return self.splits[0].target_shape

    @property
    def token_bytes(self) -> Int[Tensor, "vocab"] | None:
        return self.splits[0].token_bytes

    @property
    def device(self) -> torch.device:
        return self.splits[0].device

    @cached_property
    def starts(self) -> Int[Tensor, "splits"]:
        """Return where the samples of each split begin."""
        return torch.tensor([0, *(len(split) for split in self.splits)]).cumsum(0)[:-1]

    def __len__(self) -> int:
        return sum(len(split) for split in self.splits)

    def __getitem__(self, index: Int[Tensor, "batch"]) -> tuple[Num[Tensor, "batch ..."], Shaped[Tensor, "batch ..."]]:
        numbers = torch.searchsorted(self.starts, index, right=True) - 1
        parts = [self.splits[n][index[numbers == n] - self.starts[n]] for n in numbers.unique().tolist()]  # the index ascends
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return x, y

    def count_targets(self, index: Int[Tensor, "batch"]) -> Tensor | int:
        return int((self[index][1] != -100).sum())

    def take(self, count: int | None) -> "JoinedSplits":
        left, taken = len(self) if count is None else count, list[Samples]()
        for split in self.splits:
            if left > 0:
                taken.append(split.take(left))
                left -= len(split)
        return JoinedSplits(taken)

    def to(self, device: torch.device) -> "JoinedSplits":
        return replace(self, splits=[split.to(device) for split in self.splits])


@contract
def select_split(data: Dataset[Any], name: str, overfit: int, count: int | None) -> Samples:
    """Return the first `count` samples of a split; None: all. Raise ValueError for a test that the data have not.

    A run that was overfit on its first samples has these in place of the validation split.
    """
    if name == "test" and data.test is None:
        raise ValueError("--split test: these data have no test split; give --split val, or train with data.test_fraction=0.1")
    if name == "all":
        split: Samples = JoinedSplits([part for part in (data.train, data.val, data.test) if part is not None])
    elif name == "val" and overfit:
        split = data.train.take(overfit)
    else:
        chosen = {"train": data.train, "val": data.val, "test": data.test}[name]
        assert chosen is not None, "a test that the data have not is refused above"
        split = chosen
    return split if count is None else split.take(min(count, len(split)))


@contract
def group_samples(split: Samples, shape: object) -> tuple[Int[Tensor, "samples"], str]:
    """Return the part that each sample belongs to, and what parts are: "document", "block" of text, or "sample".

    A window of text belongs to the document in which it begins.
    """
    is_text = isinstance(shape, Tokens) and not shape.num_classes and len(split.target_shape) == 1
    if not is_text or not isinstance(shape, Tokens):
        return torch.arange(len(split)), "sample"
    parts = split.splits if isinstance(split, JoinedSplits) else [split]
    numbers, first = list[Tensor](), 0
    for part in parts:
        known = part.documents if isinstance(part, Windows) else None
        numbers.append((find_documents(part, shape.end) if known is None else known) + first)
        first = int(numbers[-1].max()) + 1
    joined = torch.cat(numbers)
    if len(joined.unique()) == len(joined):
        return torch.arange(len(joined)), "sample"
    numbered, are_documents = number_parts(joined)
    are_alone = int(numbered.max()) + 1 == len(numbered)
    return numbered, "document" if are_documents else "sample" if are_alone else "block"


def find_documents(split: Samples, end: int) -> Int[Tensor, "samples"]:
    """Return the number of the document in which each sample begins.

    A sample goes on with the one before where its first token is the last target of that, and no document has ended there.
    """
    begins, last = list[Tensor](), torch.tensor([-1])
    for start in range(0, len(split), CHUNK):
        x, y = (tensor.cpu() for tensor in split[torch.arange(start, min(start + CHUNK, len(split)))])
        has_end = (y == end).any(1)
        before = torch.cat([last, torch.where(has_end, -1, y[:, -1])[:-1]])
        begins.append(x[:, 0] != before)
        last = torch.where(has_end, -1, y[:, -1])[-1:]
    return torch.cat(begins).long().cumsum(0) - 1
