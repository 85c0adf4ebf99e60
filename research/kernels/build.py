"""C libraries: built by the platform's compiler on first use, kept in a cache.

Settings are of the machine, so they are environment variables: CC (the compiler), GROKBIT_CACHE (the folder).
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

# No contraction: each instruction set gives the same bits. No errno: a square root is one instruction.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-fvisibility=hidden", "-w")
OPENMP = ("-fopenmp",)  # where the compiler has it
BUILD_ERRORS = (OSError, subprocess.SubprocessError, RuntimeError, ValueError, AttributeError)  # of to build and to load


def get_cache_folder() -> Path:
    """Where libraries are kept: GROKBIT_CACHE, or the user's cache folder. Raises RuntimeError where there is no home."""
    if given := os.environ.get("GROKBIT_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/grokbit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grokbit"


def find_compiler() -> list[str]:
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


def compute_cache_key(source: Path, command: list[str], flags: tuple[str, ...]) -> str:
    """The name of what this compiler makes of this source. The compiler is known by its file, for to ask it for its version
    takes longer than to load what it made; one that is taken for another has made the same kernels.
    """
    file = Path(shutil.which(command[0]) or command[0]).resolve()
    known = file, file.stat().st_size, file.stat().st_mtime_ns, *command, *flags, sys.platform, platform.machine()
    return hashlib.sha256(b"\0".join((source.read_bytes(), *(str(part).encode() for part in known)))).hexdigest()[:32]


def build_cached(source: Path, cache_folder: Path) -> Path:
    """The library of this source, this compiler and these flags, from the cache `kept` or built into it.

    What is there is whole, or it is built again: a folder is renamed to its name only when all of it is written, and
    holds the digest of its library. Raises OSError, or SubprocessError where the compiler fails.
    """
    command = find_compiler()
    cache_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    refuse_foreign(cache_folder)
    name = f"{source.stem}.so"
    places = {flags: cache_folder / compute_cache_key(source, command, flags) for flags in ((*FLAGS, *OPENMP), FLAGS)}
    for place in places.values():
        if is_intact(place / name):
            refuse_foreign(place, place / name)
            return place / name
    remove_stale_builds(cache_folder)
    failures = []
    for flags, place in places.items():
        made = Path(tempfile.mkdtemp(prefix=".building-", dir=cache_folder))
        try:
            if failure := compile_library(source, [*command, *flags], made / name):
                failures.append(failure)
            else:
                publish(made, place / name)
                return place / name
        finally:
            shutil.rmtree(made, ignore_errors=True)
    raise subprocess.SubprocessError("; ".join(failures))


def remove_stale_builds(cache_folder: Path) -> None:
    """Remove what builds that were killed have left: no compiler takes an hour."""
    for left in cache_folder.glob(".building-*"):
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


def compile_library(source: Path, command: list[str], output: Path) -> str:
    """Compile the source, and keep its digest beside it; why it failed, or nothing."""
    words = [*command, str(source), "-o", str(output), "-lm"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if done.returncode or not output.is_file():
        return f"{shlex.join(words)}: {done.stderr.strip()[-500:] or f'exit code {done.returncode}, and no library'}"
    output.chmod(0o700)
    output.with_name("sha256").write_text(hashlib.sha256(output.read_bytes()).hexdigest())
    return ""


def is_intact(library: Path) -> bool:
    """Whether a library is there as it was written."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == library.with_name("sha256").read_text()
    except OSError:
        return False


def publish(build_folder: Path, library: Path) -> None:
    """Give a folder the name of the library's, in the place of a damaged one; one that another process made meanwhile is
    as good.
    """
    place = library.parent
    for _ in range(3):
        try:
            build_folder.rename(place)
            return
        except OSError:
            if is_intact(library):
                return
            place.rename(aside := Path(tempfile.mkdtemp(prefix=".building-", dir=place.parent)) / "damaged")
            shutil.rmtree(aside.parent, ignore_errors=True)
    raise OSError(f"{place} cannot be written")
