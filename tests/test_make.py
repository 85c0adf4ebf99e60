"""The set-up: once, again when requirements change, complete after an interruption. Python and pip are stand-ins."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
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
    """Return the exit code, the output, and the calls of Python so far."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}  # of `make test`
    command = ["make", "setup", f"PYTHON={checkout / 'python'}"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    calls = checkout / "calls"
    return done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_it_runs_once(checkout: Path) -> None:
    code, output, calls = run_setup(checkout)
    assert (code, len(calls)) == (0, 2)
    assert "minutes, once" in output
    assert "--constraint constraints.txt" in calls[1]
    assert run_setup(checkout) == (0, "", calls)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_it_runs_again_when_the_requirements_change(checkout: Path, name: str) -> None:
    run_setup(checkout)
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert len(run_setup(checkout)[2]) == 3, "pip again, in the same environment"
    assert run_setup(checkout)[1] == ""


def test_it_starts_again_after_an_interruption(checkout: Path) -> None:
    (checkout / "killed").touch()
    assert run_setup(checkout)[0] != 0
    assert (checkout / ".venv" / "half").exists()
    code, output, calls = run_setup(checkout)
    assert (code, len(calls)) == (0, 4)
    assert "interrupted" in output
    assert not (checkout / ".venv" / "half").exists()
    assert run_setup(checkout)[1] == ""


def test_every_target_sets_up_first() -> None:
    rules = (ROOT / "Makefile").read_text()
    for target in ("train", "test", "test-slow", "check", "bench", "studies", "faults", "picture", "pictures", "ui"):
        assert f"\n{target}: setup\n" in rules


def test_every_file_of_the_makefile_exists() -> None:
    for path in re.findall(r"\b(?:tests|docs|experiments)/[\w./]*\w", (ROOT / "Makefile").read_text()):
        assert (ROOT / path).exists(), path


def test_ci_runs_checks_and_all_tests() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test", "make test-slow"]
    rules = (ROOT / "Makefile").read_text()
    assert '-m "not slow"' in rules
    assert "-m slow " in rules
    assert "- run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_releases_have_one_version() -> None:
    """pyproject.toml, CHANGELOG.md and CITATION.cff name the same one."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    released = re.search(r"^## \[(\d[\d.]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released
    assert released[1] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("name", ["ci", "weekly"])
def test_a_workflow_is_valid_yaml(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert all("uses" in step or "run" in step for step in job["steps"])
    for target in job["strategy"]["matrix"].get("target", []):
        assert f"\n{target}: setup\n" in (ROOT / "Makefile").read_text()


def test_hooks_run_what_make_check_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]]
    assert [entry.split(" --force")[0] for entry in entries] == ["ruff check", "ruff format --check", "mypy"]
