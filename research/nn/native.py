"""The C kernels of ternary.c: built by the platform's compiler on first use, kept in a cache, loaded with ctypes.

Without a compiler there is one warning, and layers go through torch: the same numbers, more slowly. Settings are of the
machine, so they are environment variables: CC (the compiler), GROKBIT_CACHE (the folder), GROKBIT_ISA (an instruction set
other than the best one, for tests).
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("ternary.c")
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden", "-w")
OPENMP = ("-fopenmp",)  # where the compiler has it
WIDEST = 1 << 17  # inputs of a layer: more, and a sum of products leaves the whole numbers of float32


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

    def linear(self, x: Tensor, weights: Tensor, step: Tensor, bits: int) -> Tensor:
        """The layer's outputs for x, float32 and contiguous of shape [rows, in]. Raises MemoryError."""
        matrix = Matrix(weights.data_ptr(), step.data_ptr(), step.shape[0], x.shape[1], bits)
        y = x.new_empty(x.shape[0], step.shape[0])
        if self.c.grokbit_linear(ctypes.byref(matrix), x.data_ptr(), x.shape[0], y.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"ternary.c: no memory for {x.shape[0]} rows of {x.shape[1]}")
        return y


@cache
def library() -> Library | None:
    """The kernels, built if need be; None where that cannot be, which is told once.

    Raises ValueError for a GROKBIT_ISA that this machine does not have.
    """
    try:
        found = loaded(built(folder()))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("no C kernels, packed layers go through torch and are slower: %s", error)
        return None
    found.use(os.environ.get("GROKBIT_ISA") or next(iter(found.isas)))
    return found


def loaded(path: Path) -> Library:
    """The library at a path. Raises OSError where it is none."""
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


def folder() -> Path:
    """Where libraries are kept: GROKBIT_CACHE, or the user's cache folder."""
    if given := os.environ.get("GROKBIT_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/grokbit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grokbit"


def compiler() -> list[str]:
    """The command of a C compiler. Raises FileNotFoundError."""
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise FileNotFoundError("there is no C compiler ($CC, cc, gcc, clang)")


def built(kept: Path) -> Path:
    """The library of this source, this compiler and these flags, from the cache or built into it.

    What is there is whole, or it is built again: a folder is renamed to its name only when all of it is written, and
    holds the digest of its library. Raises OSError, or SubprocessError where the compiler fails.
    """
    command = compiler()
    version = subprocess.run([*command, "--version"], capture_output=True, timeout=60, check=True).stdout
    places = {}
    for flags in ((*FLAGS, *OPENMP), FLAGS):
        parts = (SOURCE.read_bytes(), version, " ".join((*command, *flags, sys.platform, platform.machine())).encode())
        places[flags] = kept / hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
        if whole(places[flags]):
            return places[flags] / "ternary.so"
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    failures = []
    for flags, place in places.items():
        made = Path(tempfile.mkdtemp(prefix=".building-", dir=kept))
        try:
            words = [*command, *flags, str(SOURCE), "-o", str(made / "ternary.so"), "-lm"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=600)
            if done.returncode == 0:
                (made / "sha256").write_text(hashlib.sha256((made / "ternary.so").read_bytes()).hexdigest())
                publish(made, place)
                return place / "ternary.so"
            failures.append(f"{shlex.join(words)}: {done.stderr.strip()[-500:]}")
        finally:
            shutil.rmtree(made, ignore_errors=True)
    raise subprocess.SubprocessError("; ".join(failures))


def whole(place: Path) -> bool:
    """Whether a library is there as it was written."""
    try:
        return hashlib.sha256((place / "ternary.so").read_bytes()).hexdigest() == (place / "sha256").read_text()
    except OSError:
        return False


def publish(made: Path, place: Path) -> None:
    """Give a folder its name, in the place of a damaged one; one that another process made meanwhile is as good."""
    for _ in range(3):
        try:
            made.rename(place)
            return
        except OSError:
            if whole(place):
                return
            place.rename(Path(tempfile.mkdtemp(dir=made)) / "damaged")
    raise OSError(f"{place} cannot be written")
