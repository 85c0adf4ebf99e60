"""The program as a user runs it: real processes, real folders, a real MLflow store read back through its client."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[1]
TINY = ["trainer=debug", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16", "trainer.device=cpu"]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "OMP_NUM_THREADS": "1"}


def train(tmp_path: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def summaries(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((tmp_path / "out").rglob("summary.json"))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, tracked."""
    folder = tmp_path_factory.mktemp("store")
    train(folder, *TINY)
    return folder


def test_a_run_leaves_its_folder(store: Path) -> None:
    (folder,) = (store / "out" / "modular").iterdir()
    for name in ("config.yaml", "overrides.txt", "env.json", "train.log", "metrics.jsonl", "summary.json", "plots/curves.png"):
        assert (folder / name).stat().st_size > 0, name
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "FINISHED"
    assert summary["steps"] == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"train/loss", "val/loss", "val/acc", "grad/norm", "lr"} <= lines[-1].keys()
    assert (folder / "overrides.txt").read_text().splitlines()[: len(TINY)] == TINY


def test_mlflow_holds_all_of_it(store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("modular")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    (summary,) = summaries(store)
    assert run.info.run_id == summary["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.steps"] == "3"
    assert run.data.tags["model"] == "bitnet"
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["data.digest"][:36]
    assert run.data.metrics["best/val/acc"] == pytest.approx(summary["best"]["val/acc"])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/loss")] == [1, 2, 3]
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "summary.json", "plots", "best"} <= names


def test_the_same_command_gives_the_same_bits(tmp_path: Path) -> None:
    for _ in range(2):
        train(tmp_path, *TINY, "tracker=none", "model.dropout=0.1")
    train(tmp_path, *TINY, "tracker=none", "model.dropout=0.1", "seed=1", "name=other")
    digests = [s["weights_sha256"] for s in summaries(tmp_path)]
    assert len(digests) == 3
    assert len(set(digests)) == 2


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and not k.startswith("perf/")} for line in found]


def test_resume_goes_on_in_its_folder_with_the_settings_that_are_given_now(tmp_path: Path) -> None:
    tiny = [*TINY, "tracker=jsonl", "schedule.warmup=0", "name=part"]
    train(tmp_path, *tiny)
    (part,) = (tmp_path / "out" / "part").iterdir()
    train(tmp_path, *tiny, "trainer.steps=6", f"resume={part}", "lr=1e-4", "optim.lamb=0")
    assert [line["step"] for line in lines(part)] == [1, 2, 3, 4, 5, 6]
    assert lines(part)[-1]["lr"] == 1e-4
    assert "lr 0.0001, alpha 0.9, lamb 0" in (part / "train.log").read_text()
    line = [text for text in (part / "train.log").read_text().splitlines() if "go on: " in text][-1]
    train(tmp_path, *shlex.split(line.split("go on: python train.py ")[1]))  # what it said itself
    assert [line["step"] for line in lines(part)] == list(range(1, 13))
    done = train(tmp_path, *tiny, f"resume={part}", fails=True)
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
    assert "going on from step-00000002" in done.stdout + done.stderr
    for checkpoint in (part / "checkpoints").iterdir():
        (checkpoint / "state.pt").unlink()
    done = train(tmp_path, *tiny, "trainer.steps=9", f"resume={part}", fails=True)
    assert "no usable checkpoint (step-00000006: state.pt cannot be read" in done.stderr
    assert "start afresh without resume" in done.stderr


def test_the_weights_alone_begin_another_run(tmp_path: Path) -> None:
    tiny = [*TINY, "tracker=jsonl"]
    train(tmp_path, *tiny, "name=part")
    (part,) = (tmp_path / "out" / "part").iterdir()
    train(tmp_path, *tiny, "name=fresh", "optim=adamw", "trainer.steps=2", f"resume={part}", "resume.weights_only=true")
    (fresh,) = (tmp_path / "out" / "fresh").iterdir()
    assert [line["step"] for line in lines(fresh)] == [1, 2]
    assert lines(fresh)[0]["train/loss"] != lines(part)[0]["train/loss"]


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"]
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def once(tmp_path: Path, name: str, steps: int) -> Path:
    """The folder of a run under way, once it has logged so many steps."""
    for _ in range(600):
        for file in (tmp_path / "out" / name).glob("*/metrics.jsonl"):
            if len(file.read_text().splitlines()) >= steps:
                return file.parent
        time.sleep(0.1)
    raise AssertionError("the run did not begin")


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGKILL, -9)]
)
def test_a_run_that_was_ended_goes_on_as_if_nothing_had_been(tmp_path: Path, signum: int, code: int) -> None:
    """Same weights, same metrics.jsonl, same run in MLflow with each point once: after a signal and after kill -9."""
    long = [
        *TINY,
        "trainer.steps=400",
        "trainer.eval_every=7",
        "target=null",
        "model.dropout=0.1",
        "callbacks.checkpoint.every=5",
    ]
    train(tmp_path, *long, "name=whole")
    process = started(tmp_path, *long, "name=part")
    part = once(tmp_path, "part", 20)
    process.send_signal(signum)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == code, told
    if signum != signal.SIGKILL:
        assert json.loads((part / "summary.json").read_text())["status"] == "STOPPED"
        reached = len(lines(part))
        assert reached < 400, "it was to be stopped on the way"
    train(tmp_path, *long, "name=part", "resume=auto")
    (whole,) = (tmp_path / "out" / "whole").iterdir()
    (only,) = (tmp_path / "out" / "part").iterdir()
    assert only == part
    assert lines(part) == lines(whole)
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (whole, part)]
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]
    assert ends[0]["best"] == ends[1]["best"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("part")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(1, 401))
    again = train(tmp_path, *long, "name=part", "resume=auto")
    assert "finished already" in again.stdout


