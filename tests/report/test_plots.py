"""The pictures of a sweep, and the reasons of those that are not there."""

import math
import random
from collections.abc import Iterator
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from reporting import START, fill_study, make_study, make_trial, read_contents

from research.report import charts, plots, report
from research.report.content import build_blocks
from research.report.markdown import render_markdown
from research.report.results import Row, Sweep
from research.report.study import read_study
from research.report.style import fit_labels, list_labels, make_scale, wrap_name
from research.report.target import Target, find_target
from research.run_dir import Summary
from research.tracking.study_spec import parse_study_spec


def make_sweep(count: int, direction: str = "minimize", keys: int = 5, choices: int = 30) -> Sweep:
    """Trials of a space with everything that crowds a picture, ended in every way; every fifth value spans decades."""
    generator, long_name = random.Random(0), "callbacks.grokking.a_very_long_setting_of_my_own_"
    space = {"lr": "low=1e-05 high=1.0 log=True", "model": f"{choices} values", "optim.lamb": "low=0.0 high=5.0"}
    space |= {f"{long_name}{index}.and_more": "low=1 high=9 step=1" for index in range(keys - 3)}
    rows = []
    for number in range(count):
        params = {
            "lr": repr(10 ** generator.uniform(-5, 0)),
            "model": f"'model $ <é> no {generator.randrange(choices)} of mine'",
        }
        params |= {key: str(generator.randint(1, 9)) for key in list(space)[3:]}
        params |= {"optim.lamb": repr(generator.uniform(0, 5))} if number % 2 else {}
        state = {3: "FAIL", 4: "PRUNED"}.get(number % 8, "COMPLETE")
        value = math.inf if number == 5 else 10 ** generator.uniform(-2, 4)
        runs = {Path("nowhere", str(number)): Summary("FINISHED", metrics={"val/loss": value}, steps=900)}
        values, started = (value,) if state == "COMPLETE" else (), START + timedelta(seconds=20 * number)
        rows.append(Row(number, state, values, params, started, 31.5, runs=runs))
    spec = parse_study_spec({"directions": [direction], "space": space, "total": count})
    return Sweep("s", spec, ["val/loss"], "val/loss", "", rows)


def plot_all(sweep: Sweep, target: Target | None = None) -> dict[str, Figure]:
    """The pictures that there are, their labels where they stand in the files."""
    figures = {name: plot() for name, reason, plot in plots.iter_plots(sweep, target) if not reason}
    for figure in figures.values():
        fit_labels(figure)
    return figures


def list_boxes(figure: Figure) -> Iterator[list[Bbox]]:
    """The boxes of the labels that stand beside each other: of an axis, and of a line of a parallel-coordinate plot."""
    for axes in figure.axes:
        yield [label.get_window_extent() for label in list_labels(axes.xaxis)]
        yield [label.get_window_extent() for label in list_labels(axes.yaxis)]
        for place in {text.get_position()[0] for text in axes.texts if text.get_gid() == "tick"}:
            yield [text.get_window_extent() for text in axes.texts if text.get_position()[0] == place]


def count_overlaps(boxes: list[Bbox]) -> int:
    return sum(first.overlaps(second) for first, second in combinations(boxes, 2))


def get_labels(figure: Figure, index: int, which: str) -> list[str]:
    axes = figure.axes[index]
    return [label.get_text() for label in list_labels(axes.xaxis if which == "x" else axes.yaxis)]


@pytest.fixture(scope="module")
def crowded() -> tuple[Sweep, dict[str, Figure]]:
    sweep = make_sweep(30)
    steps = {row.number: float(100 * row.number) if row.number % 3 else None for row in sweep.rows}
    return sweep, plot_all(sweep, Target("val/loss", 0.1, steps, 900))


def test_no_label_of_any_picture_overlaps_another(crowded: tuple[Sweep, dict[str, Figure]]) -> None:
    """Thirty trials, thirty categories with long names, five parameters."""
    figures = crowded[1]
    assert {*figures} == {"history", "importance", "slice", "parallel", "contour", "timeline"}
    assert sum(len(boxes) for figure in figures.values() for boxes in list_boxes(figure)) > 60
    for name, figure in figures.items():
        assert [count_overlaps(boxes) for boxes in list_boxes(figure)] == [0] * len(list(list_boxes(figure))), name
        width, height = figure.canvas.get_width_height()
        for box in (box for boxes in list_boxes(figure) for box in boxes):
            assert (box.x0 > -2, box.y0 > -2, box.x1 < width + 2, box.y1 < height + 2) == (True,) * 4, name


def test_the_check_sees_labels_that_overlap() -> None:
    figure = Figure(figsize=(2, 2))
    axes = figure.subplots()
    axes.set_xticks(range(9), [f"category {number}" for number in range(9)])
    figure.draw_without_rendering()
    assert max(count_overlaps(boxes) for boxes in list_boxes(figure)) > 0
    fit_labels(figure)
    assert max(count_overlaps(boxes) for boxes in list_boxes(figure)) == 0
    assert get_labels(figure, 0, "x")[0] == "category 0"


