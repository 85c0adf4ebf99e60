"""An exponential moving average of the weights, to evaluate and to keep beside the weights themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from research.contracts import contract


class Average:
    """avg <- d avg + (1 - d) w after each step (Polyak and Juditsky 1992, with exponential weights).

    The first average is the weights that the model has. Averages have 32 bits at least: in 16 most updates would round to
    nothing. Buffers are not averaged. At step t, from 0, d is
    min(decay, (1 + t) / (10 + t)), as in TensorFlow's tf.train.ExponentialMovingAverage with `num_updates`: the average is of
    about the last tenth of the steps until `decay` reaches further, so the weights of the first steps are soon forgotten.
    """

    @contract
    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: widen(p.detach()).clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages.values()), list(map(widen, self.weights.values())), 1 - decay)

    @torch.no_grad()
    @contract
    def load(self, averages: Mapping[str, Tensor] | None = None) -> None:
        """Take over saved averages, or the weights as they are now. Raise ValueError where some are missing."""
        if averages and (missing := self.averages.keys() - averages.keys()):
            raise ValueError(f"the saved averages lack {', '.join(sorted(missing)[:3])}: they are of another model")
        for name, average in self.averages.items():
            average.copy_((averages or self.weights)[name])

    @contextmanager
    def use_averages(self) -> Iterator[None]:
        """Inside, the model has the averages for weights."""
        weights = {name: p.detach().clone() for name, p in self.weights.items()}
        self.copy_to_model(self.averages)
        try:
            yield
        finally:
            self.copy_to_model(weights)

    @torch.no_grad()
    @contract
    def copy_to_model(self, values: Mapping[str, Tensor]) -> None:
        """Give the model's weights these values."""
        for name, p in self.weights.items():
            p.copy_(values[name])


def widen(tensor: Tensor) -> Tensor:
    """Return a tensor with 32 bits a number at least: itself where it has them."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
