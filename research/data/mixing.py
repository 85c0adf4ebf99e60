"""Several sources by weights: a run's sample number i is of a source, and a sample of it, that (seed, i) alone decide.

Each block of BLOCK samples has an exact number of each source, in an order of its own. So no state is kept, and any number of
processes and a resumed run read the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Int, Num, Shaped
from torch import Tensor

from research.contracts import contract
from research.data.spec import Samples, Split
from research.seeding import MIX_STREAM, permute, sample_indices

BLOCK = 1024


@contract
@dataclass(frozen=True)
class Mixture:
    """The samples of several sources, one source after the other; `draw` says in which order a run reads them."""

    sources: Sequence[Samples]
    quotas: Sequence[int]  # samples of each source in a block

    @property
    def has_classes(self) -> bool:
        return self.sources[0].has_classes

    @property
    def target_shape(self) -> torch.Size:
        return self.sources[0].target_shape

    @property
    def token_bytes(self) -> Int[Tensor, "vocab"] | None:
        return self.sources[0].token_bytes

    @property
    def device(self) -> torch.device:
        return self.sources[0].device

    @cached_property
    def ends(self) -> Int[Tensor, "sources"]:
        """Return where the samples of each source end."""
        return torch.tensor([len(source) for source in self.sources]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Int[Tensor, "batch"]) -> tuple[Num[Tensor, "batch ..."], Shaped[Tensor, "batch ..."]]:
        of = torch.searchsorted(self.ends, index.cpu(), right=True)
        used, parts = of.unique().tolist(), []
        for number in used:
            source = self.sources[number]
            parts.append(source[(index.cpu()[of == number] - self.ends[number] + len(source)).to(source.device)])
        position = torch.cat([(of == number).nonzero()[:, 0] for number in used]).argsort().to(self.device)
        x, y = (torch.cat(tensors)[position] for tensors in zip(*parts, strict=True))
        return x, y

    def count_targets(self, index: Int[Tensor, "batch"]) -> Tensor | int:
        return len(index) * self.target_shape.numel()

    def take(self, count: int | None) -> Samples:
        """Return the first so many samples that a run of seed 0 reads, in memory; None: all, as they are."""
        return self if count is None else Split(*self[self.draw(0, 0, min(count, len(self)))], self.token_bytes)

    def to(self, device: torch.device) -> "Mixture":
        return replace(self, sources=[source.to(device) for source in self.sources])

    def draw(self, seed: int, start: int, count: int) -> Int[Tensor, "count"]:
        """Return samples number start .. start+count-1 of a run. Each source is read through before one of it comes again."""
        numbers, limits = torch.arange(start, start + count), torch.tensor(self.quotas).cumsum(0)
        samples = torch.empty_like(numbers)
        for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
            mine = numbers // BLOCK == block
            slots = permute(numbers[mine] % BLOCK, BLOCK, seed, MIX_STREAM, 0, block)
            samples[mine] = self._draw_of_block(seed, block, slots, torch.searchsorted(limits, slots, right=True))
        return samples

    def _draw_of_block(self, seed: int, block: int, slots: Int[Tensor, "n"], of: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Return the samples at some slots of a block; `of` is the source of each."""
        samples = torch.empty_like(slots)
        for number in of.unique().tolist():
            mine, size = of == number, len(self.sources[number])
            rank = block * self.quotas[number] + slots[mine] - sum(self.quotas[:number])
            drawn = torch.empty_like(rank)
            for epoch in (rank // size).unique().tolist():
                now = rank // size == epoch
                drawn[now] = permute(rank[now] % size, size, seed, MIX_STREAM, 1 + number, epoch)
            samples[mine] = drawn + self.ends[number] - size
        return samples

    def describe(self, names: Sequence[str]) -> str:
        """Return how often an epoch, of as many samples as there are, reads each source."""
        shares = [quota / BLOCK * len(self) / len(source) for quota, source in zip(self.quotas, self.sources, strict=True)]
        return "an epoch reads " + ", ".join(f"{name} {share:.2f} times" for name, share in zip(names, shares, strict=True))


def draw_samples(samples: Samples, seed: int, start: int, count: int) -> Int[Tensor, "count"]:
    """Return which samples are number start .. start+count-1 of a run."""
    if isinstance(samples, Mixture):
        return samples.draw(seed, start, count)
    return sample_indices(seed, start, count, len(samples))


@contract
def share_block(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many samples of a block are of each source. Raise ValueError for a weight that has none."""
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    quotas = [int(number) for number in exact]
    by_rest = sorted(range(len(exact)), key=lambda index: quotas[index] - exact[index])
    for index in by_rest[: BLOCK - sum(quotas)]:
        quotas[index] += 1
    if 0 in quotas:
        message = f"data.weights={list(weights)}: {weights[quotas.index(0)]} is less than one of {BLOCK:,} samples"
        raise ValueError(f"{message}\ngive a larger weight, or leave that path out")
    return tuple(quotas)
