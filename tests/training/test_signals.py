"""Runs that end before their end, and go on: signals, kill -9, damage. Real processes, a real MLflow store."""

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from program import TINY, read_metrics, start_run, train, wait_for_run

from research.training import checkpoint


def test_resume_continues_in_its_folder_with_the_new_settings(tmp_path: Path) -> None:
    tiny = [*TINY, "tracker=jsonl", "schedule.warmup=0", "name=part"]
    train(tmp_path, *tiny)
    (part,) = (tmp_path / "out" / "part").iterdir()
    train(tmp_path, *tiny, "trainer.steps=6", f"resume={part}", "lr=1e-4", "optim.lamb=0")
    assert [line["step"] for line in read_metrics(part)] == [1, 2, 3, 4, 5, 6]
    assert read_metrics(part)[-1]["lr"] == 1e-4
    assert "lr 0.0001, alpha 0.9, lamb 0" in (part / "train.log").read_text()
    line = [text for text in (part / "train.log").read_text().splitlines() if "resume with: " in text][-1]
    train(tmp_path, *shlex.split(line.split("/train.py ")[1]))  # what it said itself
    assert [line["step"] for line in read_metrics(part)] == list(range(1, 13))
    told = [(part / name).read_text() for name in ("config.yaml", "overrides.txt", "summary.json", "metrics.jsonl")]
    done = train(tmp_path, *tiny, f"resume={part}", fails=True)
    kept = [(part / name).read_text() for name in ("config.yaml", "overrides.txt", "summary.json", "metrics.jsonl")]
    assert kept == told, "what is refused changes nothing"
    assert "step 12 of 3 is done; give trainer.steps more than 12" in done.stderr
    assert len(list((tmp_path / "out" / "part").iterdir())) == 1


def test_resume_tells_of_the_damage_that_it_skips(tmp_path: Path) -> None:
    tiny = [*TINY, "tracker=none", "name=part", "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep_last=2"]
    train(tmp_path, *tiny)
    (part,) = (tmp_path / "out" / "part").iterdir()
    bad = part / "checkpoints" / "step-00000003"
    with (bad / "state.pt").open("ab") as file:
        file.write(b"x")
    done = train(tmp_path, *tiny, "trainer.steps=6", f"resume={part}")
    assert f"{bad.name}: state.pt has" in done.stdout + done.stderr
    assert "resuming from step-00000002" in done.stdout + done.stderr
    for each in (part / "checkpoints").iterdir():
        (each / "state.pt").unlink()
    done = train(tmp_path, *tiny, "trainer.steps=9", f"resume={part}", fails=True)
    assert "no usable checkpoint (step-00000006: state.pt cannot be read" in done.stderr
    assert "start afresh without resume" in done.stderr


def test_the_weights_alone_begin_another_run(tmp_path: Path) -> None:
    tiny = [*TINY, "tracker=jsonl"]
    train(tmp_path, *tiny, "name=part")
    (part,) = (tmp_path / "out" / "part").iterdir()
    train(tmp_path, *tiny, "name=fresh", "optim=adamw", "trainer.steps=2", f"resume={part}", "resume.weights_only=true")
    (fresh,) = (tmp_path / "out" / "fresh").iterdir()
    assert [line["step"] for line in read_metrics(fresh)] == [1, 2]
    assert read_metrics(fresh)[0]["train/loss"] != read_metrics(part)[0]["train/loss"]


LONG = [*TINY, "trainer.steps=300", "trainer.eval_every=7", "target=null", "model.dropout=0.1", "callbacks.checkpoint.every=20"]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    place = tmp_path_factory.mktemp("whole")
    train(place, *LONG, "name=whole", "tracker=jsonl")
    again = train(place, *LONG, "name=whole", "tracker=jsonl", "resume=auto")
    assert "finished already" in again.stdout
    (folder,) = (place / "out" / "whole").iterdir()
    return folder


