"""Numbers with a range: a signature says what it takes, and the preflight reads it there.

The intervals are ordinary mathematics: round brackets leave the end out, square ones take it in; curly ones list all there is.
"""

from typing import Annotated

PositiveInt = Annotated[int, "[1, inf)"]
NonNegativeInt = Annotated[int, "[0, inf)"]
PositiveFloat = Annotated[float, "(0, inf)"]
NonNegativeFloat = Annotated[float, "[0, inf)"]
Fraction = Annotated[float, "[0, 1)"]
OpenFraction = Annotated[float, "(0, 1)"]
WeightBits = Annotated[float | int, "{1, 1.58, 2, 4, 8}"]
ExistingPath = Annotated[str, "a file or folder that exists"]


def is_prime(p: int) -> bool:
    """By trial division; p is small."""
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))