def test_axes_are_what_the_space_is(crowded: tuple[Sweep, dict[str, Figure]]) -> None:
    """Logarithmic where it is, whole numbers, categories; values that span decades are logarithmic too."""
    sweep, figures = crowded
    assert [int(text) for text in get_labels(figures["history"], 0, "x")][:2] == [0, 5]
    assert [int(text) for text in get_labels(figures["timeline"], 0, "y")]
    assert figures["history"].axes[0].get_yscale() == "log"
    slices = {axes.get_xlabel(): axes for axes in figures["slice"].axes}
    for key in plots.compute_importances(sweep):
        axes, scale = slices.get(wrap_name(key)), make_scale(sweep, key)
        if axes is None:
            continue
        labels = [label.get_text() for label in list_labels(axes.xaxis)]
        assert axes.get_xscale() == ("log" if key == "lr" else "linear")
        assert scale.is_whole == key.startswith("callbacks.")
        assert not scale.is_whole or all(text.isdigit() for text in labels)
        assert key != "model" or all("mine" in text for text in labels)
    assert get_labels(figures["contour"], 0, "x")


@pytest.mark.parametrize(
    ("description", "texts", "scale", "labels"),
    [
        ("low=1e-05 high=1.0 log=True", ["1e-3", "0.1"], "log", ["0.0001", "0.01", "1"]),
        ("3 values: 1e-4, 1e-3, 1e-2", ["1e-4", "1e-3", "1e-2"], "log", ["0.0001", "0.001", "0.01"]),
        ("low=0.0 high=5.0", ["0.5", "4.2"], "linear", ["0", "2", "4"]),
        ("low=1 high=4 step=1", ["1", "3"], "linear", ["1", "2", "3", "4"]),
        ("3 values: 32, 64, 128", ["32", "64", "128"], "linear", ["32", "64", "128"]),
        ("2 values: adamw, null", ["adamw", "null"], "linear", ["adamw", "null"]),
        ("2 values: 1, true", ["1", "true"], "linear", ["1", "true"]),
    ],
)
def test_a_parameter_has_its_scale(description: str, texts: list[str], scale: str, labels: list[str]) -> None:
    rows = [Row(number, "COMPLETE", (0.1 * number,), {"key": text}) for number, text in enumerate(texts)]
    sweep = Sweep("s", parse_study_spec({"directions": ["minimize"], "space": {"key": description}}), ["a"], "", "", rows)
    figure = charts.draw_slices(sweep, 0, ["key"], None)
    fit_labels(figure)
    assert figure.axes[0].get_xscale() == scale
    assert get_labels(figure, 0, "x") == labels


def test_trials_that_failed_or_were_pruned_are_marked(crowded: tuple[Sweep, dict[str, Figure]]) -> None:
    """A value that is not finite failed too; steps to the target stand beside the value, hollow where it was not reached."""
    sweep, figures = crowded
    value, steps = figures["history"].axes
    dots = {dots.get_label(): np.asarray(dots.get_offsets()) for dots in (*value.collections, *steps.collections)}
    states = {state: [row.number for row in sweep.rows if row.state == state] for state in ("COMPLETE", "PRUNED", "FAIL")}
    assert dots["complete"][:, 0].tolist() == [number for number in states["COMPLETE"] if number != 5]
    assert dots["pruned, its last value"][:, 0].tolist() == states["PRUNED"]
    assert sorted(dots["failed"][:, 0].tolist()) == sorted([*states["FAIL"], 5])
    assert dots["reached"][:, 1].tolist() == [100.0 * number for number in range(30) if number % 3]
    assert dots["not reached"][:, 0].tolist() == list(range(0, 30, 3))
    assert steps.get_ylabel() == "steps to\nval/loss 0.1"
    assert {text.get_text() for text in figures["history"].legends[0].get_texts()} == {*dots, "best so far"}
    assert "pruned" in {text.get_text() for text in figures["parallel"].legends[0].get_texts()}


@pytest.mark.parametrize("count", [1, 2])
def test_few_trials_can_be_drawn(count: int) -> None:
    figures = plot_all(make_sweep(count))
    assert get_labels(figures["history"], 0, "x") == [str(number) for number in range(count)]


def test_all_pictures_are_drawn_and_leave_no_trace(tmp_path: Path) -> None:
    study, style = fill_study(tmp_path, 12), dict(matplotlib.rcParams)
    report.report(tmp_path, study)
    assert dict(matplotlib.rcParams) == style
    words = (tmp_path / "results.md").read_text()
    assert [line for line in words.splitlines() if line.startswith("- no ")] == [
        "- no pareto: for two or three objectives; this sweep has 1"
    ]
    assert {name for name in read_contents(tmp_path) if name.endswith(".png")} == {
        f"plots/{name}.png" for name in ("history", "importance", "slice", "parallel", "contour", "timeline", "curves")
    }