@pytest.mark.parametrize(
    ("signum", "code", "resume"), [(signal.SIGTERM, 143, "LINE"), (signal.SIGINT, 130, "RUN_ID"), (signal.SIGKILL, -9, "auto")]
)
def test_an_interrupted_run_resumes_as_if_nothing_had_been(
    full_run: Path, tmp_path: Path, signum: int, code: int, resume: str
) -> None:
    """Same weights, same metrics.jsonl, same run in MLflow with each point once: after a signal and after kill -9.

    By the line that the stopped run has printed, by its id, and by resume=auto.
    """
    process = start_run(tmp_path, *LONG, "name=part")
    part = wait_for_run(tmp_path, "part", 20)
    process.send_signal(signum)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == code, told
    if signum != signal.SIGKILL:
        assert json.loads((part / "summary.json").read_text())["status"] == "STOPPED"
    assert len(read_metrics(part)) < 300, "it was to be stopped on the way"
    own = (part / "mlflow_run_id").read_text()
    words = [*LONG, "name=part", f"resume={own if resume == 'RUN_ID' else resume}"]
    if resume == "LINE":
        steps = json.loads((part / "summary.json").read_text())["steps"]
        assert f"Stopped at step {steps} of 300 (SIGTERM)" in told
        (line,) = [line for line in told.splitlines() if line.startswith("resume with")]
        words = shlex.split(line.partition("train.py ")[2])
    train(tmp_path, *words)
    (only,) = (tmp_path / "out" / "part").iterdir()
    assert only == part
    assert read_metrics(part) == read_metrics(full_run)
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (full_run, part)]
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]
    assert ends[0]["best"] == ends[1]["best"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("part")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (own, "FINISHED")
    assert [m.step for m in client.get_metric_history(own, "train/loss")] == list(range(1, 301))


def test_a_run_is_resumed_by_its_id_from_anywhere(tmp_path: Path) -> None:
    """MLflow knows the folder of a run that is not below `out`."""
    train(tmp_path, *TINY, "name=first", "trainer.steps=3")
    (folder,) = (tmp_path / "out" / "first").iterdir()
    run_id = (folder / "mlflow_run_id").read_text()
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = tmp_path / "elsewhere" / "first" / folder.name
    client.set_tag(run_id, "folder", str(folder))
    (folder / "mlflow_run_id").write_text(run_id)
    train(tmp_path, *TINY, "name=first", "trainer.steps=6", f"resume={run_id}")
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "out").exists(), "it went on in its own folder"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_killed_run_is_ended_by_the_next_start(tmp_path: Path) -> None:
    process = start_run(tmp_path, *TINY, "trainer.steps=1000000", "target=null", "trainer.log_every=1000")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for _ in range(120):
        time.sleep(0.5)
        if (tmp_path / "mlflow.db").exists() and list((tmp_path / "out").rglob("metrics.jsonl")):
            experiment = client.get_experiment_by_name("modular")
            if experiment and client.search_runs([experiment.experiment_id]):
                break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train(tmp_path, *TINY)
    experiment = client.get_experiment_by_name("modular")
    assert experiment is not None
    assert sorted(r.info.status for r in client.search_runs([experiment.experiment_id])) == ["FINISHED", "KILLED"]


def test_a_signal_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    """It ends the run within seconds although compiling takes longer; nothing of the step under way stays."""
    cache = tmp_path / "compiled"
    slow = [*TINY, "tracker=jsonl", "model=transformer", "name=slow"]
    process = start_run(tmp_path, *slow, "trainer.compile=true", TORCHINDUCTOR_CACHE_DIR=str(cache))
    for _ in range(1200):
        time.sleep(0.05)
        if any(cache.rglob("*.cpp")):
            break
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 143, told
    assert time.monotonic() - begun < 15
    (folder,) = (tmp_path / "out" / "slow").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("STOPPED", 0)
    train(tmp_path, *slow, f"resume={folder}")
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3]


def test_a_full_disk_ends_a_run_in_one_line(tmp_path: Path) -> None:
    """With the checkpoint before it intact: room made, the same command goes on."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(tmp_path)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr}")
    try:
        tight = [*TINY, "tracker=jsonl", "name=tight", "callbacks.checkpoint.keep_last=9", "trainer.steps=9"]
        done = train(tmp_path, *tight, "callbacks.checkpoint.every=1", fails=True)
        assert "error: [Errno 28] No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        (folder,) = (tmp_path / "out" / "tight").iterdir()
        found, whole = checkpoint.load_newest(folder)
        assert [path.name[:5] for path in found.parent.iterdir()] == ["step-"] * whole.step
        subprocess.run(["mount", "-o", "remount,size=20M", str(tmp_path)], check=True)
        train(tmp_path, *tight, "callbacks.checkpoint.every=1", "resume=auto")
        assert [line["step"] for line in read_metrics(folder)] == list(range(1, 10))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
