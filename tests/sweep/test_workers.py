"""Sweeps of several processes: workers without a barrier, who owns a trial, and what a kill leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from program import ROOT, make_environment, run, start_run, start_torchrun, train
from sweeping import connect_journal, load_folder_study, load_study, run_sweep

from research.run_dir import WORKER_ENV_VAR
from research.sweep import queue, worker
from research.sweep.optuna_private import get_trial_id
from research.sweep.queue import LEASE, Queue
from research.tracking.storage import FileLock

STUDY = ["x=interval(-5.0,5.0)", "hydra/sweeper/sampler=random"]


def open_queue(folder: Path, total: int = 4, **more: float) -> Queue:
    """One process's view of a study in a folder; each has its own storage, as another process would."""
    study = optuna.create_study(study_name="s", storage=connect_journal(folder), load_if_exists=True)
    return Queue(study, folder, total, lease=more.get("lease", 60.0), max_retries=int(more.get("max_retries", 2)))


def test_workers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Every fourth trial takes six times as long: beside one, others begin and end."""
    run_sweep(tmp_path, *STUDY, "hydra.sweeper.n_trials=8", "hydra.sweeper.workers=2", "hydra.sweeper.devices=[3,5]", pause=0.5)
    rows = [line.split() for line in (tmp_path / "times.txt").read_text().splitlines()]
    assert Counter(number for number, *_ in rows) == {str(n): 2 for n in range(8)}
    assert len({pid for _, _, pid, _ in rows}) == 2
    assert {row[3] for row in rows} == {"3", "5"}
    assert {trial.state for trial in load_study(tmp_path).trials} == {TrialState.COMPLETE}
    slow = [float(when) for number, when, *_ in rows if number == "4"]
    during = [number for number, when, *_ in rows if number != "4" and slow[0] < float(when) < slow[1]]
    assert len(set(during)) >= 3  # a barrier would let only one other run beside it


def test_only_as_many_trials_as_requested(tmp_path: Path) -> None:
    """Four threads with a queue each ask at once."""
    queues = [open_queue(tmp_path, total=20) for _ in range(4)]
    taken: list[int] = []

    def take(own: Queue) -> None:
        while (trial := own.take_next()[0]) is not None:
            taken.append(trial.number)
            own.release(trial)
            own.study.tell(trial, 0.0)

    threads = [threading.Thread(target=take, args=(own,)) for own in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(20))
    for own in queues:
        own.close()


def test_those_of_other_machines_give_back_what_is_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = open_queue(tmp_path, total=1), open_queue(tmp_path, total=1)
    counted = Queue.count_used
    monkeypatch.setattr(Queue, "count_used", lambda self, trials: 0 if not sneaked else counted(self, trials))
    sneaked: list[int] = []
    first, _ = ours.take_next()
    real_ask = theirs.study.ask

    def ask_later() -> optuna.Trial:
        sneaked.append(1)
        return real_ask()

    monkeypatch.setattr(theirs.study, "ask", ask_later)
    assert first is not None
    assert theirs.take_next() == (None, True)
    states = [(t.state, "aside" in t.user_attrs) for t in theirs.study.trials]
    assert states == [(TrialState.RUNNING, False), (TrialState.FAIL, True)]
    ours.close()
    theirs.close()


def test_a_trial_that_was_let_go_is_taken_over_at_once_with_its_values(tmp_path: Path) -> None:
    first = open_queue(tmp_path)
    trial, _ = first.take_next()
    assert trial is not None
    value = trial.suggest_float("x", 0, 1)
    second = open_queue(tmp_path)
    other, _ = second.take_next()
    assert other is not None
    assert other.number == 1  # the first one is alive
    second.release(other)
    second.study.tell(other, 1.0)
    first.close()
    again, _ = second.take_next()
    assert again is not None
    assert (again.number, again.suggest_float("x", 0, 1)) == (0, value)
    assert "tries" not in again.user_attrs  # its process did not die
    assert not first.owns(trial)
    second.close()


def test_a_trial_of_another_machine_is_dead_after_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "TAKEOVER_WAIT", 0.01)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    far = open_queue(tmp_path, total=1, lease=1.0)
    trial, _ = far.take_next()
    assert trial is not None
    monkeypatch.undo()
    monkeypatch.setattr(queue, "TAKEOVER_WAIT", 0.01)
    near = open_queue(tmp_path, total=1, lease=1.0)
    time.sleep(2.0)
    assert near.take_next() == (None, True)  # it renews its lease, longer than one lasts
    far.stop_event.set()  # as a machine that has lost its power
    far.thread.join()
    time.sleep(1.2)
    again, _ = near.take_next()
    assert again is not None
    assert again.number == 0
    near.close()
    far.own_lock.release()


def test_a_trial_without_a_lease_is_dead_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = open_queue(tmp_path, total=1)
    own.study.ask()  # and killed right here
    assert own.take_next() == (None, True)
    monkeypatch.setattr(queue, "LEASE_GRACE", 0.0)
    again, _ = own.take_next()
    assert again is not None
    assert again.number == 0
    own.close()


def test_a_trial_that_kills_its_process_again_and_again_fails(tmp_path: Path) -> None:
    for _ in range(3):
        own = open_queue(tmp_path, total=1)
        trial, _ = own.take_next()
        assert trial is not None
        own.held_trials.clear()  # as if killed: not let go
        own.close()
        own.storage.set_trial_user_attr(get_trial_id(trial), LEASE, {"host": own.host, "token": "gone", "beat": 0.0})
    own = open_queue(tmp_path, total=1)
    assert own.take_next() == (None, False)
    assert own.study.trials[0].state == TrialState.FAIL
    assert "again and again" in own.study.trials[0].user_attrs["error"]
    own.close()


def test_a_workers_death_is_no_reason_to_stop(tmp_path: Path) -> None:
    output = run_sweep(tmp_path, *STUDY, "hydra.sweeper.n_trials=6", "hydra.sweeper.workers=2", die_at=2, pause=0.1)
    assert "died by signal 9" in output
    trials = load_study(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert trials[2].user_attrs["tries"] == 2


def test_the_lock_of_a_journal_ends_with_its_process(tmp_path: Path) -> None:
    journal = str(tmp_path / "j")
    script = "import os, pathlib\nfrom research.tracking.storage import FileLock\n"
    script += f"FileLock(pathlib.Path({journal!r})).acquire(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    lock = FileLock(tmp_path / "j")
    begun = time.monotonic()
    lock.acquire()
    lock.release()
    assert time.monotonic() - begun < 1.0


PRUNED = ["steps=40", "eval_every=4", "trainer.device=cpu", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16",
          "hydra.sweeper.plots=false", "hydra/sweeper/pruner=threshold", "hydra.sweeper.study_name=s"]  # fmt: skip


def test_a_pruned_run_ends_as_pruned_everywhere(tmp_path: Path) -> None:
    """In Hydra without an error, in the study, in the run folder and in MLflow."""
    done = train(
        tmp_path, *PRUNED, "-m", "seed=0,1", "hydra.sweeper.pruner.lower=0.99", "hydra.sweeper.pruner.n_warmup_steps=8"
    )
    assert "Error" not in done.stderr
    folder = tmp_path / "out" / "modular" / "s"
    study = load_folder_study(folder)
    assert [(t.state, t.last_step, t.user_attrs["pruned"]) for t in study.trials] == [(TrialState.PRUNED, 8, 8)] * 2
    summary = json.loads((folder / "0" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("PRUNED", 8)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(summary["mlflow_run_id"])
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "PRUNED")
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"


def test_ctrl_c_leaves_a_report_and_the_same_command_resumes(tmp_path: Path) -> None:
    """The run under way is saved, and goes on in its folder and in its MLflow run, each step once."""
    command = ["model=bitmlp", "data=digits", "trainer.device=cpu", "steps=150", "callbacks.checkpoint.every=50", "-m",
               "lr=1e-3,3e-3", "hydra.sweeper.plots=false"]  # fmt: skip
    process = start_run(tmp_path, *command)
    (sweep,) = wait_for_sweep(tmp_path / "out" / "digits")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped          after 0 of 2 trials (SIGINT)" in output
    assert "resume with      python " in output
    assert (sweep / "trials.csv").exists()
    train(tmp_path, *command)
    assert list((tmp_path / "out" / "digits").glob("sweep_*")) == [sweep]
    for number in range(2):
        steps = [json.loads(line)["step"] for line in (sweep / str(number) / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps))
        assert json.loads((sweep / str(number) / "summary.json").read_text())["steps"] == 150
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])  # type: ignore[union-attr]
    assert Counter(run.info.status for run in runs) == {"FINISHED": 3}
    fresh = train(tmp_path, *command)
    assert "resumed after" not in fresh.stdout  # it was finished: the command runs the grid anew
    assert len(list((tmp_path / "out" / "digits").glob("sweep_*"))) == 2


def wait_for_sweep(root: Path) -> list[Path]:
    """The folder of a sweep, once its first run has logged some steps."""
    for _ in range(600):
        logs = [path for path in root.glob("sweep_*/0/metrics.jsonl") if len(path.read_text().splitlines()) >= 5]
        if logs:
            return [path.parents[1] for path in logs]
        time.sleep(0.1)
    raise AssertionError("the sweep did not begin")


@pytest.mark.slow
def test_kills_at_random_lose_nothing(tmp_path: Path) -> None:
    """A small form of the campaign of thirty."""
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep_kills.py"), "--kills", "2", "--trials", "4", "--seed", "3"]
    done = subprocess.run(command, env=make_environment(tmp_path), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["wrong"] == []


def test_a_worker_knows_that_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER_ENV_VAR, raising=False)
    assert worker.get_worker_spec() is None
    assert not worker.is_orphaned()
    monkeypatch.setenv(WORKER_ENV_VAR, json.dumps({"index": 0, "folder": ".", "study": "s", "parent": os.getppid()}))
    assert not worker.is_orphaned()
    monkeypatch.setenv(WORKER_ENV_VAR, json.dumps({"index": 0, "folder": ".", "study": "s", "parent": -1}))
    assert worker.is_orphaned()


def test_runs_of_several_processes_are_swept_and_pruned_together(tmp_path: Path) -> None:
    """Under torchrun the first process asks and reports; the others run the same jobs and stop at the same step."""
    ask = ["lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.pruner.lower=0.99", "hydra.sweeper.n_trials=2", "trainer=ddp"]
    command = [str(ROOT / "train.py"), *PRUNED, *ask, "tracker=none", f"out={tmp_path / 'out'}", "-m"]
    process = start_torchrun(command, tmp_path, make_environment(tmp_path))
    output = "".join(process.communicate())
    assert process.returncode == 0, output
    folder = tmp_path / "out" / "modular" / "s"
    assert [t.state for t in load_folder_study(folder).trials] == [TrialState.PRUNED] * 2
    assert [json.loads((folder / n / "summary.json").read_text())["steps"] for n in "01"] == [4, 4]


def test_a_signal_reaches_the_workers_who_save_what_they_are_at(tmp_path: Path) -> None:
    """Once each: a second one would end them at once."""
    command = ["model=bitmlp", "data=digits", "trainer.device=cpu", "steps=3000", "tracker=jsonl", "-m", "seed=0,1,2,3",
               "hydra.sweeper.plots=false", "hydra.sweeper.workers=2", "hydra.sweeper.study_name=s"]  # fmt: skip
    process = start_run(tmp_path, *command)
    folder = tmp_path / "out" / "digits" / "s"
    for _ in range(600):
        logs = [folder / n / "metrics.jsonl" for n in "01"]
        if all(log.exists() and len(log.read_text().splitlines()) >= 5 for log in logs):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 143, output
    assert [json.loads((folder / n / "summary.json").read_text())["status"] for n in "01"] == ["STOPPED"] * 2
    assert (folder / "results.md").exists()
    assert {t.user_attrs[LEASE]["token"] for t in load_folder_study(folder).trials} == {""}  # let go


def test_a_worker_that_cannot_work_is_reported(tmp_path: Path) -> None:
    output = run_sweep(
        tmp_path, *STUDY, "hydra.sweeper.n_trials=4", "hydra.sweeper.workers=2", fails=True, y="${oc.env:NOT_THERE}"
    )
    assert "hydra.sweeper.workers: 2 of them failed" in output or "NOT_THERE" in output


def test_a_trial_that_another_process_has_ended_is_left_alone(tmp_path: Path) -> None:
    """As after a pause longer than the lease: the first process says so and goes on."""
    script = (
        "import runpy\n"
        "from research.sweep.queue import Queue\n"
        "once = Queue.owns\n"
        "def owns(self, trial):\n"
        "    if trial.number == 1:\n"
        "        self.study.tell(trial.number, 0.25)\n"
        "    return once(self, trial)\n"
        "Queue.owns = owns\n"
        "runpy.run_path('app.py', run_name='__main__')\n"
    )
    (tmp_path / "late.py").write_text(script)
    run_sweep(tmp_path, "x=1,2,3")
    (tmp_path / "sweep").rename(tmp_path / "first")
    own = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "HYDRA_FULL_ERROR": "1"}
    done = run(["late.py", "-m", "x=1,2,3"], tmp_path, own)
    assert done.returncode == 0, done.stderr
    assert "#1 was taken over by another process" in done.stdout + done.stderr
    assert [trial.value for trial in load_study(tmp_path).trials] == [1, 0.25, 9]


def test_a_storage_that_goes_away_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    output = run_sweep(tmp_path, "x=1,2", "hydra.sweeper.storage=sqlite:///gone.db", "+lose=gone.db", fails=True)
    assert "hydra.sweeper.storage=sqlite:///" in output
    assert "is gone: " in output
    assert "once it is back, the same command resumes the sweep" in output
