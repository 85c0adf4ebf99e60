"""The trials of a study as rows: trials.csv, the best trial and the Pareto front."""

import random
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial
from reporting import draw_params, fill_study, make_lucky_study, make_study, make_trial, read_contents, read_table

from research.composition.overrides import to_override
from research.metrics import confidence_interval
from research.report import preset, report, results, study
from research.report.results import Row, Sweep
from research.tracking.study_spec import parse_study_spec


def test_trials_that_ended_in_every_way(tmp_path: Path) -> None:
    in_memory = fill_study(tmp_path)
    report.report(tmp_path, in_memory, plots=False)
    before, rows = read_contents(tmp_path), read_table(tmp_path)
    assert [row["state"] for row in rows[5:8]] == ["COMPLETE", "FAIL", "PRUNED"]
    assert rows[6]["error"] == "ValueError: lower lr\nsecond line"
    assert rows[7]["note"] == "pruned at step 200"
    assert [row["odd"] for row in rows[:5]] == ["null", "1", "2.5", "'a,b'", "'true'"]
    assert {row["optim.lamb"] == "" for row in rows if row["optim"] == "adamw"} == {True}
    assert [float(row["lr"]) for row in rows] == [trial.params["lr"] for trial in in_memory.trials]
    assert rows[0]["seconds"] == "31.5"
    assert "30 trials: 24 complete, 3 fail, 3 pruned" in (tmp_path / "results.md").read_text()
    report.report(tmp_path, in_memory, plots=False)
    assert read_contents(tmp_path) == before, "a second report is the same"


def test_repeats_have_an_interval(tmp_path: Path) -> None:
    report.report(tmp_path, fill_study(tmp_path, 8, repeats=3), plots=False)
    row = read_table(tmp_path)[0]
    assert (len(row["repeats"].split()), len(row["mlflow_run_id"].split()), row["steps"]) == (3, 3, "1200")
    assert row["folder"] == "0"
    assert "± 0.025 | 3 |" in (tmp_path / "results.md").read_text()
    assert not (tmp_path / "plots").exists()
    assert confidence_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.484), abs=0.01)


