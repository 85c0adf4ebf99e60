"""Row 26: a refusal names the right reason: an empty variable, a key nobody typed, an interval.

Each advice is taken here: what it says to give passes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, TINY

from research.preflight.check import find_mistakes
from research.preflight.program import prepare
from research.signals import check_environment, get_launched_ranks

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ({}, (0, 1)),
        (dict.fromkeys(VARIABLES, ""), (0, 1)),
        ({"WORLD_SIZE": "", "RANK": "3"}, (0, 1)),
        ({"WORLD_SIZE": " ", "RANK": " "}, (0, 1)),
        ({"WORLD_SIZE": "1", "RANK": "3"}, (0, 1)),
        ({"WORLD_SIZE": "2", "RANK": ""}, (0, 2)),
        ({"WORLD_SIZE": "4", "RANK": "3"}, (3, 4)),
    ],
    ids=str,
)
def test_an_empty_variable_of_a_launcher_is_one_that_is_not_set(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], ranks: tuple[int, int]
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert get_launched_ranks() == ranks
    assert not [name for name in VARIABLES if os.environ.get(name, "set").strip() == ""], "torch and accelerate read them too"


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in VARIABLES for value in ("two", "-1", "1.5")] + [("WORLD_SIZE", "0"), ("LOCAL_WORLD_SIZE", "0")],
)
def test_a_variable_that_is_no_number_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        prepare(["train.py"])
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == f"error: {name}={value} is no number of a launcher's\n  unset {name}, or start it by torchrun\n"
    )


WHOLE = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 without WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT"),
        ({**WHOLE, "MASTER_ADDR": ""}, "LOCAL_RANK=0 without MASTER_ADDR"),
        *(
            ({"OMP_NUM_THREADS": text}, f"OMP_NUM_THREADS={text} is no number of threads")
            for text in ("0", "x", "-1", "1.5", "2,")
        ),
        ({"OMP_NUM_THREADS": "9" * 30}, "OMP_NUM_THREADS=9999"),
        (WHOLE, ""),
        *(({"OMP_NUM_THREADS": text}, "") for text in ("", " ", "4", " 4 ", "4,2")),
    ],
    ids=str,
)
def test_variables_of_a_process_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], values: dict[str, str], reason: str
) -> None:
    """It said: MASTER_ADDR expected; or nothing, but for words of libgomp."""
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    if reason:
        with pytest.raises(SystemExit) as ended:
            prepare(["train.py"])
        assert ended.value.code == 2
        assert f"error: {reason}" in capsys.readouterr().err
    else:
        check_environment()
        assert os.environ.get("OMP_NUM_THREADS", "set").strip()


def test_a_run_with_empty_variables_trains(tmp_path: Path) -> None:
    environment = {**os.environ, **dict.fromkeys(VARIABLES, ""), "OMP_NUM_THREADS": ""}
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "tracker=none", f"out={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 process" in done.stdout


@pytest.mark.parametrize(
    ("line", "key", "advice"),
    [
        ("experiment=grokking data=text", "data.train_fraction", ["experiment=grokking", "data=text"]),
        ("experiment=grokking model=hub", "model.dim", ["experiment=grokking", "model=hub"]),
        ("experiment=grokfast_modular schedule.warmup=5 data=text", "data.p", ["experiment=grokfast_modular", "data=text"]),
        ("experiment=bitnet_gap_digits optim=grokfast optim.lamb=-1", "", []),
    ],
)
def test_what_a_preset_sets_is_not_blamed_on_a_key_that_nobody_typed(line: str, key: str, advice: list[str]) -> None:
    mistakes = find_mistakes(line.split(), False)
    if not key:  # a key that is typed beside a preset is to blame itself
        assert [mistake.splitlines()[0] for mistake in mistakes] == ["error: optim.lamb=-1"]
        return
    mistake = next(mistake for mistake in mistakes if f"{advice[0]} sets {key}: " in mistake)
    assert mistake.splitlines()[0] == f"error: {' '.join(advice)}"
    assert mistake.splitlines()[-1].strip() == f"leave out {' or '.join(advice)}"
    for left_out in advice:
        again = find_mistakes([word for word in line.split() if word != left_out], False)
        assert not [mistake for mistake in again if key in mistake]


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("seed=interval(0,5)", "seed=int(interval(0,5))"),
        ("model.dim=tag(log,interval(16,64))", "model.dim=tag(log,int(interval(16,64)))"),
        ("seed=interval(0.5,5.5)", "seed=int(interval(1,5))"),
        ("trainer.grad_accum=interval(1,4)", "trainer.grad_accum=int(interval(1,4))"),
        ("hydra.sweeper.params={seed:'interval(0,5)'}", "seed=int(interval(0,5))"),
    ],
)
def test_an_interval_of_a_whole_number_is_told_how_to_be_one(line: str, advice: str) -> None:
    """It named a value that nobody typed: got 0.0."""
    (mistake,) = find_mistakes([line], True)
    words = mistake.splitlines()
    assert re.search(r" takes a whole number in \[\d, inf\); this interval has fractions$", words[1])
    assert words[2].strip() == f"give '{advice}'"
    assert find_mistakes([advice], True) == []


@pytest.mark.parametrize("line", ["seed=interval(-5,-1)", "seed=int(interval(-5,-1))"])
def test_an_interval_that_no_cast_makes_good_is_refused_by_its_values(line: str) -> None:
    mistakes = find_mistakes([line], True)
    assert mistakes
    assert all("trainer.seed takes a whole number in [0, inf); got " in mistake for mistake in mistakes)
