"""What a sweep shows while it runs."""

import io
import json
import re
import signal
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from research.cli import format_duration
from research.signals import Stopped, get_signum
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
    assert "#0 0 s  step 20  val/acc 0.25  train/loss 1.5" in text.getvalue()
    assert "#1 0 s  begins" in text.getvalue()
    assert read_last_metrics(log) == {"step": 20, "val/acc": 0.25, "train/loss": 1.5}
    assert read_last_metrics(tmp_path / "none") == {}


@pytest.mark.parametrize("monitor", ["val/exact_match", f"val/{'share_of_words_that_are_right_' * 2}exact_match"])
@pytest.mark.parametrize("width", [60, 80])
def test_no_line_of_a_narrow_terminal_wraps(width: int, monitor: str, study: optuna.Study, tmp_path: Path) -> None:
    """The monitor, the trials done and the time left survive."""
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, color_system=None, width=width, highlight=False)
    space = parse_space({}, ["lr=0.1,0.2"], {}, None)
    screen = ProgressDisplay(study, space, tmp_path, 1000, 2, terminal, monitor)
    study.add_trial(optuna.trial.create_trial(value=0.987654321))
    first, second = study.ask(), study.ask()
    (tmp_path / str(second.number)).mkdir()
    metrics = {"step": 123456, "train/loss": 1.2345, "val/loss": 2.3456, "val/acc": 0.9876, monitor: 0.5432}
    (tmp_path / str(second.number) / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    study.tell(first, 0.87654321)
    screen.update()
    screen.close()
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).strip("\r") for line in text.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert any(re.search(r"step 123456  val/.*match 0\.5432", line) for line in lines)
    assert any("#1 0.8765" in line and "2 of 1000 done" in line for line in lines)


def test_a_sweep_that_a_signal_ends_prints_its_command(study: optuna.Study, tmp_path: Path) -> None:
    screen, text = make_progress(study, tmp_path, 1, False)
    study.add_trial(optuna.trial.create_trial(value=0.5))
    screen.print_stop(signal.SIGTERM, ["python", "train.py", "-m", "lr=tag(log,interval(1e-4,1e-2))", "name=a b"])
    stopped, resume = text.getvalue().splitlines()
    assert stopped == "stopped          after 1 of 4 trials (SIGTERM)"
    assert resume == "resume with      python train.py -m 'lr=tag(log,interval(1e-4,1e-2))' 'name=a b'"


@pytest.mark.parametrize(
    ("error", "signum"),
    [
        (Stopped(signal.SIGUSR1), signal.SIGUSR1),
        (KeyboardInterrupt(), signal.SIGINT),
        (SystemExit(143), signal.SIGTERM),
        (SystemExit(129), signal.SIGHUP),
        (SystemExit(1), 0),
        (ValueError(), 0),
    ],
)
def test_the_signal_is_read_from_what_ends_the_process(error: BaseException, signum: int) -> None:
    assert get_signum(error) == signum


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.24, "3.2 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (119.4, "1 min 59 s"),
        (120, "2 min"),
        (200, "3 min 20 s"),
        (3599.7, "1 h"),
        (7500, "2 h 05 min"),
        (86399, "23 h 59 min"),
        (100_800, "1 d 04 h"),
    ],
)
def test_a_time_is_formatted_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