@pytest.mark.parametrize(
    ("config", "metrics", "steps"),
    [
        ("target: 0.5", [(10, 0.4), (20, 0.5), (30, 0.9)], 20),
        ("target: 0.99", [(10, 0.4), (20, 0.5)], None),
        ("target: null\ncallbacks: {grokking: {end: 0.9}}", [(10, 0.4), (30, 0.9)], 30),
        ("target: null", [(10, 0.4)], "none"),
        ("target: 0.8\nmetrics: {iou: {higher_is_better: true}}", [(10, 0.2), (20, 0.5), (30, 0.9)], 30),
        ("{", [(10, 0.4)], "none"),
    ],
)
def test_steps_to_the_target_are_read_from_the_runs(
    config: str, metrics: list[tuple[int, float]], steps: int | str | None, tmp_path: Path
) -> None:
    name = "val/iou" if "iou" in config else "val/acc"
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "{name}": {acc}}}\n' for step, acc in metrics))
    row = Row(0, "COMPLETE", (0.9,), {"lr": "1e-3"}, runs={tmp_path: Summary("FINISHED", steps=30)})
    sweep = Sweep("s", parse_study_spec({"directions": ["maximize"], "space": {"lr": ""}}), [name], name, "", [row])
    target = find_target(sweep)
    assert (target.steps[0] if target else "none") == steps
    text = render_markdown(build_blocks(sweep, {}, [], target))
    assert (f"steps to {name}" in text, "not in 30" in text) == (steps != "none", steps is None)


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
def test_no_trial_is_white_on_white(direction: str) -> None:
    """The best line is orange, the better ones are darker."""
    sweep = make_sweep(20, direction, keys=4)
    axes = charts.draw_parallel(sweep, 0, ["lr", "optim.lamb"]).axes[0]
    lines = axes.collections[0]
    lines.update_scalarmappable()
    shades = np.asarray(lines.get_edgecolor())[:, :3].min(axis=1).tolist()
    assert shades == sorted(shades, reverse=True)
    assert max(shades) < 0.8
    best = (max if direction == "maximize" else min)(row.values[0] for row in sweep.complete if math.isfinite(row.values[0]))
    heights = sorted(float(np.asarray(path.vertices)[0, 1]) for path in lines.get_paths())
    drawn = next(line for line in axes.lines if line.get_color() == "tab:orange")
    assert float(np.asarray(drawn.get_ydata())[0]) == (heights[-1] if direction == "maximize" else heights[0])
    assert math.isfinite(best)


def make_rows(*values: float, limits: dict[int, float] | None = None) -> Sweep:
    """Complete trials with these values; those of `limits` break a constraint by so much."""
    space = {"lr": "low=1e-05 high=1.0 log=True", "depth": "low=1 high=9 step=1"}
    broken = {number: {"latency": limit} for number, limit in (limits or {}).items()}
    rows = [
        Row(number, "COMPLETE", (value,), {"lr": f"1e-{number + 1}", "depth": str(number + 1)}, limits=broken.get(number, {}))
        for number, value in enumerate(values)
    ]
    return Sweep("s", parse_study_spec({"directions": ["maximize"], "space": space}), ["a"], "a", "", rows)


def test_the_trial_that_is_marked_as_the_best_is_the_reports() -> None:
    """The first of equal ones, and none that breaks a constraint."""
    sweep = make_rows(0.5, 0.9, 0.9, 1.0, limits={3: 1.0})
    assert [row.number for row in sweep.best] == [1]
    line = next(line for line in charts.draw_parallel(sweep, 0, ["lr"]).axes[0].lines if line.get_color() == "tab:orange")
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.8, 0.6])
    ring = next(dots for dots in charts.draw_pairs(sweep, 0, ["lr", "depth"]).axes[0].collections if dots.get_label() == "best")
    assert np.asarray(ring.get_offsets())[0, 0] == 1e-2


@pytest.mark.parametrize(("values", "drawn"), [((-1e308, 1e308, 0.1, 0.2), [2, 3]), ((1e99, 1e-99, 1, 3), [0, 1, 2, 3])])
def test_numbers_near_the_largest_can_be_drawn(values: tuple[float, ...], drawn: list[int]) -> None:
    """Those whose axis would have no end are marked as failed."""
    dots = {
        dots.get_label(): np.asarray(dots.get_offsets()) for dots in plot_all(make_rows(*values))["history"].axes[0].collections
    }
    assert dots["complete"][:, 0].tolist() == drawn


def test_a_picture_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_pictures: None) -> None:
    def raise_error(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(charts, "draw_slices", raise_error)
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
