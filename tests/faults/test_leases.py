"""Row 13: a pause longer than a lease: a held folder is waited for, and a late result is taken, not lost."""

import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import Trial, TrialState
from program import TINY, start_run
from sweep_worker import make_worker
from sweeping import load_folder_study

from research.files.locks import HeldError, lock
from research.run import get_finished_value
from research.run_dir import RunConfig, Summary
from research.sweep import queue, worker
from research.sweep.objective import Outcome
from research.sweep.optuna_private import get_trial_id
from research.sweep.queue import LATE_ATTR, LEASE, TRIES
from research.sweep.worker import Worker

BOUND: dict[str, Any] = {"constraints": {"params": "<= 2"}}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "TAKEOVER_WAIT", 0.01)
    monkeypatch.setattr(worker, "WAIT", 0.02)


def reach(number: int, folder: Path) -> float:
    return 10.0 + number


def take(own: Worker) -> Trial:
    (trial,), _ = own.take_trials()
    return trial


def fall_asleep(own: Worker, trial: Trial) -> None:
    """Let a worker's lease end, as where its machine was suspended: another machine sees an old sign of life."""
    own.queue.release(trial)
    lease = {"host": "elsewhere", "token": own.queue.token, "beat": time.time() - 3600}
    own.queue.storage.set_trial_user_attr(get_trial_id(trial), LEASE, lease)


@pytest.mark.parametrize("name", ["0", "0/1"])  # a run, and a repeat
@pytest.mark.parametrize("host", ["elsewhere", "here"])  # a machine that sleeps, and a job that has outlived its sweeper
def test_a_trial_is_not_taken_over_while_its_folder_is_held(tmp_path: Path, name: str, host: str) -> None:
    first, second = [make_worker(tmp_path, reach, "x=1", **BOUND) for _ in range(2)]
    trial = take(first)
    fall_asleep(first, trial)
    if host == "here":
        lease = {"host": second.queue.host, "token": "gone", "beat": 0.0}
        first.queue.storage.set_trial_user_attr(get_trial_id(trial), LEASE, lease)
    with lock(tmp_path / name):
        assert second.take_trials() == ([], True)  # there may be one later
    assert take(second).number == 0
    second.queue.close()
    first.queue.close()


def test_the_sleeper_that_nobody_has_replaced_reports_as_ever(tmp_path: Path) -> None:
    first, second = [make_worker(tmp_path, reach, "x=1", **BOUND) for _ in range(2)]
    trial = take(first)
    with lock(tmp_path / "0"):
        fall_asleep(first, trial)
        assert second.take_trials() == ([], True)
        first.tell_study(trial, Outcome([0.5], folder=tmp_path / "0"))
    assert second.take_trials() == ([], False)
    assert [(t.state, t.values) for t in load_folder_study(tmp_path, "s").trials] == [(TrialState.COMPLETE, [0.5])]
    for process in (first, second):
        process.queue.close()


LATE = Outcome([0.5], folder=Path("/late"), limits={"params": 3.0})


