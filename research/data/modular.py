"""Modular arithmetic (Power et al. 2022, arXiv 2201.02177): the full table of a op b = c, part of it for validation."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from research import rules
from research.data.spec import MemoryDataset, Tokens, split_at_random
from research.ranges import Modulus, NonNegativeInt, OpenFraction, check_settings

Residues = Int[Tensor, "pairs"]
Operation = Literal["+", "-", "*", "/", "x2+xy+y2"]

OPERATIONS: dict[str, Callable[[Residues, Residues, int], Residues]] = {
    "+": lambda x, y, p: (x + y) % p,
    "-": lambda x, y, p: (x - y) % p,
    "*": lambda x, y, p: x * y % p,
    "/": lambda x, y, p: x * torch.tensor([pow(int(v), -1, p) for v in y]) % p,
    "x2+xy+y2": lambda x, y, p: (x * x + x * y + y * y) % p,
}


def modular(
    operation: Operation = "*", p: Modulus = 47, train_fraction: OpenFraction = 0.5, split_seed: NonNegativeInt = 0
) -> MemoryDataset[Tokens]:
    """Return sequences [x, op, y, =] over p + 2 tokens with the target c; for * and / without zeros, as in the papers.

    Raise ValueError for an unknown operation, a p that is not prime for division, or an empty split.
    """
    check_settings("data", modular.__annotations__, locals())
    rules.enforce(rules.check_prime(operation, p))
    operands = torch.arange(1 if operation in "*/" else 0, p)
    x, y = torch.cartesian_prod(operands, operands).unbind(-1)
    c = OPERATIONS[operation](x, y, p)
    tokens = torch.stack((x, torch.full_like(x, p), y, torch.full_like(x, p + 1)), dim=1)
    return split_at_random(Tokens(p + 2, seq_len=4), tokens, c, train_fraction, split_seed, f"x {operation} y mod {p}")
