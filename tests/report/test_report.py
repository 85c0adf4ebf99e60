"""The report of a sweep: from real sweeps, and from studies of trials that nobody ran."""

import csv
import json
import math
import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib import pyplot
from mlflow.tracking import MlflowClient
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from program import ROOT, TINY, make_environment, read_summaries, train

import research.tracking.optuna_storage
from research.metrics import confidence_interval
from research.report import plots, preset, report, results
from research.report.__main__ import main
from research.tracking import mlflow_store

KINDS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "optim": CategoricalDistribution(["adamw", "grokfast"]),
    "optim.lamb": FloatDistribution(0.0, 5.0),
    "model.depth": IntDistribution(1, 4),
    "odd": CategoricalDistribution([None, 1, 2.5, "a,b", "true"]),
}
SPACE = {
    "lr": "low=0.0001 high=0.1 log=True",
    "optim": "2 values: adamw, grokfast",
    "optim.lamb": "high=5.0 low=0.0 when optim == 'grokfast'",
    "model.depth": "low=1 high=4 step=1",
    "odd": "5 values: null, 1, 2.5, 'a,b', 'true'",
}
STUDY = """# @package _global_
defaults:
  - override /model: mlp
  - override /data: digits
  - override /hydra/sweeper/sampler: tpe
optim:
  weight_decay: 1e-3
hydra:
  sweeper:
    params:
      lr: interval(1e-4,1e-1)
"""
START = datetime(2026, 1, 2, 3, 4, 5)


def make_study(directions: Sequence[str] = ("maximize",), keys: Sequence[str] = tuple(KINDS), **spec: Any) -> Study:
    """A study as the sweeper leaves it, without a trial."""
    study = optuna.create_study(study_name="sweep_x", directions=list(directions))  # type: ignore[arg-type]
    told = {"space": {key: SPACE[key] for key in keys}, "fixed": ["model=mlp", "data.p=11", "out=elsewhere"]}
    told |= {"directions": list(directions), "metrics": [], "repeats": {"n": 1, "over": "seed", "reduce": "mean"}}
    study.set_user_attr("grokbit", told | {"kind": "study", "total": 30} | spec)
    return study


def make_trial(number: int, params: dict[str, Any], state: TrialState = TrialState.COMPLETE, **more: Any) -> FrozenTrial:
    found = create_trial(state=state, params=params, distributions={key: KINDS[key] for key in params}, **more)
    found.datetime_start = None if state == TrialState.WAITING else START + timedelta(seconds=20 * number)
    found.datetime_complete = START + timedelta(seconds=20 * number + 31.5) if state.is_finished() else None
    return found


def draw_params(number: int, generator: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {"lr": 10 ** generator.uniform(-4, -1), "optim": generator.choice(["adamw", "grokfast"])}
    params |= {"optim.lamb": generator.uniform(0, 5)} if params["optim"] == "grokfast" else {}
    return params | {"model.depth": generator.randint(1, 4), "odd": [None, 1, 2.5, "a,b", "true"][number % 5]}


def fill_study(folder: Path, count: int = 30, repeats: int = 1) -> Study:
    """A study whose trials ended in every way, with the folders of their runs."""
    generator, study = random.Random(0), make_study(repeats={"n": repeats, "over": "seed", "reduce": "mean"})
    for number in range(count):
        params = draw_params(number, generator)
        value = 1 / (1 + abs(math.log10(params["lr"]) + 2.5)) + 0.1 * (params["optim"] == "grokfast")
        state = {6: TrialState.FAIL, 7: TrialState.PRUNED}.get(number % 8, TrialState.COMPLETE)
        attrs = {TrialState.FAIL: {"error": "ValueError: lower lr\nsecond line"}, TrialState.PRUNED: {"pruned": 200}}.get(
            state, {}
        )
        attrs = {"folder": str(folder / str(number))} | attrs
        if repeats > 1:
            attrs["repeats"] = [value + 0.01 * index for index in range(repeats)]
        for index in range(repeats):
            place = folder / str(number) / (str(index) if repeats > 1 else "")
            place.mkdir(parents=True)
            lines = [f"{key}={results.to_override(params[key])}\n" for key in params]
            (place / "overrides.txt").write_text("model=mlp\ndata.p=11\n" + "".join(lines))
            (place / "summary.json").write_text(json.dumps({"monitor": "val/acc", "steps": 400, "wall_s": 3.0}))
            (place / "mlflow_run_id").write_text(f"{number:016x}{index:016x}")
            curve = [
                {"step": step, "val/acc": value * (1 - math.exp(-step / 90)) + generator.uniform(0, 0.03)}
                for step in range(10, 410, 10)
            ]
            (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve) + '{"step": 410, "va')
        values = {"value": value} if state == TrialState.COMPLETE else {}
        study.add_trial(make_trial(number, params, state, user_attrs=attrs, **values))
    return study