@pytest.mark.parametrize(
    ("late", "own", "state", "values"),
    [
        (LATE, Outcome(error="ValueError: mine"), TrialState.COMPLETE, [0.5]),  # the failure does not hide it
        (LATE, Outcome([0.25], folder=Path("/own")), TrialState.COMPLETE, [0.25]),  # the owner's word counts
        (Outcome(error="ValueError: late"), Outcome(error="ValueError: mine"), TrialState.FAIL, None),
        (Outcome(error="ValueError: late"), Outcome([0.25], folder=Path("/own")), TrialState.COMPLETE, [0.25]),
    ],
)
def test_the_late_result_is_refused_and_kept(
    tmp_path: Path, late: Outcome, own: Outcome, state: TrialState, values: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The first process wakes up while the second, which has taken its trial over, is still at it."""
    first, second = [make_worker(tmp_path, reach, "x=1", **BOUND) for _ in range(2)]
    trial = take(first)
    fall_asleep(first, trial)
    again = take(second)
    first.tell_study(trial, late)
    assert ("here it has failed: ValueError: late" if late.error else "here it has reached [0.5], in /late") in caplog.text
    assert load_folder_study(tmp_path, "s").trials[0].state == TrialState.RUNNING
    second.tell_study(again, own)
    (stored,) = load_folder_study(tmp_path, "s").trials
    assert (stored.state, stored.values, stored.user_attrs.get(TRIES)) == (state, values, 2)
    for process in (first, second):
        process.queue.close()


def test_a_late_result_is_taken_before_anything_is_run_again(tmp_path: Path) -> None:
    """The second process dies as well: the third one finds what the first has reached."""
    first, second = [make_worker(tmp_path, reach, "x=1", **BOUND) for _ in range(2)]
    trial = take(first)
    fall_asleep(first, trial)
    again = take(second)
    first.tell_study(trial, LATE)
    fall_asleep(second, again)

    def fail(number: int, folder: Path) -> float:
        raise AssertionError("it was run again")

    third = make_worker(tmp_path, fail, "x=1", **BOUND)
    third.run_all()
    (stored,) = load_folder_study(tmp_path, "s").trials
    assert (stored.state, stored.values, stored.user_attrs["folder"]) == (TrialState.COMPLETE, [0.5], "/late")
    assert stored.constraints == {"params": 1.0}  # beyond its bound
    for process in (first, second, third):
        process.queue.close()


def test_a_late_result_of_a_pruned_trial_stays_pruned(tmp_path: Path) -> None:
    first, second = [make_worker(tmp_path, reach, "x=1", **BOUND) for _ in range(2)]
    trial = take(first)
    fall_asleep(first, trial)
    again = take(second)
    again.set_user_attr("pruned", 8)
    first.tell_study(trial, LATE)
    assert LATE_ATTR not in second.queue.list_trials()[0].user_attrs
    second.tell_study(again, Outcome([0.7]))
    assert load_folder_study(tmp_path, "s").trials[0].state == TrialState.PRUNED
    for process in (first, second):
        process.queue.close()


def test_a_late_result_of_a_trial_that_has_ended_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = [make_worker(tmp_path, reach, "x=1", **BOUND) for _ in range(2)]
    trial = take(first)
    fall_asleep(first, trial)
    second.tell_study(take(second), Outcome([0.25]))
    first.tell_study(trial, LATE)
    assert "#0 was taken over by another process" in caplog.text
    assert "it has reached [0.5], in /late" in caplog.text
    assert load_folder_study(tmp_path, "s").trials[0].values == [0.25]
    for process in (first, second):
        process.queue.close()


def test_a_job_that_finds_its_folder_held_waits(tmp_path: Path) -> None:
    """Where the folder of a trial is not the one of its number, only the job finds out."""
    calls: list[int] = []

    def job(number: int, folder: Path) -> float:
        calls.append(number)
        if calls.count(0) == 1 and number == 0:
            raise HeldError("out: another run is writing")
        return float(number)

    own = make_worker(tmp_path, job)
    own.run_all()
    assert calls == [0, 0, 1, 2]
    assert [(t.state, t.values, t.user_attrs.get(TRIES)) for t in own.study.trials] == [
        (TrialState.COMPLETE, [float(n)], None) for n in range(3)
    ]
    own.queue.close()


def test_repeats_that_another_process_has_taken_over_are_no_result(tmp_path: Path) -> None:
    """A mean over some of the seeds is not the mean over all."""
    own = make_worker(tmp_path, reach, "x=1", "seed=0", repeats={"n": 3, "over": "seed", "reduce": "mean"})
    trial = take(own)
    fall_asleep(own, trial)
    own.queue.storage.set_trial_user_attr(get_trial_id(trial), LEASE, {"host": "b", "token": "b", "beat": time.time()})
    own.tell_study(trial, own.run_repeats(trial))
    assert LATE_ATTR not in own.queue.list_trials()[0].user_attrs
    own.queue.close()


@pytest.mark.parametrize(("path", "value"), [("auto", 0.5), (None, None), ("/another/run", None)])
def test_a_finished_summary_is_taken_also_without_a_checkpoint(tmp_path: Path, path: str | None, value: float | None) -> None:
    requested = RunConfig("name", "study", tmp_path, {"resume": {"path": path}, "lr": 1.0}, [], {})
    Summary("FINISHED", config=requested.digest, monitor="val/acc", value=0.5).write(tmp_path)
    assert get_finished_value(requested) == value
    other = RunConfig("name", "study", tmp_path, {"resume": {"path": path}, "lr": 2.0}, [], {})
    assert get_finished_value(other) is None


def test_a_sweep_waits_for_a_folder_that_another_process_holds(tmp_path: Path) -> None:
    """The program itself: the first trial's folder is held as the sweep begins, and let go once the other has ended."""
    folder = tmp_path / "out" / "modular" / "s"
    small = [*TINY, "trainer.steps=4", "tracker=jsonl", "hydra.sweeper.plots=false"]
    with lock(folder / "0"):
        process = start_run(tmp_path, *small, "-m", "seed=0,1", "hydra.sweeper.study_name=s")
        for _ in range(600):
            time.sleep(0.1)
            if (folder / "1" / "summary.json").exists():  # the other trial does not wait
                break
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    trials = load_folder_study(folder).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
    assert "#0 waits for its folder" in output + errors
    assert "tries" not in trials[0].user_attrs
