"""The set-up: once, again when the requirements change, and whole after it was interrupted. Python and pip are stand-ins."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT

PYTHON = f"""#!/bin/sh
if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi
echo "$@" >> calls
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit; fi
if [ -e killed ]; then rm killed; touch .venv/half; exit 1; fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def run_setup(checkout: Path) -> tuple[int, str, list[str]]:
    """Exit code, what was said, and the calls of Python so far."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}  # of `make test`
    command = ["make", "setup", f"PYTHON={checkout / 'python'}"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    calls = checkout / "calls"
    return done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_it_is_done_once(checkout: Path) -> None:
    code, said, calls = run_setup(checkout)
    assert (code, len(calls)) == (0, 2)
    assert "minutes, once" in said
    assert "--constraint constraints.txt" in calls[1]
    assert run_setup(checkout) == (0, "", calls)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_it_is_done_again_when_the_requirements_change(checkout: Path, name: str) -> None:
    run_setup(checkout)
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert len(run_setup(checkout)[2]) == 3, "pip again, in the same environment"
    assert run_setup(checkout)[1] == ""


def test_one_that_was_interrupted_starts_afresh(checkout: Path) -> None:
    (checkout / "killed").touch()
    assert run_setup(checkout)[0] != 0
    assert (checkout / ".venv" / "half").exists()
    code, said, calls = run_setup(checkout)
    assert (code, len(calls)) == (0, 4)
    assert "interrupted" in said
    assert not (checkout / ".venv" / "half").exists()
    assert run_setup(checkout)[1] == ""


def test_every_target_sets_up_first() -> None:
    rules = (ROOT / "Makefile").read_text()
    for target in ("train", "test", "check", "bench", "faults", "ui"):
        assert f"\n{target}: setup\n" in rules


def test_ci_calls_what_the_readme_names() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
