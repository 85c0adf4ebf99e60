"""The samples of a step, cut into micro-batches: the same ones however many micro-batches and processes share them.

Which samples they are depends on (seed, samples consumed) alone, and dropout on (seed, step, rank): a step can be drawn again.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from research.data.mixing import draw_samples
from research.data.spec import Samples
from research.nn.bitlinear import bitlinear_layers, cached_quantized_weights, set_warmup_step
from research.seeding import ROLLBACK_STREAM, fold_in, seed_step
from research.training import distributed
from research.training.progress import Progress


@dataclass
class Batches:
    """Gives the micro-batches of any step of one run."""

    net: nn.Module  # what will be called on them: the model, or what wraps it
    train: Samples
    batch_size: int  # samples a step, over all processes
    grad_accum: int  # micro-batches a step and process
    seed: int
    cache_weights: bool  # quantize weights once a step; not where they are sharded

    def __post_init__(self) -> None:
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        if self.batch_size < self.world_size:
            raise ValueError(f"batch_size={self.batch_size} leaves some of {self.world_size} processes without a sample")
        self.layers = list(bitlinear_layers(self.net).values())
        self.params = [p for p in self.net.parameters() if p.requires_grad]

    def draw(self, progress: Progress, step: int) -> tuple[Iterator[tuple[Tensor, Tensor]], Tensor | int]:
        """Return this process's micro-batches of a step, and how many targets count, over all processes; seed its dropout.

        `step` is the next one, or for the guard an earlier one that is drawn again: of as many samples as each step since.
        """
        seed = fold_in(self.seed, ROLLBACK_STREAM, progress.rollbacks) if progress.rollbacks else self.seed
        seed_step(seed, step, self.rank)
        set_warmup_step(self.layers, step)
        consumed = progress.samples - (progress.step - step) * self.batch_size  # before `step`
        indices = draw_samples(self.train, seed, consumed, self.batch_size).to(self.train.device)
        parts = min(self.grad_accum * 2**progress.oom_halvings, self.batch_size // self.world_size)  # none of them empty
        own = indices.tensor_split(parts * self.world_size)[self.rank :: self.world_size]
        return self._load(own), self.train.count_targets(indices)

    def _load(self, micro_batches: Sequence[Int[Tensor, "_"]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets. Processes average gradients at the last micro-batch only."""
        with cached_quantized_weights(self.layers if len(micro_batches) > 1 and self.cache_weights else []):
            with self.net.no_sync() if isinstance(self.net, nn.parallel.DistributedDataParallel) else nullcontext():
                for indices in micro_batches[:-1]:
                    yield self.train[indices]
            yield self.train[micro_batches[-1]]
