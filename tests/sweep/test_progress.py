"""What a sweep shows while it runs."""

import io
import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from research.cli import format_duration
from research.sweep.progress import ProgressDisplay, read_last_metrics
from research.sweep.space import parse_space


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))


def make_progress(study: optuna.Study, folder: Path, workers: int, terminal: bool) -> tuple[ProgressDisplay, io.StringIO]:
    text = io.StringIO()
    space = parse_space({}, ["lr=choice(0.1,'0.2')", "model=a,b"], {}, None)
    return ProgressDisplay(
        study, space, folder, 4, workers, Console(file=text, force_terminal=terminal, width=100, highlight=False)
    ), text


def test_a_line_as_each_trial_begins_and_ends(study: optuna.Study, tmp_path: Path) -> None:
    screen, text = make_progress(study, tmp_path, 1, False)
    first, second, third = (study.ask() for _ in range(3))
    screen.print_trial_start("0", {"lr": "0.2", "model": "a"})
    study.tell(first, 0.5)
    study.tell(second, state=TrialState.FAIL)
    screen.update()
    third.set_user_attr("aside", "not counted")
    study.tell(third, state=TrialState.FAIL)
    screen.update()
    lines = text.getvalue().splitlines()
    assert lines[0].split() == ["trial", "#0", "lr='0.2'", "model=a"]
    assert lines[1].startswith("trial            #0 0.5, best 0.5 (#0), 2 of 4 done")
    assert lines[2].startswith("trial            #1 fail, best 0.5 (#0), 2 of 4 done")
    assert len(lines) == 3  # each is told once, and one put aside not at all


def test_a_live_line_for_each_trial_at_work(study: optuna.Study, tmp_path: Path) -> None:
    screen, text = make_progress(study, tmp_path, 2, True)
    for number in range(2):
        study.ask()
        (tmp_path / str(number)).mkdir()
    log = tmp_path / "0" / "metrics.jsonl"
    log.write_text(
        json.dumps({"step": 10, "val/acc": 0.25}) + "\n" + json.dumps({"step": 20, "train/loss": 1.5}) + '\n{"step": 3'
    )
    screen.update()
    screen.close()
    assert "#0 0 s  step 20  train/loss 1.5  val/acc 0.25" in text.getvalue()
    assert "#1 0 s  begins" in text.getvalue()
    assert read_last_metrics(log) == {"step": 20, "val/acc": 0.25, "train/loss": 1.5}
    assert read_last_metrics(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "119 min"), (9000, "2.5 h")]
)
def test_a_time_is_formatted_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
