"""The command lines of benchmarks: what cannot be measured is told before anything is built."""

import runpy
import sys

import pytest
from program import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train_step", ["--parts", "foo"], "there is no part 'foo'; give some of eager, compiled, bf16, small"),
        ("train_step", ["--parts", "small,"], "there is no part ''"),
        ("train_step", ["--rounds", "1"], "1 is too few: give 2 or more"),
        ("train_step", ["--threads", "0"], "0 is too few: give 1 or more"),
        ("filter_cost", ["--sizes", "0.5"], "there is no size '0.5'; give some of 0.4, 10, 100"),
        ("filter_cost", ["--rounds", "1"], "1 is too few: give 2 or more"),
    ],
)
def test_what_it_cannot_measure_is_named(
    name: str, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert end.value.code == 2
    assert words in capsys.readouterr().err
