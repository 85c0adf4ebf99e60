"""The command lines of benchmarks, and the harness on known numbers."""

import ast
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from program import ROOT, run

from benchmarks import harness, models
from research.data.modular import modular
from research.training.state import Callback, State
from research.training.trainer import Trainer

PROGRAMS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


def run_main(name: str, args: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a program in this process, where torch is imported already; return its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *args])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return end.value.code


@pytest.mark.parametrize("name", [*PROGRAMS, "faults"])
def test_help_names_the_command(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--help prints the docstring of the program, whose third line is its command with every option."""
    path = ROOT / "benchmarks" / f"{name}.py"
    doc = ast.get_docstring(ast.parse((path if path.exists() else path.with_suffix("") / "__main__.py").read_text()))
    assert doc
    assert run_main(name, ["--help"], monkeypatch) == 0
    output = capsys.readouterr().out
    assert doc.splitlines()[0] in output
    command, options = doc.splitlines()[2].strip(), re.findall(r"^  (--[\w-]+)", output, re.MULTILINE)
    assert command.startswith(f"python -m benchmarks.{name}")
    assert [option for option in options if option not in command] == []


def test_make_runs_every_benchmark_but_the_long_ones() -> None:
    rule = re.search(r"\nbench: setup-dev .*?\n(.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert rule
    assert set(PROGRAMS) - set(re.findall(r"\w+", rule[1])) == {"mutants", "pruning", "sweep_kills"}


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("train_step", ["--parts", "foo"], "there is no part 'foo'; give some of eager, compiled, bf16, small"),
        ("train_step", ["--parts", "small,"], "there is no part ''"),
        ("train_step", ["--rounds", "1"], "1 is too few: give 2 or more"),
        ("train_step", ["--threads", "0"], "0 is too few: give 1 or more"),
        ("filter_cost", ["--sizes", "0.5"], "there is no size '0.5'; give some of 0.4, 10, 100"),
        ("filter_cost", ["--rounds", "1"], "1 is too few: give 2 or more"),
        ("faults", ["--only", "saves,x"], "there is no part 'x'; give some of saves, files, disks, runs, folders, sweeps"),
        ("start_up", ["--rounds", "x"], "invalid count value: 'x'"),
    ],
)
def test_a_wrong_option_is_refused(
    name: str, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(name, args, monkeypatch) == 2
    assert message in capsys.readouterr().err


def test_a_program_runs_by_its_path_too(tmp_path: Path) -> None:
    """python benchmarks/NAME.py from any folder: start_up needs nothing that is not installed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "start_up.py"), "--rounds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    record = json.loads(last)
    assert record["bounds"] == {"help/hydra": 0.5, "wrong/hydra": 2.5}
    assert record["help/hydra"] > 0
    assert record["processor"]
    assert any("python train.py --help" in line for line in table)


