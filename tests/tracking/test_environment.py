"""What a run keeps of the code that it rests on."""

import subprocess
from pathlib import Path

import pytest

from research.tracking import environment


def run_git(folder: Path, *words: str) -> None:
    own = ("-c", "user.name=me", "-c", "user.email=me@example.com")
    subprocess.run(["git", *own, *words], cwd=folder, check=True, capture_output=True)


def test_changes_are_a_patch_with_options_and_modules_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes the commit what the files were, but for what is no code."""
    root, copy = tmp_path / "root", tmp_path / "copy"
    (root / "conf" / "experiment").mkdir(parents=True)
    monkeypatch.setattr(environment, "ROOT", root)
    assert environment.find_changes() == "", "no repository"
    changed, new = root / "conf" / "config.yaml", [root / "conf" / "experiment" / "mein Läufer.yaml", root / "mine.py"]
    changed.write_text("a: 1\n\n\n")
    run_git(root, "init", "-q")
    run_git(root, "add", ".")
    run_git(root, "commit", "-qm", "first")
    run_git(tmp_path, "clone", "-q", "root", "copy")
    assert environment.find_changes() == ""
    changed.write_text("a: 2\n\n\n")
    new[0].write_text("# @package _global_\nsteps: 3\n")
    new[1].write_text("x = 1")
    (root / "notes.txt").write_text("a note")
    (tmp_path / "patch").write_text(environment.find_changes() + "\n")
    run_git(copy, "apply", "../patch")
    for path in (changed, *new):
        assert (copy / path.relative_to(root)).read_text() == path.read_text()
    assert not (copy / "notes.txt").exists()
