"""The pictures of a sweep, and the reasons of those that are not there."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot
from reporting import fill_study, make_study, make_trial, read_contents

from research.report import plots, report
from research.report.study import read_study, to_study


def test_all_pictures_are_drawn_and_leave_no_trace(tmp_path: Path) -> None:
    study, backend = fill_study(tmp_path, 12), matplotlib.get_backend()
    figures, style = pyplot.get_fignums(), dict(matplotlib.rcParams)
    report.report(tmp_path, study)
    assert (matplotlib.get_backend(), pyplot.get_fignums(), dict(matplotlib.rcParams)) == (backend, figures, style)
    words = (tmp_path / "results.md").read_text()
    assert [line for line in words.splitlines() if line.startswith("- no ")] == [
        "- no pareto: for two or three objectives; this sweep has 1"
    ]
    assert {name for name in read_contents(tmp_path) if name.endswith(".png")} == {
        f"plots/{name}.png" for name in ("history", "importance", "slice", "parallel", "contour", "timeline", "curves")
    }


@pytest.mark.parametrize(("keys", "count", "reason"), [
    (("lr",), 5, "one parameter alone varies"), (("lr", "model.depth"), 2, "2 complete trials do not tell it")
])  # fmt: skip
def test_importances_need_something_to_compare(keys: tuple[str, ...], count: int, reason: str) -> None:
    study = make_study(keys=keys)
    for number in range(count):
        params = {"lr": 1e-3 * (number + 1), "model.depth": 1 + number % 3}
        study.add_trial(make_trial(number, {key: params[key] for key in keys}, value=0.1 * number))
    sweep = read_study(Path("nowhere"), study)
    assert not plots.compute_importances(sweep)
    assert next(why for name, why, _ in plots.iter_plots(sweep) if name == "importance") == reason


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_no_trial_is_white_on_white(direction: str, tmp_path: Path) -> None:
    study = make_study((direction,), keys=("lr", "model.depth"))
    for number in range(8):
        study.add_trial(make_trial(number, {"lr": 1e-3 * (number + 1), "model.depth": 1 + number % 3}, value=float(number)))
    sweep = read_study(tmp_path, study)
    with plots.use_off_screen_backend():
        figure = plots.plot_study(to_study(sweep, 0), "a", "parallel_coordinate", params=["lr", "model.depth"])
        (lines,) = figure.axes[0].collections
        lines.update_scalarmappable()
        values, colors = np.asarray(lines.get_array()), np.asarray(lines.get_edgecolor())
        shades = dict(zip(values.tolist(), colors[:, :3].min(axis=1).tolist(), strict=True))
    assert max(shades.values()) < 0.8
    best = max(shades) if direction == "maximize" else min(shades)
    assert shades[best] == min(shades.values())


def test_a_picture_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_pictures: None) -> None:
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