def test_seeds_of_a_grid_are_repeats(tmp_path: Path) -> None:
    grid = make_study(keys=(), space={"model": "2 values: a, b", "seed": "3 values: 0, 1, 2"})
    kinds: dict[str, BaseDistribution] = {
        "model": CategoricalDistribution(["a", "b"]),
        "seed": CategoricalDistribution([0, 1, 2]),
    }
    for number in range(6):
        params = {"model": "ab"[number // 3], "seed": number % 3}
        grid.add_trial(create_trial(value=float(number), params=params, distributions=kinds))
    report.report(tmp_path, grid, plots=False)
    words = (tmp_path / "results.md").read_text()
    assert "## Means over seed" in words
    assert words.index("| b | 4 | ± 2.5 | 3 |") < words.index("| a | 1 | ± 2.5 | 3 |")


def test_the_luckiest_seed_is_not_the_best(tmp_path: Path) -> None:
    report.report(tmp_path, make_lucky_study(), plots=False)
    solution = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert (solution["best_trial"], solution["best_params"]) == (6, {"lr": 0.003, "model.depth": 1, "seed": 0})
    assert (solution["best_value"], solution["mean_over"], solution["runs"]) == (pytest.approx(0.81), "seed", 3)
    text = (tmp_path / "best.yaml").read_text()
    assert "trial 6 of sweep_x, value 0.81" in text
    assert "# The value is that of 3 runs over seed" in text
    words = (tmp_path / "results.md").read_text()
    assert "## The best trials, by the mean over seed" in words
    assert "repeats trial 6, the first of the best configuration" in words
    best, depends = words.index("## The best trials"), words[words.index("depends on") :].partition("##")[0]
    assert [line.split(" | ")[0] for line in words[best:].splitlines()[4:8]] == ["| 6", "| 7", "| 8", "| 0"]
    assert "| lr |" in depends
    assert "| seed |" not in depends


def test_the_front_is_of_means() -> None:
    rows = [
        Row(number, "COMPLETE", values, {"lr": lr, "seed": seed})
        for number, (lr, seed, values) in enumerate([
            ("0.1", "0", (0.9, 5.0)), ("0.1", "1", (0.1, 5.0)), ("0.2", "0", (0.6, 4.0)), ("0.2", "1", (0.6, 4.0))
        ])
    ]  # fmt: skip
    spec = {"directions": ["maximize", "minimize"], "fixed": [], "space": {"lr": "", "seed": ""}}
    sweep = Sweep("s", parse_study_spec(spec), ["a", "b"], "", "", rows)
    assert [row.number for row in sweep.best] == [2]
    assert preset.build_solution(sweep)["solutions"] == [
        {"params": {"lr": 0.2, "seed": 0}, "values": [0.6, 4.0], "trial": 2, "folder": "", "mlflow_run_id": ""}
    ]


def test_several_objectives(tmp_path: Path, empty_pictures: None) -> None:
    pareto = make_study(("maximize", "minimize"), metrics=["val/acc", "params"])
    generator = random.Random(1)
    for number in range(12):
        params = draw_params(number, generator)
        pareto.add_trial(make_trial(number, params, values=[params["lr"], float(params["model.depth"])]))
    report.report(tmp_path, pareto)
    solution = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    front = sorted(pareto.best_trials, key=lambda trial: -trial.values[0])
    expected = [{"params": trial.params, "values": trial.values, "trial": trial.number} for trial in front]
    assert [{key: entry[key] for key in ("params", "values", "trial")} for entry in solution["solutions"]] == expected
    assert solution["best_trial"] == front[0].number
    assert f"trial {front[0].number} of sweep_x" in (tmp_path / "best.yaml").read_text()
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert names >= {"pareto", "history", "history_2", "importance_2", "contour_2", "parallel_2"}
    assert "## The Pareto front" in (tmp_path / "results.md").read_text()


def test_the_best_keeps_to_the_constraints(tmp_path: Path) -> None:
    bounded = make_study(keys=("lr",))
    for number, limit in enumerate((-1.0, 0.0, 0.5)):
        bounded.add_trial(make_trial(number, {"lr": 10.0 ** -(number + 1)}, value=float(number), constraints={"params": limit}))
    report.report(tmp_path, bounded, plots=False)
    assert yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())["best_trial"] == bounded.best_trial.number == 1
    assert [row["params (constraint)"] for row in read_table(tmp_path)] == ["-1.0", "0.0", "0.5"]


def test_nothing_is_complete(tmp_path: Path) -> None:
    unfinished = make_study(keys=("lr", "optim"))
    (tmp_path / "none").mkdir()
    report.report(tmp_path / "none", unfinished)
    assert "0 trials: none" in (tmp_path / "none" / "results.md").read_text()
    params = {"lr": 1e-3, "optim": "adamw"}
    unfinished.add_trial(make_trial(0, params, TrialState.RUNNING, user_attrs={"lease": {"host": "x"}}))
    unfinished.add_trial(make_trial(1, params, TrialState.FAIL, user_attrs={"error": "ValueError: no"}))
    unfinished.add_trial(make_trial(2, params, TrialState.FAIL, user_attrs={"aside": "one more than asked for"}))
    unfinished.add_trial(make_trial(3, params, TrialState.PRUNED, user_attrs={"pruned": 7}))
    unfinished.add_trial(make_trial(4, {}, TrialState.WAITING))
    report.report(tmp_path, unfinished)
    assert [row["state"] for row in read_table(tmp_path)] == ["RUNNING", "FAIL", "ASIDE", "PRUNED", "WAITING"]
    words = (tmp_path / "results.md").read_text()
    assert "2 of 30 trials have ended, 1 under way or interrupted: the same command runs the rest" in words
    assert "- trial 1: ValueError: no" in words
    assert "no history: no trial is complete" in words
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["timeline.png"]
    assert not (tmp_path / "best.yaml").exists()
    assert not (tmp_path / "optimization_results.yaml").exists()


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
    assert study.parse_bounds("1 values: low=3") == ({}, "")
    assert isinstance(study.infer_distribution("2 values: low=3, high=x", ["low=3", "high=x"]), CategoricalDistribution)


@pytest.mark.parametrize("value", [None, True, 3, -2.5, 1e-05, 1e30, "adamw", "a,b", "true", "1e-3", "it's", "", "x y", "a=b"])
def test_a_value_is_formatted_so_that_hydra_reads_it(value: Any) -> None:
    text = to_override(value)
    hydra_value = OverridesParser.create().parse_override(f"x={text}").value()
    assert (type(hydra_value), hydra_value) == (type(value), value)
    assert (type(results.parse_value(text)), results.parse_value(text)) == (type(value), value)


def test_a_trial_without_a_run_has_the_value_as_overrides_spell_it(tmp_path: Path) -> None:
    """As one that reuses another one's result: 1e-3 stays 1e-3 in all rows."""
    reused = optuna.create_study()
    kinds: dict[str, BaseDistribution] = {"lr": CategoricalDistribution([0.001, 0.01])}
    for number in range(2):
        attrs = {"folder": str(tmp_path / "0")} if number == 0 else {"reused": 0}
        reused.add_trial(create_trial(value=0.5, params={"lr": 0.001}, distributions=kinds, user_attrs=attrs))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "overrides.txt").write_text("model=mlp\nlr=1e-3\n")
    rows = study.read_study(tmp_path, reused).rows
    assert [(row.params["lr"], row.folder, row.note) for row in rows] == [("1e-3", "0", ""), ("1e-3", "", "the result of 0")]
