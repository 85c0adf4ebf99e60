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
import time
from contextlib import suppress
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
    except (OSError, subprocess.SubprocessError, RuntimeError, ValueError, AttributeError) as error:
        log.warning("no C kernels, packed layers go through torch and are slower: %s", error)
        return None
    found.use(os.environ.get("GROKBIT_ISA") or next(iter(found.isas)))
    return found


def loaded(path: Path) -> Library:
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


def folder() -> Path:
    """Where libraries are kept: GROKBIT_CACHE, or the user's cache folder. Raises RuntimeError where there is no home."""
    if given := os.environ.get("GROKBIT_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/grokbit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grokbit"


def compiler() -> list[str]:
    """The command of a C compiler. Raises FileNotFoundError, or ValueError for a CC that is no command line."""
    given = os.environ.get("CC", "")
    try:
        first = shlex.split(given)
    except ValueError as error:
        raise ValueError(f"CC={given}: {error}") from error
    for words in (first, ["cc"], ["gcc"], ["clang"]):
        if words and shutil.which(words[0]):
            return words
    raise FileNotFoundError("there is no C compiler ($CC, cc, gcc, clang)")


def key(command: list[str], flags: tuple[str, ...]) -> str:
    """The name of what this compiler makes of this source. The compiler is known by its file, for to ask it for its version
    takes longer than to load what it made; one that is taken for another has made the same kernels.
    """
    file = Path(shutil.which(command[0]) or command[0]).resolve()
    known = file, file.stat().st_size, file.stat().st_mtime_ns, *command, *flags, sys.platform, platform.machine()
    return hashlib.sha256(b"\0".join((SOURCE.read_bytes(), *(str(part).encode() for part in known)))).hexdigest()[:32]


def built(kept: Path) -> Path:
    """The library of this source, this compiler and these flags, from the cache or built into it.

    What is there is whole, or it is built again: a folder is renamed to its name only when all of it is written, and
    holds the digest of its library. Raises OSError, or SubprocessError where the compiler fails.
    """
    command = compiler()
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    refuse_foreign(kept)
    places = {flags: kept / key(command, flags) for flags in ((*FLAGS, *OPENMP), FLAGS)}
    for place in places.values():
        if whole(place):
            refuse_foreign(place, place / "ternary.so")
            return place / "ternary.so"
    clear(kept)
    failures = []
    for flags, place in places.items():
        made = Path(tempfile.mkdtemp(prefix=".building-", dir=kept))
        try:
            if failure := build([*command, *flags], made / "ternary.so"):
                failures.append(failure)
            else:
                publish(made, place)
                return place / "ternary.so"
        finally:
            shutil.rmtree(made, ignore_errors=True)
    raise subprocess.SubprocessError("; ".join(failures))


def clear(kept: Path) -> None:
    """Remove what builds that were killed have left: no compiler takes an hour."""
    for left in kept.glob(".building-*"):
        with suppress(OSError):  # it was another's, who has ended meanwhile
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left)


def refuse_foreign(*paths: Path) -> None:
    """Raises PermissionError where somebody else could have written what is to be loaded into this process."""
    for path in paths:
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(
                f"{path} belongs to, or can be written by, somebody else: give a GROKBIT_CACHE that is yours alone (chmod 700)"
            )


def build(command: list[str], to: Path) -> str:
    """Compile the source, and keep its digest beside it; why it failed, or nothing."""
    words = [*command, str(SOURCE), "-o", str(to), "-lm"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if done.returncode or not to.is_file():
        return f"{shlex.join(words)}: {done.stderr.strip()[-500:] or f'exit code {done.returncode}, and no library'}"
    to.chmod(0o700)
    to.with_name("sha256").write_text(hashlib.sha256(to.read_bytes()).hexdigest())
    return ""


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
            place.rename(aside := Path(tempfile.mkdtemp(prefix=".building-", dir=place.parent)) / "damaged")
            shutil.rmtree(aside.parent, ignore_errors=True)
    raise OSError(f"{place} cannot be written")
