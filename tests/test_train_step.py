"""The command line of benchmarks/train_step.py: what cannot be measured is told before anything is built."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "foo"], "there is no part 'foo'; give some of eager, compiled, bf16, small"),
        (["--parts", "small,"], "there is no part ''"),
        (["--rounds", "1"], "1 is too few: give 2 or more"),
        (["--threads", "0"], "0 is too few: give 1 or more"),
    ],
)
def test_what_it_cannot_measure_is_named(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "benchmarks" / "train_step.py"), run_name="__main__")
    assert end.value.code == 2
    assert words in capsys.readouterr().err
