"""How the next token is chosen, and where a text ends before its tokens do."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from research.contracts import contract

MIN_TEMPERATURE = 1e-3  # below it logits would overflow


@dataclass
class Sampler:
    """Choose the next token: the likeliest at temperature 0, else a draw from the likeliest ones.

    Those are the `top_k` likeliest (0: all), and of these the fewest that have `top_p` of the probability together (nucleus
    sampling, Holtzman et al. 2020, 1904.09751).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf):
            fix = f"give 0 for the likeliest token, or {MIN_TEMPERATURE} and more"
            raise ValueError(f"--temperature {self.temperature:g}: {fix}")
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k}: give 0 for all tokens, or how many to draw from")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p:g}: give a share of the probability above 0, at most 1")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"--seed {self.seed}: give a number from 0 to 2^63 - 1")
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: Float[Tensor, "vocab"]) -> int:
        """Return the token that is chosen from its logits. Raise ValueError where they are not numbers."""
        if logits.isnan().any():
            raise ValueError("RUN: the model computes NaN; give an earlier checkpoint, RUN/checkpoints/step-*")
        if self.temperature == 0:
            return int(logits.argmax())
        if 0 < self.top_k < len(logits):
            logits = logits.where(logits >= logits.topk(self.top_k).values[-1], -torch.inf)
        p = (logits / self.temperature).softmax(-1)
        if self.top_p < 1:
            ranked, order = p.sort(descending=True, stable=True)
            p[order[ranked.cumsum(-1) - ranked >= self.top_p]] = 0  # those before it have enough already
        return int(torch.multinomial(p, 1, generator=self.generator))


@contract
def cut_at_stop(chunks: Iterator[bytes], stops: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the chunks up to the first of the texts `stops`, which may begin in one chunk and end in another.

    What may yet become one of them is yielded with a later chunk: as many chunks come out as go in.
    """
    longest, held = max(map(len, stops), default=0), b""
    for chunk in chunks:
        held += chunk
        if ends := [index for stop in stops if (index := held.find(stop)) >= 0]:
            yield held[: min(ends)]
            return
        keep = next((size for size in range(min(longest - 1, len(held)), 0, -1) if starts_stop(held[-size:], stops)), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    if held:
        yield held


def starts_stop(text: bytes, stops: Sequence[bytes]) -> bool:
    """Return whether one of the texts `stops` begins so."""
    return any(stop.startswith(text) for stop in stops)
