"""Build C libraries with the platform's compiler on first use, and keep them in a cache.

Two environment variables set what depends on the machine: CC (the compiler) and GROKBIT_CACHE (the cache folder).
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from research.cli import run_process
from research.contracts import contract
from research.run_dir import CACHE_ENV_VAR, expand_path
from research.signals import Stopped, get_launched_ranks

# No contraction: every instruction set gives the same bits. No errno: a square root is one instruction.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-fvisibility=hidden", "-w")
OPENMP = ("-fopenmp",)  # tried first: not every compiler has it
BUILD_ERRORS = (OSError, subprocess.SubprocessError, RuntimeError, ValueError, AttributeError)  # of building and loading
make_temporary_folder = partial(tempfile.TemporaryDirectory, prefix=".building-", ignore_cleanup_errors=True)
STALE_SECONDS = 3600  # no compiler takes an hour


@cache
def read_processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else "", re.MULTILINE)
    return name[1].strip() if name else platform.processor()


def get_cache_folder() -> Path:
    """Return GROKBIT_CACHE, or else the user's cache folder. Raise RuntimeError if there is no home folder."""
    if folder := os.environ.get(CACHE_ENV_VAR):
        if (path := expand_path(folder)).parts[0].startswith("~"):
            raise RuntimeError(f"Could not determine home directory of {CACHE_ENV_VAR}={folder}")
        return path
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/grokbit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grokbit"


def find_compiler() -> list[str]:
    """Return the command of a C compiler: CC, cc, gcc or clang, the first that is installed.

    Raise FileNotFoundError if none is, and ValueError if CC is no command line.
    """
    setting = os.environ.get("CC", "")
    try:
        first = shlex.split(setting)
    except ValueError as error:
        raise ValueError(f"CC={setting}: {error}") from error
    for words in (first, ["cc"], ["gcc"], ["clang"]):
        if words and shutil.which(words[0]):
            return words
    raise FileNotFoundError("there is no C compiler ($CC, cc, gcc, clang)")


@contract
def list_sources(source: Path) -> list[Path]:
    """Return a C file and the files of its folder that it includes, directly or through others."""
    sources = [source]
    for file in sources:  # grows while it is read
        names = re.findall(r'^#include "(.+)"', file.read_text(encoding="utf-8"), re.MULTILINE)
        sources += [path for name in dict.fromkeys(names) if (path := file.with_name(name)) not in sources]
    return sources


def compute_cache_key(source: Path, command: list[str], flags: tuple[str, ...]) -> str:
    """Return the name of the library that this compiler builds from this source and all files that it includes.

    The compiler's path, size and time stand for its version: to ask for that takes longer than to load the library.
    """
    file = Path(shutil.which(command[0]) or command[0]).resolve()
    identity = file, file.stat().st_size, file.stat().st_mtime_ns, *command, *flags, sys.platform, platform.machine()
    contents = [path.read_bytes() for path in list_sources(source)]
    return hashlib.sha256(b"\0".join((*contents, *(str(part).encode() for part in identity)))).hexdigest()[:32]


def build_cached(source: Path, cache_folder: Path) -> Path:
    """Return the path of the library for this source, this compiler and these flags; build it if the cache has none.

    A build happens in a temporary folder, which gets its final name when it is complete. A library that does not match
    its digest is built again. Raise OSError, or SubprocessError if the compiler fails with every set of flags.
    """
    command = find_compiler()
    cache_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    refuse_foreign(cache_folder)
    name = f"{source.stem}.so"
    folders = {flags: cache_folder / compute_cache_key(source, command, flags) for flags in ((*FLAGS, *OPENMP), FLAGS)}
    for folder in folders.values():
        if is_intact(folder / name):
            refuse_foreign(folder, folder / name)
            return folder / name
    remove_stale_builds(cache_folder)
    failures = []
    for flags, folder in folders.items():
        with make_temporary_folder(dir=cache_folder) as build_folder:
            if failure := compile_library(source, [*command, *flags], Path(build_folder, name)):
                failures.append(failure)
            else:
                publish(Path(build_folder), folder / name)
                return folder / name
    raise subprocess.SubprocessError("; ".join(failures))


def remove_stale_builds(cache_folder: Path) -> None:
    """Remove the temporary folders of builds that were killed."""
    for folder in cache_folder.glob(".building-*"):
        with suppress(OSError):  # another process may end and remove it meanwhile
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder)


def refuse_foreign(*paths: Path) -> None:
    """Raise PermissionError if another user could have written what is to be loaded into this process."""
    for path in paths:
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            fix = "set GROKBIT_CACHE to your own folder (chmod 700)"
            raise PermissionError(f"{path} belongs to another user or is writable by others: {fix}")


def compile_library(source: Path, command: list[str], output: Path) -> str:
    """Compile the source and write the library's digest beside it. Return the reason of a failure, or an empty string."""
    words = [*command, str(source), "-o", str(output), "-lm"]
    try:
        done = run_process(f"{command[0]}, which compiles {source.name}", words, timeout=600)
    except Stopped as stopped:
        if get_launched_ranks()[1] == 1:
            raise
        return str(stopped)  # the other processes would wait for this one: all end at the next safe point
    if done.returncode or not output.is_file():
        return f"{shlex.join(words)}: {done.stderr.strip()[-500:] or f'exit code {done.returncode}, and no library'}"
    output.chmod(0o700)
    output.with_name("sha256").write_text(hashlib.sha256(output.read_bytes()).hexdigest(), encoding="utf-8")
    return ""


@contract
def is_intact(library: Path) -> bool:
    """Return whether a library exists and matches its digest."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == library.with_name("sha256").read_text(encoding="utf-8")
    except OSError:
        return False


@contract
def publish(build_folder: Path, library: Path) -> None:
    """Rename a complete build to the library's folder, and replace a damaged one. Raise OSError if that fails three times.

    If another process has built the same library meanwhile, leave that one.
    """
    folder = library.parent
    for _ in range(3):
        try:
            build_folder.rename(folder)
            return
        except OSError:
            if is_intact(library):
                return
            with make_temporary_folder(dir=folder.parent) as temporary_folder:
                folder.rename(Path(temporary_folder, "damaged"))
    raise OSError(f"{folder} cannot be written")
