"""tracker.sinks.mlflow.log_model: a model that MLflow alone loads, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fitting import fit
from mlflow.tracking import MlflowClient
from program import create_empty_store

from research.load import load_run
from research.run_dir import ROOT, RunConfig
from research.tracking.mlflow import log_model

READ = """
import json, os, sys
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
example = model.input_example
signature = model.metadata.signature
print(json.dumps([example.tolist(), model.predict(example).tolist(), signature.inputs.to_dict(), signature.outputs.to_dict()]))
"""


@pytest.mark.slow
def test_mlflow_loads_a_logged_model_by_itself(tmp_path: Path) -> None:
    """With its signature and its example, after the run folder has gone; the logits are those of the run."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copy(create_empty_store(), tmp_path / "mlflow.db")
    command = [sys.executable, str(ROOT / "train.py"), "trainer=debug", "model.dim=16", "model.heads=2", "data.p=7"]
    more = ["batch_size=4", "trainer.device=cpu", f"out={tmp_path / 'out'}", f"tracker.uri={uri}"]
    done = subprocess.run([*command, *more, "tracker.sinks.mlflow.log_model=true"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").glob("modular/*")
    run_id, best = (folder / "mlflow_run_id").read_text(), json.loads((folder / "summary.json").read_text())["best"]["step"]
    model = load_run(str(folder / "checkpoints" / f"step-{best:08d}")).model
    shutil.rmtree(folder)
    client = MlflowClient(uri)
    (logged,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert (logged.name, str(logged.status), logged.source_run_id) == ("model", "READY", run_id)
    for address in (f"runs:/{run_id}/model", f"models:/{logged.model_id}"):
        read = subprocess.run(
            [sys.executable, "-c", READ, uri, address],
            capture_output=True,
            text=True,
            timeout=200,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert read.returncode == 0, read.stderr
        example, logits, inputs, outputs = json.loads(read.stdout.splitlines()[-1])
        with torch.inference_mode():
            expected = model(torch.tensor(example)).numpy()
        assert np.array_equal(np.array(logits, dtype=np.float32), expected)
        assert inputs[0]["tensor-spec"] == {"dtype": "int64", "shape": [-1, 4]}
        assert outputs[0]["tensor-spec"]["shape"] == [-1, *expected.shape[1:]]


def test_a_run_without_a_checkpoint_logs_no_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = fit(tmp_path / "run", steps=2)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    log_model(None, "0", "1", RunConfig("x", "study", tmp_path / "run", {}, [], {}).folder, state)
    assert "no model is logged: there is no checkpoint" in caplog.text
