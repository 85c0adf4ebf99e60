"""The C kernels are built once and completely, also by several processes; without a compiler there is one warning."""

import ctypes
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from program import ROOT

from research.kernels import build
from research.kernels import ternary as kernels
from research.nn.bitlinear import BitLinear
from research.nn.packed import PackedLinear

needs_c = pytest.mark.skipif(kernels.get_library() is None, reason="no C compiler")
LAYER = """
import logging, sys, torch
logging.basicConfig(format="%(levelname)s %(message)s", level="WARNING")
from research.kernels import ternary
from research.nn.bitlinear import BitLinear
from research.nn.packed import PackedLinear
assert not ternary.get_library.cache_info().currsize, "built on import"
torch.manual_seed(0)
layer = BitLinear(70, 50, bias=False, backend="ste")
packed = PackedLinear.from_bitlinear(layer)
x = torch.randn(3, 70)
assert torch.equal(packed(x), layer(x)) and torch.equal(packed(x), layer(x))
print(None if ternary.get_library() is None else next(iter(ternary.get_library().isas)))
"""


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)


def write_script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_torch_gives_the_same_numbers(tmp_path: Path) -> None:
    done = run_python(LAYER, PATH="", CC="", GROKBIT_CACHE=str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
    warnings = [line for line in done.stderr.splitlines() if "C kernels" in line]
    assert len(warnings) == 1
    assert "there is no C compiler ($CC, cc, gcc, clang)" in warnings[0]
    assert not any(tmp_path.iterdir())


BROKEN = {
    "fails": ('echo "no such luck" >&2; exit 1', "no such luck"),
    "fails without a word": ("exit 3", "-lm: exit code 3, and no library"),
    "writes nothing": ("exit 0", "-lm: exit code 0, and no library"),
}


@pytest.mark.parametrize(("program", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_compiler_that_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str, reason: str
) -> None:
    monkeypatch.setenv("CC", write_script(tmp_path / "broken", program))
    monkeypatch.setenv("GROKBIT_CACHE", str(tmp_path / "cache"))
    assert kernels.get_library.__wrapped__() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert reason in caplog.text
    assert not any((tmp_path / "cache").iterdir()), "the unfinished build is removed"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("CC", 'gcc "', 'CC=gcc ": No closing quotation'),
     ("GROKBIT_CACHE", "~nobody-of-this-name/cache", "Could not determine home directory")],
)  # fmt: skip
def test_an_invalid_setting_is_reported(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, value)
    assert kernels.get_library.__wrapped__() is None
    assert message in caplog.text


@needs_c
def test_a_library_that_lacks_a_kernel_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "SOURCE", tmp_path / "other.c")
    kernels.SOURCE.write_text("int answer(void) { return 42; }")
    monkeypatch.setenv("GROKBIT_CACHE", str(tmp_path / "cache"))
    assert kernels.get_library.__wrapped__() is None
    assert "undefined symbol: grokbit_isa" in caplog.text


@needs_c
def test_a_library_that_others_can_write_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # quick
    cache = tmp_path / "cache"
    monkeypatch.setenv("GROKBIT_CACHE", str(cache))
    usual = os.umask(0)
    try:
        assert kernels.get_library.__wrapped__()
    finally:
        os.umask(usual)
    (library,) = cache.glob("*/ternary.so")
    for path in (cache, library.parent, library):
        assert path.stat().st_mode & 0o777 == 0o700, "for any umask"
        path.chmod(0o720)
        assert kernels.get_library.__wrapped__() is None
        assert f"{path} belongs to another user or is writable by others: set GROKBIT_CACHE" in caplog.text
        path.chmod(0o700)
    caplog.clear()
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    assert kernels.get_library.__wrapped__() is None
    assert f"{cache} belongs to" in caplog.text


@needs_c
def test_a_cached_library_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # quick
    real = " ".join(build.find_compiler())
    compiler = tmp_path / "cc"
    monkeypatch.setenv("CC", write_script(compiler, f'exec {real} "$@"'))
    path = build.build_cached(kernels.SOURCE, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *args, **settings: pytest.fail("the compiler runs"))
        assert build.build_cached(kernels.SOURCE, tmp_path / "cache") == path
    write_script(compiler, f'exec  {real} "$@"')
    assert build.build_cached(kernels.SOURCE, tmp_path / "cache") != path, "another compiler at the same path"


