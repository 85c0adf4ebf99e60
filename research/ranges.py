"""Numbers with a range: an annotation says what a parameter takes, and the preflight reads it from the signature.

The notes are mathematical intervals: a round bracket excludes the end, a square one includes it. A set lists all values.
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
    """Return whether p is prime. By trial division, as p is small."""
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))
