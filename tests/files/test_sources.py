"""Which files are read, of several paths and patterns, and how progress is shown."""

import io
import sys
from pathlib import Path

import pytest

from research.files import sources
from research.files.sources import Counts, find_files, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/one.txt", "a/deep/two.md", "a/deep/three.png", "b/FOUR.TXT", "b/five.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path.resolve()


@pytest.mark.parametrize(
    ("paths", "patterns", "names"),
    [
        (["a"], None, "a/deep/two.md a/one.txt"),
        (["b", "a"], None, "b/FOUR.TXT a/deep/two.md a/one.txt"),
        (["a", "a/one.txt", "."], ["*.txt", "*.TXT"], "a/one.txt b/FOUR.TXT"),
        (["."], ["*.md", "*.log"], "a/deep/two.md b/five.log"),
        (["."], "deep/*", "a/deep/three.png a/deep/two.md"),
        (["b/five.log"], None, "b/five.log"),
    ],
)
def test_files_of_several_paths_and_patterns_are_there_once(
    folder: Path, paths: list[str], patterns: str | list[str] | None, names: str
) -> None:
    files = find_files([str(folder / path) for path in paths], patterns, Counts())
    assert [str(file.relative_to(folder)) for file in files] == names.split()


def test_progress_is_a_bar_on_a_terminal_and_one_line_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in (sources.LONG_WORK, sources.LONG_WORK - 1):
        with show_progress("tokens", size) as advance:
            advance(size)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "tokens: 67 MB\n"), "what takes a moment is not shown"
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with show_progress("tokens", 2 * sources.LONG_WORK) as advance:
        advance(sources.LONG_WORK)
    assert "67.1/134.2 MB" in terminal.getvalue()
