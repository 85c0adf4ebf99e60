"""The report of real sweeps, on MLflow, and again by `python -m research.report`."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from program import TINY, make_environment, read_summaries, train
from reporting import fill_study, make_lucky_study, make_study, make_trial, read_contents, read_table, store_study

from research.report import report
from research.report.__main__ import main
from research.report.study import read_study
from research.tracking import mlflow_store
from research.tracking.study_spec import parse_study_spec


@pytest.fixture(scope="module")
def sweep_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a grid of two ran, tracked."""
    folder = tmp_path_factory.mktemp("swept")
    train(folder, *TINY, "model.dropout=0.1", "-m", "lr=1e-3,3e-4")
    return folder


@pytest.fixture
def sweep_folder(sweep_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sweep's folder, with its store as this process's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{sweep_root / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    return next((sweep_root / "out" / "modular").glob("sweep_*"))


@pytest.fixture
def logged_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `basic` of a sweep that is no more than a run in a store of this process's own."""
    uri = make_environment(tmp_path)["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    folder, client = tmp_path / "basic", MlflowClient(uri)
    folder.mkdir()
    experiment_id = client.create_experiment("x", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment_id, tags={"sweep": "lr", "folder": str(folder), "host": "far"})
    (folder / "mlflow_run_id").write_text(run.info.run_id)
    return folder


def run_report(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def read_run_id(folder: Path) -> str:
    return (folder / "mlflow_run_id").read_text()


def test_a_grid_leaves_its_report(sweep_root: Path) -> None:
    (folder,) = (sweep_root / "out" / "modular").iterdir()
    rows = read_table(folder)
    summaries = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}
    assert [(row["number"], row["state"], row["lr"], row["folder"], row["steps"]) for row in rows] == [
        ("0", "COMPLETE", "0.001", "0", "3"),
        ("1", "COMPLETE", "0.0003", "1", "3"),
    ]
    assert [float(row["val/acc"]) for row in rows] == [summaries[row["folder"]]["value"] for row in rows]
    assert [row["mlflow_run_id"] for row in rows] == [summaries[row["folder"]]["mlflow_run_id"] for row in rows]
    best = max(rows, key=lambda row: float(row["val/acc"]))
    solution = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert solution["name"] == "optuna"
    assert (solution["best_params"], solution["best_value"]) == ({"lr": float(best["lr"])}, float(best["val/acc"]))
    assert (solution["best_trial"], solution["folder"]) == (int(best["number"]), best["folder"])
    assert solution["mlflow_run_id"] == best["mlflow_run_id"]
    words = (folder / "results.md").read_text()
    assert "All 2 trials have ended" in words
    for name in ("history", "slice", "parallel", "timeline", "curves"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 5000, name
        assert f"plots/{name}.png" in words
    assert "no contour: one parameter alone varies" in words
    assert "no importance: one parameter alone varies" in words
    assert "depends on" not in words


def test_the_parent_run_has_the_report(sweep_root: Path) -> None:
    (folder,) = (sweep_root / "out" / "modular").iterdir()
    client = MlflowClient(f"sqlite:///{sweep_root / 'mlflow.db'}")
    parent = client.get_run(read_run_id(folder))
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert names >= {"trials.csv", "results.md", "best.yaml", "optimization_results.yaml", "study.json", "plots"}
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "plots")} >= {"plots/history.png"}
    values = [float(row["val/acc"]) for row in read_table(folder)]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best.val_acc"] == max(values)
    assert parent.data.metrics["trials/complete"] == 2
    history = client.get_metric_history(parent.info.run_id, "best_value")
    assert [(point.step, point.value) for point in history] == [(0, values[0]), (1, max(values))]
    assert parent.data.tags["best.lr"] in ("0.001", "0.0003")
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    states = {(child.data.tags["trial.number"], child.data.tags["status"]) for child in children}
    assert states == {("0", "FINISHED"), ("1", "FINISHED")}


def test_best_yaml_repeats_the_best_trial(sweep_root: Path, tmp_path: Path) -> None:
    (folder,) = (sweep_root / "out" / "modular").iterdir()
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())["folder"]
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    shutil.copy(folder / "best.yaml", tmp_path / "conf" / "experiment" / "again.yaml")
    train(tmp_path, "--config-dir", str(tmp_path / "conf"), "experiment=again", "tracker=none")
    (summary,) = read_summaries(tmp_path)
    assert summary["weights_sha256"] == json.loads((folder / best / "summary.json").read_text())["weights_sha256"]


def test_the_report_is_written_again_by_the_id_of_its_run(sweep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_contents(sweep_folder)
    for name in before:
        (sweep_folder / name).unlink()
    assert run_report(monkeypatch, read_run_id(sweep_folder)) == 0
    assert read_contents(sweep_folder) == before


def test_a_sweep_that_was_moved_is_reported_without_its_store(
    sweep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(sweep_folder, copy)
    for name in (before := read_contents(copy)):
        (copy / name).unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'nowhere.db'}")
    assert run_report(monkeypatch, str(copy), "--no-plots") == 0
    assert "nowhere.db did not take the report" in capsys.readouterr().err
    assert read_contents(copy)["trials.csv"].replace(str(sweep_folder).encode() + b"/", b"") == before["trials.csv"]
    (copy / "mlflow_run_id").unlink()
    assert run_report(monkeypatch, str(copy), "--no-plots") == 0


@pytest.mark.parametrize("target", ["nothing", "run", "0" * 32, "child"])
def test_what_is_no_sweep_is_reported_in_one_line(
    target: str, sweep_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"run": str(sweep_folder / "0"), "child": read_run_id(sweep_folder / "0")}.get(target, target)
    assert run_report(monkeypatch, source) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: RUN_OR_SWEEP={source}")
    assert "give a sweep's folder" in line
    assert target != "child" or read_run_id(sweep_folder) in line


def test_a_sweep_whose_folder_is_gone_is_named(
    logged_sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = read_run_id(logged_sweep)
    shutil.rmtree(logged_sweep)
    assert run_report(monkeypatch, run_id) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: RUN_OR_SWEEP={run_id}: the sweep's folder {logged_sweep} on far is gone")


@pytest.mark.parametrize("by", ["folder", "run"])
def test_a_population_has_its_own_report(
    by: str, logged_sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = logged_sweep / "optimization_results.yaml"
    own.write_text("schedule: all of it")
    (logged_sweep / "population.json").write_text("{}")
    assert run_report(monkeypatch, read_run_id(logged_sweep) if by == "run" else "basic") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a population has its own report: population.csv" in line
    assert own.read_text() == "schedule: all of it"
    assert not (logged_sweep / "results.md").exists()


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_the_study_knows_trials_that_had_no_run(
    kind: str, logged_sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials that took another one's result, or failed before they had a run. A database is named by --storage."""
    study = make_study(keys=("lr",), total=3)
    study.add_trial(make_trial(0, {"lr": 0.1}, value=0.5))
    study.add_trial(make_trial(1, {"lr": 0.1}, value=0.5, user_attrs={"reused": 0}))
    study.add_trial(make_trial(2, {"lr": 0.01}, TrialState.FAIL, user_attrs={"error": "ValueError: no"}))
    storage: list[str] = []
    if kind == "journal":
        store_study(study, f"journal://{logged_sweep / 'study.journal'}")
    else:
        store_study(study, url := f"sqlite:///{logged_sweep.parent / 'study.db'}")
        (logged_sweep / "study.json").write_text('{"study": "sweep_x"}')
        assert run_report(monkeypatch, "basic") == 2
        assert "no study.journal; give --storage" in capsys.readouterr().err
        storage = ["--storage", url]
    assert run_report(monkeypatch, "basic", "--no-plots", *storage) == 0
    assert [row["state"] for row in read_table(logged_sweep)] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert read_table(logged_sweep)[1]["note"] == "the result of 0"
    run = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(read_run_id(logged_sweep))
    assert run.data.metrics["trials/failed"] == 1


def test_a_damaged_journal_is_reported_in_one_line(
    logged_sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (logged_sweep / "study.journal").write_text("")
    assert run_report(monkeypatch, "basic", "--no-plots") == 2
    (line,) = capsys.readouterr().err.splitlines()
    journal = logged_sweep / "study.journal"
    assert line.startswith(f"error: RUN_OR_SWEEP=basic: the study cannot be read from journal://{journal}")


def test_mlflow_has_the_best_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    monkeypatch.setattr(mlflow_store, "conclude", lambda *arguments: logged.extend(arguments))
    report.publish(read_study(Path("nowhere"), make_lucky_study()), None, "", [])
    _, _, _, metrics, tags, status = logged
    assert metrics["best.value"] == {0: pytest.approx(0.81)}
    assert metrics["best_value"][11] == 0.95, "the history is of single trials"
    assert (tags["best_trial"], tags["best.seed"], status) == ("6", "0", "FINISHED")


@pytest.mark.parametrize(
    ("spec", "failed", "lost"),
    [
        ({"kind": "grid", "total": 9}, 0, False),
        ({"kind": "grid", "total": 9, "max_failure_rate": 1.0}, 1, True),
        ({"kind": "study", "total": 9}, 4, False),
        ({"kind": "study", "total": 9}, 5, True),
        ({"kind": "study", "total": 10, "max_failure_rate": 0.3}, 3, False),
        ({"kind": "study", "total": 10, "max_failure_rate": 0.3}, 4, True),
        ({}, 1, True),
    ],
)
def test_a_sweep_has_failed_where_its_command_ends_with_an_error(spec: dict[str, Any], failed: int, lost: bool) -> None:
    assert (failed > parse_study_spec(spec).max_failures) == lost


def test_mlflow_out_of_reach_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "mlflow_run_id").write_text("0" * 32)
    import sklearn  # noqa: F401  # an import of it sets variables of its own

    before = dict(os.environ)
    report.report(tmp_path, fill_study(tmp_path, 3), plots=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow at http://127.0.0.1:9 did not take the report")
    assert (tmp_path / "trials.csv").exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([TrialState.COMPLETE, TrialState.FAIL], "FINISHED"),
        ([TrialState.COMPLETE, TrialState.RUNNING], "KILLED"),
        ([TrialState.FAIL, TrialState.PRUNED], "FINISHED"),
        ([TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL], "FAILED"),
    ],
)
def test_the_status_of_the_sweeps_run(states: list[TrialState], status: str, logged_sweep: Path) -> None:
    client, run_id = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]), read_run_id(logged_sweep)
    for key in ("sweep.failed", "best.gone"):
        client.set_tag(run_id, key, "FAILED")
    study = make_study(keys=("lr",), total=3)
    for number, state in enumerate(states):
        values = {"value": 0.5} if state == TrialState.COMPLETE else {}
        study.add_trial(make_trial(number, {"lr": 1e-3}, state, **values))
    for _ in range(2):
        report.report(logged_sweep, study, plots=False)
    run = client.get_run(run_id)
    assert run.info.status == status
    assert run.data.metrics["trials/failed"] == states.count(TrialState.FAIL)
    assert len(client.get_metric_history(run_id, "best_value")) == states.count(TrialState.COMPLETE), (
        "logged twice, stored once"
    )
    assert not {"sweep.failed", "best.gone"} & run.data.tags.keys()
    tags = {"mlflow.parentRunId": run_id, "folder": str(logged_sweep / "gone"), "host": "elsewhere"}
    client.create_run(run.info.experiment_id, tags=tags)  # a trial that still runs on another machine
    report.report(logged_sweep, study, plots=False)
    assert client.get_run(run_id).info.status == "RUNNING"
