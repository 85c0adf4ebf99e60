"""Links into MLflow's pages, and the program that serves them."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, make_environment

from research.tracking.links import build_view, format_opening, format_run_link, get_address
from research.tracking.storage import DEFAULT_URI


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        (DEFAULT_URI, "http://127.0.0.1:5000"),
        ("postgresql://me:secret@db/mlflow", "http://127.0.0.1:5000"),
        ("https://me:secret@tracking.example/mlflow/", "https://tracking.example/mlflow"),
        ("http://tracking:5000?token=secret", "http://tracking:5000"),
    ],
)
def test_the_pages_of_a_store(uri: str, address: str) -> None:
    """Its passwords are in no link."""
    assert get_address(uri) == address


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (DEFAULT_URI, "make ui, then LINK"),
        ("sqlite:////my runs/mlflow.db", "env 'MLFLOW_TRACKING_URI=sqlite:////my runs/mlflow.db' make ui, then LINK"),
        ("http://tracking:5000", "LINK"),
    ],
)
def test_what_has_to_run_before_a_link_opens(uri: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(ROOT)
    assert format_opening(uri, "LINK") == words
    monkeypatch.chdir(ROOT.parent)
    assert format_opening(uri, "LINK") == words.replace("make ui", f"make -C {ROOT} ui")


def test_the_view_of_a_sweep_has_the_best_run_first() -> None:
    views = [json.loads(build_view("parent", ["lr"], "val/iou", better)) for better in (True, False)]
    assert [(view["orderByKey"], view["orderByAsc"]) for view in views] == [
        ("metrics.`best.val_iou`", False),
        ("metrics.`best.val_iou`", True),
    ]


def test_a_link_names_the_view_of_trainings() -> None:
    assert (
        format_run_link("http://a", "1", "abc")
        == "http://a/#/experiments/1/runs/abc/model-metrics?workflowType=machine_learning"
    )


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        command = [sys.executable, "-m", "research.tracking.ui", "--port", port]
        done = subprocess.run(command, cwd=ROOT, env=make_environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: port {port} of 127.0.0.1 is taken")
    assert done.stderr.count("\n") == 1