@pytest.mark.parametrize(
    "command",
    [
        "filter_cost --sizes 0.4 --rounds 2 --threads 1",
        "loop_overhead --steps 2 --rounds 2 --restarts 1",
        "sweep_overhead --trials 5 --rounds 1 --skewed 0",
        "tracking_overhead --steps 50 --pairs 1 --trackers mlflow,csv",
    ],
)
def test_a_small_measurement_ends_in_one_object_of_json(command: str) -> None:
    done = run(["-m", *f"benchmarks.{command}".split()], ROOT, dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert {"bounds", "processor"} <= set(json.loads(done.stdout.splitlines()[-1]))


def test_a_signal_in_a_run_ends_the_program() -> None:
    """The run itself ends in peace, and would count as a fast one that lost the rest of its numbers."""

    class Interrupt(Callback):
        def on_step(self, state: State) -> None:
            if state.progress.step == 3:
                signal.raise_signal(signal.SIGTERM)

    data = modular(p=11)
    with pytest.raises(SystemExit) as end:
        models.fit(Trainer(50, batch_size=8, device="cpu"), models.build_parts(data, 32, 1, 2), data, Interrupt())
    assert end.value.code == 128 + signal.SIGTERM


def test_arms_run_in_turn_and_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def make_arm(name: str) -> harness.Clock:
        def measure() -> float:
            calls.append(name)
            return float(len(calls))

        return measure

    times = harness.run_interleaved({name: make_arm(name) for name in "abc"}, rounds=4, warm_up=2)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 6
    assert len({tuple(names) for names in rounds}) > 1, "the order changes"
    assert min(value for values in times.values() for value in values) == 7.0, "two rounds of three did not count"


def test_ratios_are_medians_within_rounds() -> None:
    """A slow moment of the machine hits both sides of a round, so it does not change the ratio."""
    base = [1.0, 10.0, 1.0, 2.0, 1.0]
    ratio = harness.compare([2.0 * value for value in base], base)
    assert ratio == (2.0, 2.0, 2.0)
    assert harness.compare([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == (1.0, 2.0, 3.0)
    assert harness.compare([3.0], [2.0]) == (1.5, 1.5, 1.5), "one round is enough"
    assert str(harness.compare([3.0], [2.0])) == "1.500-1.500"


def test_an_arm_measures_by_its_clock() -> None:
    ticks = iter([1.0, 3.5])
    assert harness.make_arm(lambda: None, lambda: next(ticks))() == 2.5


def test_bounds_are_checked_at_their_side_and_in_parts() -> None:
    results = {"a": 1.0, "b": 3.0, "part": {"c": 2.0, "d": 0.5}, "list": []}
    bounds = {"a": 1.0, "missing": 0.0, "part": {"c": 1.5, "d": 1.0}, "list": []}
    lines = harness.list_violations(results, bounds, {"a": 2.0, "b": 3.0, "missing": 9.0})
    assert lines == ["part: c is 2, at most 1.5 was expected", "a is 1, at least 2 was expected"]


def test_the_last_line_is_one_object_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    harness.finish({"a": 1.23456, "part": {"b": 2.00001}, "nan": float("nan"), "count": 3}, {"a": 1.0}, {"count": 1})
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == ["outside its bound: a is 1.235, at most 1 was expected"]
    record = json.loads(last)
    assert record.pop("processor")
    expected = {"a": 1.2346, "part": {"b": 2.0}, "nan": None, "count": 3, "bounds": {"a": 1.0}, "at least": {"count": 1}}
    assert record == expected


def test_a_table_prints_rows_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    table = harness.Table("arm", "ms", width=6)
    table.add("ours", f"{random.Random(0).random():.2f}")
    table.add("peer", "    not installed")
    assert capsys.readouterr().out.splitlines() == ["arm              ms", "ours           0.84", "peer      not installed"]


def test_a_report_has_a_row_for_each_arm_and_returns_the_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    times = {"base": [0.001, 0.001], "ours": [0.003, 0.003]}
    labels, reasons, columns = {"ours": "us"}, {"peer": "not installed"}, {"MB": {"base": "1", "ours": "2"}}
    options: dict[str, Any] = {"labels": labels, "reasons": reasons, "columns": columns}
    assert harness.report("arm", times, {"base": times["base"]}, width=6, **options) == {"ours/base": 3.0}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:3] == [["base", "1.00", "1.000", "1.000-1.000", "1"], ["us", "3.00", "3.000", "3.000-3.000", "2"]]
    assert rows[3] == ["peer", "not", "installed"]


def test_a_missing_peer_is_named_with_its_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.has_peer("ours", "", "json", "csv")
    assert not harness.has_peer("theirs", "some-package", "json", "no_such_module")
    assert capsys.readouterr().out == "theirs is not compared: pip install some-package\n"


def test_a_failure_of_a_program_is_raised_with_the_end_of_its_output(tmp_path: Path) -> None:
    program = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ['MORE'], os.getcwd()); sys.exit('why')"
    run_program = partial(harness.run_python, "-c", program, folder=tmp_path, variables={"MORE": "2"})
    code, output = run_program(check=False)
    assert code == 1
    assert set(output.split()) == {"1", "2", str(tmp_path), "why"}
    with pytest.raises(RuntimeError, match=r"ended with 1(.|\n)*why"):
        run_program()