def test_the_users_line_sweeps(tmp_path: Path) -> None:
    train(tmp_path, "model=bitnet", "optim=grokfast", *TINY, "-m", "lr=1e-3,3e-4")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("modular")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {r.info.run_name for r in children} == {"lr=0.001", "lr=0.0003"}
    assert {r.data.tags["sweep.lr"] for r in children} == {"0.001", "0.0003"}
    assert {r.info.status for r in runs} == {"FINISHED"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no text: every file is empty"),
        (b"caf\xe9\n" * 999, "is not UTF-8 (byte 3)"),
        (b"short", "data.length=256 is too"),
    ],
)
def test_a_text_that_cannot_be_used_fails_the_run(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "text.py").write_bytes(content)
    check_failure(tmp_path, ["data=text", "data.path=text.py", "trainer=debug", "tracker=none"], words)


def test_a_loss_that_is_not_finite_fails_the_run(tmp_path: Path) -> None:
    check_failure(tmp_path, [*TINY, "tracker=none", "optim=sgd", "lr=1e30", "trainer.clip_norm=null"], "lower lr")


def check_failure(tmp_path: Path, arguments: list[str], words: str) -> None:
    """A few lines, no traceback; the folder tells the same and keeps the traceback."""
    done = train(tmp_path, *arguments, fails=True)
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    (summary,) = summaries(tmp_path)
    assert summary["status"] == "FAILED"
    assert words in summary["error"]
    (folder,) = (path.parent for path in (tmp_path / "out").rglob("summary.json"))
    assert "Traceback" in (folder / "train.log").read_text()
    assert (folder / "config.yaml").exists()


def test_a_killed_run_is_ended_by_the_next_start(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "trainer.steps=1000000", "target=null", f"out={tmp_path / 'out'}"]
    process = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for _ in range(120):
        time.sleep(0.5)
        if (tmp_path / "mlflow.db").exists() and list((tmp_path / "out").rglob("metrics.jsonl")):
            experiment = client.get_experiment_by_name("modular")
            if experiment and client.search_runs([experiment.experiment_id]):
                break
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(tmp_path, *TINY)
    experiment = client.get_experiment_by_name("modular")
    assert experiment is not None
    assert sorted(r.info.status for r in client.search_runs([experiment.experiment_id])) == ["FINISHED", "KILLED"]


@pytest.mark.parametrize("option", ["data=digits model=bitmlp", "data=digits model=mlp optim=muon", "optim=grokfast_ma",
                                    "model=bitnet_2b4t optim=sgd", "trainer.precision=bf16 trainer.grad_accum=4"])  # fmt: skip
def test_other_choices_train(tmp_path: Path, option: str) -> None:
    tiny = [t for t in TINY if "digits" not in option or t.split(".")[0] not in ("model", "data")]
    train(tmp_path, *option.split(), *tiny, "tracker=jsonl")
    (summary,) = summaries(tmp_path)
    assert summary["status"] == "FINISHED"


def test_a_signal_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    """It ends within seconds although compiling takes longer, and goes on to the end as if nothing had been."""
    cache = tmp_path / "compiled"
    slow = [*TINY, "tracker=jsonl", "model=transformer", "trainer.compile=true", "name=slow"]
    command = [sys.executable, str(ROOT / "train.py"), *slow, f"out={tmp_path / 'out'}"]
    own = {**environment(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    process = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(600):
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
    train(tmp_path, *slow, "resume=auto")
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]


def test_a_compiled_model_computes_the_same(tmp_path: Path) -> None:
    """In processes of their own: the compiler cannot look through the tests' type checks."""
    losses = []
    for compiled in ("true", "false"):
        tiny = [*TINY, "tracker=jsonl", "model=transformer", f"trainer.compile={compiled}", f"name=compiled_{compiled}"]
        train(tmp_path, *tiny)
        (file,) = (tmp_path / "out" / f"compiled_{compiled}").rglob("metrics.jsonl")
        losses.append([json.loads(line)["train/loss"] for line in file.read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
