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


def run_setup(checkout: Path, target: str = "setup") -> tuple[int, str, list[str]]:
    """Return the exit code, the output, and the calls of Python so far."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}  # of `make test`
    command = ["make", target, f"PYTHON={checkout / 'python'}"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    calls = checkout / "calls"
    return done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_it_runs_once(checkout: Path) -> None:
    code, output, calls = run_setup(checkout)
    assert (code, len(calls)) == (0, 2)
    assert "minutes, once" in output
    assert [line[:6] for line in output.splitlines() if " of 3: " in line] == ["1 of 3", "2 of 3", "3 of 3"]
    assert "--constraint constraints.txt" in calls[1]
    assert calls[1].endswith("--editable .")
    assert "--quiet" not in calls[1], "pip shows how far it is"
    assert run_setup(checkout) == (0, "", calls)


def test_base_grows_to_dev_which_holds_base(checkout: Path) -> None:
    run_setup(checkout)
    code, _, calls = run_setup(checkout, "setup-dev")
    assert (code, len(calls)) == (0, 3), "pip again, in the same environment"
    assert calls[2].endswith("--editable .[dev]")
    assert run_setup(checkout, "setup-dev") == (0, "", calls)
    assert run_setup(checkout) == (0, "", calls)


def test_dev_alone_is_enough(checkout: Path) -> None:
    calls = run_setup(checkout, "setup-dev")[2]
    assert run_setup(checkout) == (0, "", calls)


def test_make_lists_its_targets(checkout: Path) -> None:
    done = subprocess.run(["make"], cwd=checkout, capture_output=True, text=True, check=True)
    (names,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^  make ([a-z-]+) +\S.*$", done.stdout, re.MULTILINE)
    assert listed[:3] == ["help", "setup", "setup-dev"]
    assert sorted(listed) == sorted(names.split())
    assert not (checkout / "calls").exists()


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


def read_set_up(target: str) -> str:
    """Return the set-up that a target of the Makefile begins with: setup or setup-dev."""
    (name,) = re.findall(rf"^{target}: (\S+) ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(name)


def test_every_target_sets_up_first() -> None:
    assert {read_set_up(target) for target in ("train", "studies", "picture", "ui")} == {"setup"}
    of_developers = ("test", "test-slow", "check", "check-native", "bench", "faults", "pictures")
    assert {read_set_up(target) for target in of_developers} == {"setup-dev"}


def test_dev_has_all_that_exports_storages_and_launchers_need() -> None:
    """Each extra that is installed in a moment is one of dev's, through extras of extras; gguf's llama.cpp is compiled."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names, left = set[str](), ["dev"]
    while left:
        names.add(name := left.pop())
        left += [
            inner for text in extras[name] for inner in re.findall(r"^grokbit\[(.*)\]$", text) for inner in inner.split(",")
        ]
    assert set(extras) - names == {"gguf"}


def test_every_file_of_the_makefile_exists() -> None:
    for path in re.findall(r"\b(?:tests|docs|experiments)/[\w./]*\w", (ROOT / "Makefile").read_text()):
        assert (ROOT / path).exists(), path


def test_ci_runs_checks_and_all_tests() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make setup-dev", "make check", "make test", "make test-slow"]
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
        assert read_set_up(target) == "setup-dev"


def test_hooks_run_what_make_check_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]]
    assert [entry.split(" --force")[0] for entry in entries] == ["ruff check", "ruff format --check", "mypy"]