@needs_c
def test_a_changed_header_builds_anew(tmp_path: Path) -> None:
    """Also one that another header includes."""
    (tmp_path / "main.c").write_text(
        '#include "outer.h"\n__attribute__((visibility("default"))) int answer(void) { return ANSWER; }\n'
    )
    (tmp_path / "outer.h").write_text('#pragma once\n#include <stddef.h>\n#include "inner.h"\n')
    answers = []
    for number in (1, 2):
        (tmp_path / "inner.h").write_text(f'#include "outer.h"\n#define ANSWER {number}\n')
        path = build.build_cached(tmp_path / "main.c", tmp_path / "cache")
        answers.append((path, ctypes.CDLL(str(path)).answer()))
    assert [answer for _, answer in answers] == [1, 2]
    assert answers[0][0] != answers[1][0]
    assert [file.name for file in build.list_sources(tmp_path / "main.c")] == ["main.c", "outer.h", "inner.h"]


def test_every_file_of_the_kernels_is_in_the_package_and_in_the_key() -> None:
    files = {path.name for path in kernels.SOURCE.parent.iterdir() if path.suffix in (".c", ".h")}
    assert {path.name for path in build.list_sources(kernels.SOURCE)} == files - {"adamw.c"}
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["research"]
    assert {"kernels/*.c", "kernels/*.h"} <= set(patterns)


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GROKBIT_CACHE", str(tmp_path / "file" / "cache"))
    assert kernels.get_library.__wrapped__() is None
    assert "no C kernels" in caplog.text


@needs_c
def test_a_compiler_without_openmp_builds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = " ".join(build.find_compiler())
    plain = write_script(tmp_path / "plain", f'case "$*" in *-fopenmp*) exit 1;; esac\nexec {real} "$@"')
    monkeypatch.setenv("CC", plain)
    library = kernels.load_library(build.build_cached(kernels.SOURCE, tmp_path / "cache"))
    layer = PackedLinear.from_bitlinear(BitLinear(70, 50))
    assert layer.bias is not None
    x = torch.randn(20, 70)
    torch.set_num_threads(2)
    for isa in library.isas:
        library.use(isa)
        layer.native = False
        assert torch.equal(library.linear(x, layer.codes, layer.scale, 2) + layer.bias, layer(x)), isa


@needs_c
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no digest"])
def test_a_damaged_library_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # quick
    path = build.build_cached(kernels.SOURCE, tmp_path)
    good, modified = path.read_bytes(), path.stat().st_mtime_ns
    assert build.build_cached(kernels.SOURCE, tmp_path) == path
    assert path.stat().st_mtime_ns == modified, "not built again"
    if damage == "no digest":
        path.with_name("sha256").unlink()
    else:
        path.write_bytes(
            {"cut": good[:1000], "flipped": good[:999] + bytes([good[999] ^ 1]) + good[1000:], "empty": b""}[damage]
        )
    assert build.build_cached(kernels.SOURCE, tmp_path) == path
    assert build.is_intact(path)
    assert kernels.load_library(path).isas
    assert [p.name for p in tmp_path.iterdir()] == [path.parent.name]
    assert {p.name for p in path.parent.iterdir()} == {"ternary.so", "sha256"}


@needs_c
def test_the_folder_of_a_killed_build_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    for name, age in (("killed", 4000), ("at-it", 100)):
        (left := tmp_path / f".building-{name}").mkdir()
        (left / "ternary.so").write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    path = build.build_cached(kernels.SOURCE, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".building-at-it", path.parent.name}


@needs_c
def test_processes_that_build_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from research.kernels import build\n"
        "from research.kernels.ternary import SOURCE\n"
        "build.FLAGS = ('-O0', *build.FLAGS[1:])\nprint(build.build_cached(SOURCE, Path(sys.argv[1])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    paths = {process.communicate(timeout=100)[0].decode().strip() for process in processes}
    assert {process.returncode for process in processes} == {0}
    assert len(paths) == 1
    assert [str(p / "ternary.so") for p in tmp_path.iterdir()] == list(paths)


@needs_c
def test_the_instruction_set_can_be_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROKBIT_ISA", "abacus")
    with pytest.raises(ValueError, match=r"GROKBIT_ISA=abacus: this machine has .*portable"):
        kernels.get_library.__wrapped__()
    done = run_python(LAYER, GROKBIT_ISA="portable")
    assert (done.returncode, done.stderr) == (0, "")
