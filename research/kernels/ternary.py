"""Load the C kernels of ternary.c with ctypes.

Without a compiler there is one warning, and layers compute with torch: the same numbers, more slowly. GROKBIT_ISA names
an instruction set other than the best one, for tests.
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
from research.run_dir import ISA_ENV_VAR

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("ternary.c")
MAX_IN_FEATURES = 1 << 17  # of a layer: with more, a sum of products exceeds the integers that float32 holds exactly


class Matrix(ctypes.Structure):
    """The weights of one layer, as in ternary.h. The caller keeps the tensors alive."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "scale")),
        *((name, ctypes.c_int32) for name in ("out", "in", "bits")),
    )


@dataclass(frozen=True)
class Library:
    """The loaded kernels."""

    c: ctypes.CDLL
    isas: dict[str, int]  # instruction sets that this machine has, the best first -> their index in the library

    def use(self, isa: str) -> None:
        """Compute with this instruction set from now on. Raise ValueError if the machine does not have it."""
        if isa not in self.isas:
            raise ValueError(f"GROKBIT_ISA={isa}: this machine has {', '.join(self.isas)}")
        self.c.grokbit_use(self.isas[isa])

    def linear(self, x: Tensor, weights: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Return the layer's outputs [rows, out] for a contiguous float32 x [rows, in]. Raise MemoryError."""
        matrix = Matrix(weights.data_ptr(), scale.data_ptr(), scale.shape[0], x.shape[1], bits)
        y = x.new_empty(x.shape[0], scale.shape[0])
        if self.c.grokbit_linear(ctypes.byref(matrix), x.data_ptr(), x.shape[0], y.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"ternary.c: no memory for {x.shape[0]} rows of {x.shape[1]}")
        return y


@cache
def get_library() -> Library | None:
    """Return the kernels, built if the cache has none; if that fails, warn once and return None.

    Raise ValueError for a GROKBIT_ISA that this machine does not have.
    """
    try:
        library = load_library(build.build_cached(SOURCE, build.get_cache_folder()))
    except build.BUILD_ERRORS as error:
        log.warning("no C kernels, so packed layers compute with torch, more slowly: %s", error)
        return None
    library.use(os.environ.get(ISA_ENV_VAR) or next(iter(library.isas)))
    return library


def load_library(path: Path) -> Library:
    """Load the library at a path. Raise OSError if it is none, AttributeError if it lacks a kernel."""
    c = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    c.grokbit_isa.argtypes, c.grokbit_isa.restype = (number, ctypes.POINTER(number)), ctypes.c_char_p
    c.grokbit_use.argtypes, c.grokbit_use.restype = (number,), None
    c.grokbit_linear.argtypes = (pointer, pointer, ctypes.c_int64, pointer, number)
    c.grokbit_decode.argtypes = (pointer, ctypes.c_int32, ctypes.c_int32, pointer, number)
    c.grokbit_row.argtypes = (pointer, ctypes.c_int32, pointer, pointer, number)
    c.grokbit_read.argtypes, c.grokbit_read.restype = (pointer, ctypes.c_int64, number), ctypes.c_uint64
    isas: dict[str, int] = {}
    usable, index = number(), 0
    while name := c.grokbit_isa(index, ctypes.byref(usable)):
        if usable.value:
            isas[name.decode()] = index
        index += 1
    return Library(c, isas)
