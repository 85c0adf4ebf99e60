"""An exponential moving average of the weights, to judge and to keep beside the weights themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """avg <- decay avg + (1 - decay) w after each step (Polyak and Juditsky 1992, with exponential weights).

    It begins at the weights that the model has. Buffers are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), 1 - self.decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew at the weights."""
        self.load(self.weights)

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, mine in self.averages.items():
            mine.copy_(averages[name])

    @contextmanager
    def use_averages(self) -> Iterator[None]:
        """Inside, the model has the averages for weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """The averages become the weights, and the weights the averages."""
        for name, p in self.weights.items():
            kept = p.clone()
            p.copy_(self.averages[name])
            self.averages[name].copy_(kept)
