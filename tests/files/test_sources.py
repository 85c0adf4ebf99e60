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


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("train.csv test.csv", "(train.csv, test.csv), and all of them would be learnt\ngive data.path=/train.csv: "),
        ("Train.jsonl VALID.csv notes.txt", "(Train.jsonl, VALID.csv)"),
        ("deep/wiki.train.txt deep/wiki.valid.txt deep/wiki.test.txt", "give data.path=/deep/wiki.train.txt: "),
        ("train/a.txt dev/a.txt", "(train, dev), and all of them would be learnt\ngive data.path=/train: "),
        ("x/train/pos/a.txt x/unsup/b.txt", "(x/train, x/unsup)"),
        ("train-00-of-02.csv train-01-of-02.csv test-00-of-01.csv", """give 'data.pattern="train-*-of-*.csv"': """),
        ("train2017/a.txt val2017/a.txt", "give data.path=/train2017: "),
        ("trainset.txt testset.txt", "(trainset.txt, testset.txt)"),
        ("training_set/a.txt Eval/a.txt", "(training_set, Eval)"),
        ("my_train_data.csv my_validation_data.csv", "(my_train_data.csv, my_validation_data.csv)"),
        ("train_1.csv train_2.csv eval.csv", """give 'data.pattern="train_*.csv"': """),
        ("train-00000-of-00001-a09b74b3ef9c3b56.csv test-00000-of-00001-b09b74b3ef9c3b56.csv", "all of them"),
        ("(v1)/train.txt (v1)/test.txt", "give 'data.path=\"/(v1)/train.txt\"': "),
        ("train.txt acid_test.txt", ""),
        ("training-guide.md testing-guide.md", ""),
        ("model-training.md model-testing.md", ""),
        ("train/README.md test/README.md", ""),
        ("training/a.txt testing/a.txt deploy/a.txt", ""),
        ("train.txt trainer.txt", ""),
        ("dev.md test.md", ""),
        ("train.py test.py", ""),
        ("train/a.py test/a.py train/b.txt", ""),
        ("train.txt test.png", ""),
        ("a/train.txt b/test.txt", ""),
    ],
)
def test_splits_are_not_read_as_one(tmp_path: Path, names: str, told: str) -> None:
    """Files of each split may be read together where each is named."""
    files = [tmp_path.resolve() / name for name in names.split()]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    if told:
        with pytest.raises(ValueError, match="it holds splits") as caught:
            find_files(str(tmp_path), None, Counts())
        assert told in str(caught.value).replace(str(tmp_path.resolve()), "")
    else:
        find_files(str(tmp_path), None, Counts())
    wanted = [str(file) for file in files if file.suffix != ".png"]
    assert len(find_files(wanted, None, Counts())) == len(wanted)


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