@pytest.fixture(autouse=True)
def silence_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_contents(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*.csv"), *folder.glob("*.md"), *folder.glob("*.yaml"), *folder.glob("plots/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Real sweeps.


@pytest.fixture(scope="module")
def sweep_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a grid of two ran, tracked."""
    place = tmp_path_factory.mktemp("swept")
    train(place, *TINY, "model.dropout=0.1", "-m", "lr=1e-3,3e-4")
    return place


@pytest.fixture
def sweep_folder(sweep_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sweep's folder, with its store as this process's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{sweep_root / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    return next((sweep_root / "out" / "modular").glob("sweep_*"))


def run_report(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_grid_leaves_its_report(sweep_root: Path) -> None:
    (folder,) = (sweep_root / "out" / "modular").iterdir()
    rows = read_table(folder)
    told = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}
    assert [(row["number"], row["state"], row["lr"], row["folder"], row["steps"]) for row in rows] == [
        ("0", "COMPLETE", "0.001", "0", "3"),
        ("1", "COMPLETE", "0.0003", "1", "3"),
    ]
    assert [float(row["val/acc"]) for row in rows] == [told[row["folder"]]["value"] for row in rows]
    assert [row["mlflow_run_id"] for row in rows] == [told[row["folder"]]["mlflow_run_id"] for row in rows]
    best = max(rows, key=lambda row: float(row["val/acc"]))
    kept = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert kept["name"] == "optuna"
    assert (kept["best_params"], kept["best_value"]) == ({"lr": float(best["lr"])}, float(best["val/acc"]))
    assert (kept["best_trial"], kept["folder"]) == (int(best["number"]), best["folder"])
    assert kept["mlflow_run_id"] == best["mlflow_run_id"]
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
    parent = client.get_run((folder / "mlflow_run_id").read_text())
    names = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert names >= {"trials.csv", "results.md", "best.yaml", "optimization_results.yaml", "study.json", "plots"}
    assert {each.path for each in client.list_artifacts(parent.info.run_id, "plots")} >= {"plots/history.png"}
    values = [float(row["val/acc"]) for row in read_table(folder)]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/val/acc"] == max(values)
    assert parent.data.metrics["trials/complete"] == 2
    assert mlflow_store.fetch_history(client, parent.info.run_id, "best_value") == [(0, values[0]), (1, max(values))]
    assert parent.data.tags["best.lr"] in ("0.001", "0.0003")
    children = mlflow_store.list_children(client, parent.info.run_id)
    assert [(child.number, child.state) for child in children] == [(0, "COMPLETE"), (1, "COMPLETE")]


def test_best_yaml_repeats_the_best_trial(sweep_root: Path, tmp_path: Path) -> None:
    (folder,) = (sweep_root / "out" / "modular").iterdir()
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())["folder"]
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    shutil.copy(folder / "best.yaml", tmp_path / "mine" / "experiment" / "again.yaml")
    train(tmp_path, "--config-dir", str(tmp_path / "mine"), "experiment=again", "tracker=none")
    (summary,) = read_summaries(tmp_path)
    assert summary["weights_sha256"] == json.loads((folder / best / "summary.json").read_text())["weights_sha256"]


def test_the_report_is_made_again_from_mlflow(sweep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_contents(sweep_folder)
    for name in before:
        (sweep_folder / name).unlink()
    (sweep_folder / "study.journal").rename(sweep_folder / "away")
    assert run_report(monkeypatch, str(sweep_folder)) == 0
    (sweep_folder / "away").rename(sweep_folder / "study.journal")
    assert read_contents(sweep_folder) == before


def test_mlflow_alone_is_enough(sweep_folder: Path, sweep_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sweep's folder, and without what an earlier report has left: as of a sweep that was killed."""
    before, parent = read_table(sweep_folder), (sweep_folder / "mlflow_run_id").read_text()
    left = next(sweep_root.glob(f"mlartifacts/**/{parent}/artifacts/trials.csv"))
    left.rename(tmp_path / "left")
    sweep_folder.rename(tmp_path / "away")
    assert run_report(monkeypatch, parent, "--no-plots") == 0
    (tmp_path / "away").rename(sweep_folder)
    found = read_table(tmp_path / f"sweep_{parent}")
    clock = ("started", "seconds")  # of the run, not of the trial
    assert [{k: v for k, v in row.items() if k not in clock} for row in found] == [
        {k: v for k, v in row.items() if k not in clock} for row in before
    ]
    assert not (tmp_path / f"sweep_{parent}" / "plots").exists()
    (tmp_path / "left").replace(left)
    assert run_report(monkeypatch, f"sweep_{parent}", "--no-plots") == 0
    assert read_table(tmp_path / f"sweep_{parent}") == before


def test_the_study_tells_where_there_is_no_mlflow(
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
    asked = {"run": str(sweep_folder / "0"), "child": (sweep_folder / "0" / "mlflow_run_id").read_text()}.get(target, target)
    assert run_report(monkeypatch, asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: SWEEP={asked}")
    assert "give a sweep's folder" in line


# Studies of trials that nobody ran.


def test_trials_that_ended_in_every_way(tmp_path: Path) -> None:
    study, backend = fill_study(tmp_path), matplotlib.get_backend()
    figures, style = pyplot.get_fignums(), dict(matplotlib.rcParams)
    report.report(tmp_path, study)
    assert (matplotlib.get_backend(), pyplot.get_fignums(), dict(matplotlib.rcParams)) == (backend, figures, style)
    before, rows = read_contents(tmp_path), read_table(tmp_path)
    assert [row["state"] for row in rows[5:8]] == ["COMPLETE", "FAIL", "PRUNED"]
    assert rows[6]["error"] == "ValueError: lower lr\nsecond line"
    assert rows[7]["note"] == "pruned at step 200"
    assert [row["odd"] for row in rows[:5]] == ["null", "1", "2.5", "'a,b'", "'true'"]
    assert {row["optim.lamb"] == "" for row in rows if row["optim"] == "adamw"} == {True}
    assert [float(row["lr"]) for row in rows] == [each.params["lr"] for each in study.trials]
    assert rows[0]["seconds"] == "31.5"
    words = (tmp_path / "results.md").read_text()
    assert "30 trials: 24 complete, 3 fail, 3 pruned" in words
    assert [line for line in words.splitlines() if line.startswith("- no ")] == [
        "- no pareto: for two or three objectives; this sweep has 1"
    ]
    report.report(tmp_path, study)
    assert read_contents(tmp_path) == before, "written again it is the same"


def test_the_rows_come_back_from_the_table(tmp_path: Path) -> None:
    found = results.read_study(tmp_path, fill_study(tmp_path, 10, repeats=2))
    again = results.parse_csv(results.to_csv(found), 1)
    assert again == found.rows


def test_repeats_have_an_interval(tmp_path: Path) -> None:
    report.report(tmp_path, fill_study(tmp_path, 8, repeats=3), plots=False)
    row = read_table(tmp_path)[0]
    assert (len(row["repeats"].split()), len(row["mlflow_run_id"].split()), row["steps"]) == (3, 3, "1200")
    assert row["folder"] == "0"
    assert "± 0.025 | 3 |" in (tmp_path / "results.md").read_text()
    assert not (tmp_path / "plots").exists()
    mean, half = confidence_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(2.484, abs=0.01))


def test_seeds_of_a_grid_are_repeats(tmp_path: Path) -> None:
    study = make_study(keys=(), space={"model": "2 values: a, b", "seed": "3 values: 0, 1, 2"})
    kinds: dict[str, BaseDistribution] = {
        "model": CategoricalDistribution(["a", "b"]),
        "seed": CategoricalDistribution([0, 1, 2]),
    }
    for number in range(6):
        params = {"model": "ab"[number // 3], "seed": number % 3}
        study.add_trial(create_trial(value=float(number), params=params, distributions=kinds))
    report.report(tmp_path, study, plots=False)
    words = (tmp_path / "results.md").read_text()
    assert "## Means over seed" in words
    assert words.index("| b | 4 | ± 2.5 | 3 |") < words.index("| a | 1 | ± 2.5 | 3 |")


def make_lucky_study() -> Study:
    """A grid over seeds: the best run of all is one of a middling configuration."""
    study = make_study(keys=("lr", "model.depth"), kind="grid", total=12)
    asked = study.user_attrs["grokbit"]
    study.set_user_attr("grokbit", asked | {"space": {**asked["space"], "seed": "3 values: 0, 1, 2"}})
    kinds = {"lr": KINDS["lr"], "model.depth": KINDS["model.depth"], "seed": CategoricalDistribution([0, 1, 2])}
    values = {(2e-3, 1): (0.7, 0.7, 0.95), (2e-3, 2): (0.6, 0.6, 0.6), (3e-3, 1): (0.8, 0.81, 0.82), (3e-3, 2): (0.7, 0.7, 0.7)}
    for (lr, depth), each in values.items():
        for seed, value in enumerate(each):
            params = {"lr": lr, "model.depth": depth, "seed": seed}
            study.add_trial(create_trial(value=value, params=params, distributions=kinds))
    return study


def test_the_luckiest_seed_is_not_the_best(tmp_path: Path) -> None:
    report.report(tmp_path, make_lucky_study())
    kept = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert (kept["best_trial"], kept["best_params"]) == (6, {"lr": 0.003, "model.depth": 1, "seed": 0})
    assert (kept["best_value"], kept["mean_over"], kept["runs"]) == (pytest.approx(0.81), "seed", 3)
    text = (tmp_path / "best.yaml").read_text()
    assert "trial 6 of sweep_x, value 0.81" in text
    assert "# The value is that of 3 runs, seed after seed; this is the first." in text
    words = (tmp_path / "results.md").read_text()
    assert "## The best trials, by the mean over seed" in words
    assert "repeats trial 6, the first of the best configuration" in words
    best, depends = words.index("## The best trials"), words[words.index("depends on") :].partition("##")[0]
    assert [line.split(" | ")[0] for line in words[best:].splitlines()[4:8]] == ["| 6", "| 7", "| 8", "| 0"]
    assert "| lr |" in depends
    assert "| seed |" not in depends


def test_mlflow_has_the_best_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(mlflow_store, "conclude", lambda *arguments: told.extend(arguments))
    report.publish(results.read_study(Path("nowhere"), make_lucky_study()), None, "", [])
    _, _, _, metrics, tags, status = told
    assert metrics["best/value"] == {0: pytest.approx(0.81)}
    assert metrics["best_value"][11] == 0.95, "the history is of single trials"
    assert (tags["best_trial"], tags["best.seed"], status) == ("6", "0", "FINISHED")


def test_the_front_is_of_means() -> None:
    rows = [
        results.Row(number, "COMPLETE", values, {"lr": lr, "seed": seed})
        for number, (lr, seed, values) in enumerate([
            ("0.1", "0", (0.9, 5.0)), ("0.1", "1", (0.1, 5.0)), ("0.2", "0", (0.6, 4.0)), ("0.2", "1", (0.6, 4.0))
        ])
    ]  # fmt: skip
    asked = {"directions": ["maximize", "minimize"], "fixed": [], "space": {"lr": "", "seed": ""}}
    found = results.Sweep("s", asked, ["a", "b"], "", "", rows, lambda row: [])
    assert [row.number for row in found.best] == [2]
    assert preset.build_solution(found)["solutions"] == [
        {"params": {"lr": 0.2, "seed": 0}, "values": [0.6, 4.0], "trial": 2, "folder": "", "mlflow_run_id": ""}
    ]


@pytest.mark.parametrize(("keys", "count", "reason"), [
    (("lr",), 5, "one parameter alone varies"), (("lr", "model.depth"), 2, "2 complete trials do not tell it")
])  # fmt: skip
def test_importances_need_something_to_compare(keys: tuple[str, ...], count: int, reason: str) -> None:
    study = make_study(keys=keys)
    for number in range(count):
        params = {"lr": 1e-3 * (number + 1), "model.depth": 1 + number % 3}
        study.add_trial(make_trial(number, {key: params[key] for key in keys}, value=0.1 * number))
    found = results.read_study(Path("nowhere"), study)
    assert not plots.compute_importances(found)
    assert next(why for name, why, _ in plots.iter_objective_plots(found) if name == "importance") == reason


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_no_trial_is_white_on_white(direction: str, tmp_path: Path) -> None:
    study = make_study((direction,), keys=("lr", "model.depth"))
    for number in range(8):
        study.add_trial(make_trial(number, {"lr": 1e-3 * (number + 1), "model.depth": 1 + number % 3}, value=float(number)))
    found = results.read_study(tmp_path, study)
    with plots.use_off_screen_backend():
        figure = plots.plot_study(plots.to_study(found, 0), "a", "parallel_coordinate", ["lr", "model.depth"])
        (lines,) = figure.axes[0].collections
        lines.update_scalarmappable()
        shades = {value: float(min(color[:3])) for value, color in zip(lines.get_array(), lines.get_edgecolors(), strict=True)}
    assert max(shades.values()) < 0.8
    best = max(shades) if direction == "maximize" else min(shades)
    assert shades[best] == min(shades.values())


def test_the_space_is_for_people(tmp_path: Path) -> None:
    report.report(tmp_path, fill_study(tmp_path, 3), plots=False)
    words = (tmp_path / "results.md").read_text()
    for line in (
        "| lr | 0.0001 .. 0.1, logarithmic |",
        "| optim.lamb | 0.0 .. 5.0 when optim == 'grokfast' |",
        "| model.depth | 1 .. 4, in steps of 1 |",
        "| optim | 2 values: adamw, grokfast |",
    ):
        assert line in words
    assert plots.parse_bounds("1 values: low=3") == ({}, "")
    assert isinstance(plots.infer_distribution("2 values: low=3, high=x", ["low=3", "high=x"]), CategoricalDistribution)


def log_basic_sweep(rates: Sequence[str], status: str = "FINISHED") -> tuple[MlflowClient, str]:
    """A sweep of Hydra's own sweeper in this process's store."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    place = Path("basic").absolute()
    study = client.create_experiment("x", (place.parent / "artifacts").as_uri())
    parent = client.create_run(study, tags={"sweep": "lr", "folder": str(place)}).info.run_id
    for number, lr in enumerate(rates):
        tags = {
            "mlflow.parentRunId": parent,
            "folder": str(place / str(number)),
            "sweep.lr": lr,
            mlflow_store.SOURCE_TAG: "train.py",
        }
        run = client.create_run(study, tags={**tags, "status": status}).info.run_id
        client.log_param(run, "monitor", "val/acc")
        client.log_metric(run, "best/val/acc", 0.5 + 0.1 * number)
        client.set_terminated(run, status)
    place.mkdir()
    (place / "mlflow_run_id").write_text(parent)
    return client, parent


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, in an empty folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", make_environment(tmp_path)["MLFLOW_TRACKING_URI"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_that_left_no_word_has_no_preset(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, parent = log_basic_sweep(("0.1", "0.2"))
    (empty_folder / "basic" / "best.yaml").write_text("lr: 0.2")
    for _ in range(2):
        assert run_report(monkeypatch, "basic", "--no-plots") == 0
        words = (empty_folder / "basic" / "results.md").read_text()
        assert "2 trials: 2 complete; 0 steps" in words
        assert "How many there were to be is not known." in words
        assert "There is no `best.yaml`: this sweep left no study.json" in words
        assert "| lr | 0.1, 0.2 |" in words
        assert yaml.safe_load((empty_folder / "basic" / "optimization_results.yaml").read_text())["best_params"] == {"lr": 0.2}
        assert not (empty_folder / "basic" / "best.yaml").exists()
        assert not (empty_folder / "basic" / "study.json").exists()
    assert client.get_run(parent).info.status == "FINISHED"


@pytest.mark.parametrize("by", ["folder", "lost", "run"])
def test_a_population_keeps_its_own_report(
    by: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client, parent = log_basic_sweep(("0.1", "0.2"))
    for child in mlflow_store.list_children(client, parent):
        client.set_tag(child.run_id, "pbt.generation", "0")
    own = empty_folder / "basic" / "optimization_results.yaml"
    own.write_text("schedule: all of it")
    if by == "folder":
        (empty_folder / "basic" / "population.json").write_text("{}")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody is asked
    assert run_report(monkeypatch, parent if by == "run" else "basic") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a population has its own report: population.csv" in line
    assert own.read_text() == "schedule: all of it"
    assert [path.name for path in client.list_artifacts(parent)] == [] if by != "folder" else True
    assert not (empty_folder / "basic" / "results.md").exists()


@pytest.mark.parametrize("by", ["folder", "run"])
def test_the_journal_knows_more_than_mlflow(by: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of trials that took another one's result, or failed before they had a run there."""
    client, parent = log_basic_sweep(("0.1",))
    held = make_study(keys=("lr",), total=3)
    held.add_trial(make_trial(0, {"lr": 0.1}, value=0.5))
    held.add_trial(make_trial(1, {"lr": 0.1}, value=0.5, user_attrs={"reused": 0}))
    held.add_trial(make_trial(2, {"lr": 0.01}, TrialState.FAIL, user_attrs={"error": "ValueError: no"}))
    journal = f"journal://{empty_folder / 'basic' / 'study.journal'}"
    optuna.copy_study(
        from_study_name="sweep_x", from_storage=held._storage, to_storage=research.tracking.optuna_storage.get_storage(journal)
    )  # fmt: skip
    assert run_report(monkeypatch, parent if by == "run" else "basic", "--no-plots") == 0
    assert [row["state"] for row in read_table(empty_folder / "basic")] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert read_table(empty_folder / "basic")[1]["note"] == "the result of 0"
    assert client.get_run(parent).data.metrics["trials/failed"] == 1, "it hears of it"


def test_a_journal_that_cannot_be_read_leaves_mlflow(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_basic_sweep(("0.1",))
    (empty_folder / "basic" / "study.journal").write_text("")
    assert run_report(monkeypatch, "basic", "--no-plots") == 0
    assert "study.journal does not tell of this sweep" in capsys.readouterr().err
    assert [row["lr"] for row in read_table(empty_folder / "basic")] == ["0.1"]


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
def test_a_sweep_is_lost_where_its_command_ends_with_an_error(spec: dict[str, Any], failed: int, lost: bool) -> None:
    found = results.Sweep("s", spec, ["a"], "", "", [], lambda row: [])
    assert report.has_failed(found, failed) == lost


def test_nothing_is_complete(tmp_path: Path) -> None:
    study = make_study(keys=("lr", "optim"))
    (tmp_path / "none").mkdir()
    report.report(tmp_path / "none", study)
    assert "0 trials: none" in (tmp_path / "none" / "results.md").read_text()
    params = {"lr": 1e-3, "optim": "adamw"}
    study.add_trial(make_trial(0, params, TrialState.RUNNING, user_attrs={"lease": {"host": "x"}}))
    study.add_trial(make_trial(1, params, TrialState.FAIL, user_attrs={"error": "ValueError: no"}))
    study.add_trial(make_trial(2, params, TrialState.FAIL, user_attrs={"aside": "one more than asked for"}))
    study.add_trial(make_trial(3, params, TrialState.PRUNED, user_attrs={"pruned": 7}))
    study.add_trial(make_trial(4, {}, TrialState.WAITING))
    report.report(tmp_path, study)
    assert [row["state"] for row in read_table(tmp_path)] == ["RUNNING", "FAIL", "ASIDE", "PRUNED", "WAITING"]
    words = (tmp_path / "results.md").read_text()
    told = "2 of 30 trials have ended, 1 are running or were interrupted: the same command goes on with the rest"
    assert told in words
    assert "no history: no trial is complete" in words
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["timeline.png"]
    assert not (tmp_path / "best.yaml").exists()
    assert not (tmp_path / "optimization_results.yaml").exists()


def test_several_objectives(tmp_path: Path) -> None:
    study = make_study(("maximize", "minimize"), metrics=["val/acc", "params"])
    generator = random.Random(1)
    for number in range(12):
        params = draw_params(number, generator)
        values = [params["lr"], float(params["model.depth"])]
        study.add_trial(make_trial(number, params, values=values))
    report.report(tmp_path, study)
    kept = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    front = sorted(study.best_trials, key=lambda each: -each.values[0])
    assert [each["trial"] for each in kept["solutions"]] == [each.number for each in front]
    assert [each["values"] for each in kept["solutions"]] == [each.values for each in front]
    assert [each["params"] for each in kept["solutions"]] == [each.params for each in front]
    assert kept["best_trial"] == front[0].number
    assert f"trial {front[0].number} of sweep_x" in (tmp_path / "best.yaml").read_text()
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert names >= {"pareto", "history", "history_2", "importance_2", "contour_2", "parallel_2"}
    assert "## The Pareto front" in (tmp_path / "results.md").read_text()


def test_the_best_keeps_to_the_constraints(tmp_path: Path) -> None:
    study = make_study(keys=("lr",))
    for number, limit in enumerate((-1.0, 0.0, 0.5)):
        study.add_trial(make_trial(number, {"lr": 10.0 ** -(number + 1)}, value=float(number), constraints={"params": limit}))
    report.report(tmp_path, study)
    assert yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())["best_trial"] == study.best_trial.number == 1
    assert [row["params (constraint)"] for row in read_table(tmp_path)] == ["-1.0", "0.0", "0.5"]
    assert results.parse_csv((tmp_path / "trials.csv").read_text(), 1) == results.read_study(tmp_path, study).rows


def test_a_picture_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(optuna.visualization.matplotlib, "plot_slice", raise_error)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "slice.png").write_text("of an earlier report")
    report.report(tmp_path, fill_study(tmp_path, 9))
    words = (tmp_path / "results.md").read_text()
    assert "- no slice: RuntimeError: no ink" in words
    assert "plots/history.png" in words
    assert not (tmp_path / "plots" / "slice.png").exists()


def test_trials_that_are_all_the_same_can_be_drawn(tmp_path: Path) -> None:
    study = make_study(keys=("lr", "model.depth"))
    for number in range(4):
        study.add_trial(make_trial(number, {"lr": 1e-3 * (number + 1), "model.depth": 1 + number % 2}, value=0.5))
    report.report(tmp_path, study)
    assert "no importance: it cannot be told from these values" in (tmp_path / "results.md").read_text()
    assert {"history", "slice", "parallel", "contour"} <= {path.stem for path in (tmp_path / "plots").iterdir()}


@pytest.mark.parametrize("value", [None, True, 3, -2.5, 1e-05, 1e30, "adamw", "a,b", "true", "1e-3", "it's", "", "x y", "a=b"])
def test_a_value_is_written_so_that_hydra_reads_it(value: Any) -> None:
    text = results.to_override(value)
    read = OverridesParser.create().parse_override(f"x={text}").value()
    assert (type(read), read) == (type(value), value)
    assert (type(results.parse_value(text)), results.parse_value(text)) == (type(value), value)


@pytest.mark.parametrize(
    "line",
    [
        "model=mlp optim=adamw lr=1e-5",
        "experiment=text model=mlp data=modular trainer.clip_norm=null",
        "experiment=grokking steps=7 callbacks=[default,gradients] callbacks.time_limit.seconds=2.5",
        "+extra='1e-3' optim={weight_decay:0.5} optim.alpha=0.5 name='a b, c'",
        "sweep=small steps=7 optim=muon",
        "loss=classification ++optim.base.eps=1e-9 optim.base.betas=[0.5,0.9] +note=null",
    ],
)
def test_best_yaml_composes_to_what_the_trial_had(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset, "CONF", tmp_path / "conf")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    parts = OverridesParser.create().parse_overrides([*_split_overrides(line)])
    lines = [str(part.input_line) for part in parts]
    (tmp_path / "conf" / "sweep").mkdir(exist_ok=True)
    (tmp_path / "conf" / "sweep" / "small.yaml").write_text(STUDY)
    asked = {"directions": ["minimize"], "fixed": sorted(lines[:-1]), "space": {}}
    row = results.Row(3, "COMPLETE", (0.1,), dict([lines[-1].split("=", 1)]))
    found = results.Sweep("sweep_x", asked, ["val/loss"], "", "", [row], lambda row: [])
    (tmp_path / "conf" / "experiment" / "best.yaml").write_text(preset.build_preset(found, row))
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        assert compose("config", ["experiment=best"]) == compose("config", lines)
        params = compose("config", ["experiment=best"], return_hydra_config=True).hydra.sweeper.get("params")
        assert not params, "it does not search again"


def _split_overrides(line: str) -> Iterator[str]:
    """At the spaces between overrides."""
    words = line.split(" ")
    while words:
        word = words.pop(0)
        while words and "=" not in words[0]:
            word += " " + words.pop(0)
        yield word


def test_best_yaml_says_what_it_cannot_hold() -> None:
    asked = {
        "directions": ["minimize"],
        "fixed": ["~callbacks.curve", "optim.betas.0=0.5", "out=x", "resume.path=y", "tracker=none"],
    }
    row = results.Row(0, "COMPLETE", (0.1,), {"lr": "0.1"})
    text = preset.build_preset(results.Sweep("s", asked, ["val/loss"], "", "", [row], lambda row: []), row)
    assert "for a preset cannot say it: ~callbacks.curve optim.betas.0=0.5" in text
    assert yaml.safe_load(text) == {"lr": 0.1}


def test_mlflow_out_of_reach_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "mlflow_run_id").write_text("0" * 32)
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
def test_the_final_word(states: list[TrialState], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := make_environment(tmp_path)["MLFLOW_TRACKING_URI"])
    client = MlflowClient(uri)
    parent = client.create_run(client.create_experiment("x", (tmp_path / "a").as_uri()), tags={"sweep": "lr"})
    tags = {"mlflow.parentRunId": parent.info.run_id, "folder": str(tmp_path / "gone"), "host": "elsewhere"}
    (tmp_path / "mlflow_run_id").write_text(run_id := parent.info.run_id)
    for key in ("sweep.failed", "best.gone"):
        client.set_tag(run_id, key, "FAILED")
    study = make_study(keys=("lr",), total=3)
    for number, state in enumerate(states):
        study.add_trial(make_trial(number, {"lr": 1e-3}, state, **({"value": 0.5} if state == TrialState.COMPLETE else {})))
    for _ in range(2):
        report.report(tmp_path, study, plots=False)
    found = client.get_run(run_id)
    assert found.info.status == status
    assert found.data.metrics["trials/failed"] == states.count(TrialState.FAIL)
    assert len(client.get_metric_history(run_id, "best_value")) == states.count(TrialState.COMPLETE), "said twice, held once"
    assert not {"sweep.failed", "best.gone"} & found.data.tags.keys()
    client.create_run(found.info.experiment_id, tags=tags)  # on another machine somebody is still at work
    report.report(tmp_path, study, plots=False)
    assert client.get_run(run_id).info.status == "RUNNING"
