"""The export command: its arguments, its output folder, signals, full disks, MLflow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from exporting import TINY, export_and_check, get_error
from mlflow.tracking import MlflowClient
from program import ROOT, Fork, make_environment, run_ranks
from program import run as run_program
from safetensors.torch import load_file

from research.export.__main__ import main
from research.files.locks import lock
from research.tracking.mlflow_store import RUN_ID_FILE
from research.training import checkpoint


def test_arguments_are_checked_first(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    assert "invalid choice: 'gguff'" in get_error(capsys, run, "--format", "gguff", "--output", new)
    assert "there is no such folder" in get_error(capsys, tmp_path / "none", "--format", "torch", "--output", new)
    for folder in (tmp_path, run / "plots"):
        assert f"{folder} has no config.yaml" in get_error(capsys, folder, "--format", "torch", "--output", new)
    assert "--type is for --format gguf" in get_error(capsys, run, "--format", "hf", "--type", "F16", "--output", new)
    assert "give at least 1" in get_error(capsys, run, "--format", "hf", "--tokens", 0, "--output", new)
    assert "cannot be made" in get_error(capsys, run, "--format", "torch", "--output", run / "config.yaml" / "new")
    assert "already exists and is not empty" in get_error(capsys, run, "--format", "torch", "--output", run)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("research.rules.find_spec", lambda name: None)
    for kind in ("hf", "gguf", "onnx"):
        assert main([str(run), "--format", kind, "--output", str(tmp_path / "a")]) == 2
        assert f"which is not installed\npip install -e '.[{kind}]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_averaged_weights_are_exported(run: Path, tmp_path: Path) -> None:
    export_and_check(run, tmp_path / "a", "--format", "hf", "--packing", "none")
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    exported = load_file(tmp_path / "a" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(exported, load_file(checkpoint / "average.safetensors")["embed.weight"])
    assert not torch.equal(exported, load_file(checkpoint / "model.safetensors")["embed.weight"])


def test_a_sharded_run_is_exported(tmp_path: Path) -> None:
    """Trained by two processes with FSDP."""
    small = ["model.dim=32", "model.ffn_dim=48", "model.depth=1", "model.heads=2", "data.seq_len=16"]
    overrides = [*TINY, *small, "trainer=fsdp", "steps=2", "trainer.device=cpu", f"out={tmp_path / 'out'}"]
    ranks = run_ranks([str(ROOT / "train.py"), *overrides], tmp_path, make_environment(tmp_path))
    assert [done.returncode for done in ranks] == [0, 0]
    (folder,) = (tmp_path / "out" / "text").iterdir()
    assert list(folder.glob("checkpoints/step-*/shards"))
    export_and_check(folder, tmp_path / "a", "--format", "safetensors")  # a warning of torch is an error here


def test_the_report_is_an_artifact_of_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = make_environment(tmp_path)["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    copy = shutil.copytree(run, tmp_path / "run")
    experiment = client.create_experiment("exports", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment, tags={"folder": str(copy)}).info.run_id
    (copy / RUN_ID_FILE).write_text(run_id)
    export_and_check(Path(run_id), tmp_path / "a", "--format", "safetensors")
    assert [file.path for file in client.list_artifacts(run_id, "export/safetensors")] == ["export/safetensors/export.json"]
    assert re.search(r"^mean KL +[\d.e-]+ \(at most 0.001\)$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'gone.db'}")
    export_and_check(copy, tmp_path / "b", "--format", "safetensors")
    assert "warning: MLflow did not accept the report" in capsys.readouterr().err
    assert not (tmp_path / "gone.db").exists()


def test_the_command_in_a_process_of_its_own(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "research.export"]
    start = time.monotonic()
    usage = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - start < 5
    assert "safetensors" in usage
    args = [str(next((run / "checkpoints").glob("step-*"))), "--format", "safetensors", "--output", str(tmp_path / "a")]
    # Nothing can be printed on a full device: the export is complete anyway. Few tokens are a warning.
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, *args, "--tokens", "9"], cwd=ROOT, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "a" / "export.json").read_text())["checks"]["mean KL"]["holds"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {0o666 & ~get_umask()}


def get_umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


FULL = """
import resource, sys
from research.export.__main__ import main

run, output, *kinds = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
print([main([run, "--format", kind, "--output", f"{output}/{kind}"]) for kind in kinds])
"""


def test_a_full_disk_is_reported_and_leaves_no_file(run: Path, tmp_path: Path) -> None:
    """A limit of 100 kB a file stands for the full disk."""
    kinds = ["safetensors", "hf", "torch", *(["gguf"] if find_spec("llama_cpp") else [])]
    done = run_program(["-c", FULL, str(run), str(tmp_path / "new"), *kinds], ROOT, dict(os.environ))
    assert done.stdout == f"{[2] * len(kinds)}\n"
    for kind, message in zip(kinds, done.stderr.splitlines(), strict=True):
        assert message.startswith(f"error: nothing is written: --format {kind} failed: ")
    assert not list(tmp_path.iterdir())


def test_the_leftovers_of_a_killed_export_are_replaced(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leftover = tmp_path / ".a.draft" / "a" / "model.safetensors"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    with lock(tmp_path / ".a.draft"):
        message = get_error(capsys, run, "--format", "safetensors", "--output", tmp_path / "a")
    assert "another command is writing there" in message
    assert leftover.exists()
    export_and_check(run, tmp_path / "a", "--format", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"export.json", "model.safetensors"}


def test_a_folder_that_cannot_be_replaced_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = "is the current folder or a mount, which cannot be replaced; give a new folder"
    assert message in get_error(capsys, run, "--format", "safetensors", "--output", ".")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    (tmp_path / "volume").mkdir()
    assert message in get_error(capsys, run, "--format", "safetensors", "--output", tmp_path / "volume")
    assert "cannot be made: File name too long" in get_error(capsys, run, "--format", "safetensors", "--output", "a" * 252)


def test_a_signal_leaves_no_file(run: Path, tmp_path: Path) -> None:
    command = ["-m", "research.export", str(run), "--format", "hf", "--output", str(tmp_path / "a" / "b")]
    process = Fork(command, ROOT, dict(os.environ))
    for _ in range(600):
        if (tmp_path / "a").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 143
    assert message == "stopped by SIGTERM\n"
    assert not list(tmp_path.iterdir())


def test_a_signal_while_the_export_is_moved_is_too_late(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "sync", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    export_and_check(run, tmp_path / "a", "--format", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
