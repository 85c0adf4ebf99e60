"""The C kernels of ternary.c, loaded with ctypes.

Without a compiler there is one warning, and layers go through torch: the same numbers, more slowly. GROKBIT_ISA in the
environment names an instruction set other than the best one, for tests.
"""

import ctypes
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from research.kernels import build

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("ternary.c")
MAX_IN_FEATURES = 1 << 17  # inputs of a layer: more, and a sum of products leaves the whole numbers of float32


class Matrix(ctypes.Structure):
    """One layer's weights, as ternary.c sees them; whoever makes one keeps the tensors alive."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("step", ctypes.c_void_p),
        ("out", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("bits", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Library:
    """The loaded kernels."""

    c: ctypes.CDLL
    isas: dict[str, int]  # instruction sets that this machine has, the best first, by their number in the library

    def use(self, isa: str) -> None:
        """Compute with this one from now on. Raises ValueError where the machine does not have it."""
        if isa not in self.isas:
            raise ValueError(f"GROKBIT_ISA={isa}: this machine has {', '.join(self.isas)}")
        self.c.grokbit_use(self.isas[isa])

    def linear(self, x: Tensor, weights: Tensor, scale: Tensor, bits: int) -> Tensor:
        """The layer's outputs for x, float32 and contiguous of shape [rows, in]. Raises MemoryError."""
        matrix = Matrix(weights.data_ptr(), scale.data_ptr(), scale.shape[0], x.shape[1], bits)
        y = x.new_empty(x.shape[0], scale.shape[0])
        if self.c.grokbit_linear(ctypes.byref(matrix), x.data_ptr(), x.shape[0], y.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"ternary.c: no memory for {x.shape[0]} rows of {x.shape[1]}")
        return y


@cache
def get_library() -> Library | None:
    """The kernels, built if need be; None where that cannot be, which is told once.

    Raises ValueError for a GROKBIT_ISA that this machine does not have.
    """
    try:
        found = load_library(build.build_cached(SOURCE, build.get_cache_folder()))
    except build.BUILD_ERRORS as error:
        log.warning("no C kernels, packed layers go through torch and are slower: %s", error)
        return None
    found.use(os.environ.get("GROKBIT_ISA") or next(iter(found.isas)))
    return found


def load_library(path: Path) -> Library:
    """The library at a path. Raises OSError where it is none, AttributeError where it has not all kernels."""
    c = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    c.grokbit_isa.argtypes, c.grokbit_isa.restype = (number, ctypes.POINTER(number)), ctypes.c_char_p
    c.grokbit_use.argtypes, c.grokbit_use.restype = (number,), None
    c.grokbit_linear.argtypes = (pointer, pointer, ctypes.c_int64, pointer, number)
    c.grokbit_decode.argtypes = (pointer, ctypes.c_int32, ctypes.c_int32, pointer, number)
    c.grokbit_row.argtypes = (pointer, ctypes.c_int32, pointer, pointer, number)
    c.grokbit_read.argtypes, c.grokbit_read.restype = (pointer, ctypes.c_int64, number), ctypes.c_uint64
    isas: dict[str, int] = {}
    usable, place = number(), 0
    while name := c.grokbit_isa(place, ctypes.byref(usable)):
        if usable.value:
            isas[name.decode()] = place
        place += 1
    return Library(c, isas)
