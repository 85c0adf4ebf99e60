"""The charts of a sweep, one function each: a figure from its rows. What to draw is decided in plots.py."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from research.contracts import contract
from research.report.marks import Points, collect_points, mark, mark_steps, scatter
from research.report.results import Row, Sweep
from research.report.style import (
    BLUE,
    GRAY,
    MISSING,
    ORANGE,
    RED,
    SHADES,
    Scale,
    add_legend,
    is_drawable,
    make_figure,
    make_scale,
    number_trials,
    set_value_scale,
    shorten,
    spans_decades,
    wrap_name,
)
from research.report.target import Target

STATE_COLORS = {"COMPLETE": BLUE, "PRUNED": GRAY, "FAIL": RED, "RUNNING": ORANGE}
STATE_NAMES = ("complete", "pruned", "failed", "running")


@contract
def draw_history(sweep: Sweep, index: int, target: Target | None) -> Figure:
    """Return the value of each trial and the best so far; beside it the steps to the target, where there is one."""
    figure, axes = make_figure(
        10 if target else 7, 3.6, f"{shorten(sweep.objectives[index], 60)} by trial", 1, 2 if target else 1
    )
    positions = {row.number: float(row.number) for row in sweep.rows}
    mark(axes[0], sweep, index, positions)
    rows = [row for row, _ in collect_points(sweep, index)[0] if not row.breaks_constraint]
    if rows:
        better = max if sweep.directions[index] == "maximize" else min
        best = list(accumulate((row.values[index] for row in rows), better))
        numbers = [row.number for row in rows]
        last = max(positions)
        axes[0].step([*numbers, last], [*best, best[-1]], where="post", color=ORANGE, label="best so far", zorder=2)
    if target:
        mark_steps(axes[1], target, positions)
    for axis in axes:
        number_trials(axis.xaxis)
        axis.set_xlim(-0.6, max(positions) + 0.6)
    add_legend(figure, 5)
    return figure


@contract
def draw_importance(shares: Mapping[str, float], objective: str) -> Figure:
    """Return bars of the shares of an objective's variation that each parameter explains."""
    figure, (axis,) = make_figure(7, 1.2 + 0.32 * len(shares), f"what {shorten(objective, 60)} depends on (PED-ANOVA)")
    names, widths = [*shares][::-1], [*shares.values()][::-1]
    bars = axis.barh(range(len(names)), widths, color=BLUE)
    axis.bar_label(bars, [f"{width:.2f}" for width in widths], padding=3, fontsize=8)
    axis.set_yticks(range(len(names)), [shorten(name, 44) for name in names])
    axis.set(xlim=(0, 1.12 * max(*widths, 1e-9)))
    axis.set_xlabel("share of its variation", fontsize=9)
    axis.grid(False, axis="y")
    return figure


@contract
def draw_slices(sweep: Sweep, index: int, keys: Sequence[str], target: Target | None) -> Figure:
    """Return the value against each parameter, and below it the steps to the target where there is one."""
    count, lines = len(keys), 2 if target else 1
    title = f"{shorten(sweep.objectives[index], 60)} by parameter"
    figure, axes = make_figure(1.2 + 2.3 * count, 0.8 + 2.6 * lines, title, lines, count)
    for column, key in enumerate(keys):
        scale = make_scale(sweep, key)
        numbers = {row.number: scale.to_number(row.params.get(key)) for row in sweep.rows}
        positions = {number: x for number, x in numbers.items() if x is not None}
        mark(axes[column], sweep, index, positions)
        if target:
            mark_steps(axes[count + column], target, positions)
        for axis in axes[column::count]:
            scale.apply(axis, "x")
            if column:
                axis.set_ylabel("")
    for line in range(lines):
        for axis in axes[line * count + 1 : (line + 1) * count]:
            axis.sharey(axes[line * count])
            axis.tick_params(labelleft=False)
    add_legend(figure, 5)
    return figure


def rank_colors(sweep: Sweep, index: int, points: Points) -> list[float]:
    """Return for each trial the share of the others that it beats, 0 to 1: values may span decades."""
    sign = 1 if sweep.directions[index] == "maximize" else -1
    ordered = sorted({sign * value for _, value in points})
    return [ordered.index(sign * value) / max(1, len(ordered) - 1) for _, value in points]


@contract
def find_best(sweep: Sweep, index: int, points: Points) -> int:
    """Return which of the complete trials is marked as the best one: the report's; of another objective its first best."""
    numbers, sign = [row.number for row, _ in points], 1 if sweep.directions[index] == "maximize" else -1
    if not index and sweep.best and sweep.best[0].number in numbers:
        return numbers.index(sweep.best[0].number)
    return max(range(len(points)), key=lambda n: (not points[n][0].breaks_constraint, sign * points[n][1]))


@contract
def draw_parallel(sweep: Sweep, index: int, keys: Sequence[str]) -> Figure:
    """Return a line a trial over the parameters' axes and the objective's: the better, the stronger; the best one orange."""
    figure, (axis,) = make_figure(
        2 + 1.6 * (len(keys) + 1), 4.6, f"{shorten(sweep.objectives[index], 60)}: the better, the stronger"
    )
    complete, pruned, _ = collect_points(sweep, index)
    values = [value for _, value in complete]
    objective = Scale(sweep.objectives[index], is_log=spans_decades(values), low=min(values), high=max(values))
    scales = [make_scale(sweep, key) for key in keys]
    absent = -0.12  # the height of trials that have not the parameter

    def trace(row: Row, value: float | None) -> list[tuple[float, float]]:
        numbers = [scale.to_number(row.params.get(scale.key)) for scale in scales]
        heights = [absent if n is None else locate(scale, n) for scale, n in zip(scales, numbers, strict=True)]
        first = [(0.0, locate(objective, value))] if value is not None else []
        return [*first, *((column, height) for column, height in enumerate(map(float, heights), start=1))]

    shades = rank_colors(sweep, index, complete)
    order = sorted(range(len(complete)), key=shades.__getitem__)
    lines = LineCollection([trace(*complete[n]) for n in order], cmap=SHADES, linewidths=1.1, zorder=2)
    lines.set_array([shades[n] for n in order])
    lines.set_clim(0, 1)
    axis.add_collection(lines)
    if pruned:
        axis.add_collection(LineCollection([trace(row, None) for row, _ in pruned], colors="0.6", linestyles=":", linewidths=1))
    axis.plot(*zip(*trace(*complete[find_best(sweep, index, complete)]), strict=True), color=ORANGE, linewidth=2.2, zorder=3)
    for column, scale in enumerate([objective, *scales]):
        axis.axvline(column, color="0.2", linewidth=0.8, zorder=4)
        is_absent = any(scale.key in keys and scale.key not in row.params for row, _ in complete)
        label_line(axis, column, [(locate(scale, n), text) for n, text in scale.list_ticks()] + [(absent, MISSING)] * is_absent)
    axis.set_xticks(range(len(keys) + 1), [wrap_name(key) for key in (objective.key, *keys)])
    axis.yaxis.set_major_locator(NullLocator())
    axis.set(xlim=(-0.3, len(keys) + 0.6), ylim=(-0.2, 1.08))
    axis.spines[:].set_visible(False)
    axis.grid(False)
    styles: list[tuple[str, str, Any]] = [("best", ORANGE, "-"), ("complete", BLUE, "-"), ("pruned", "0.6", ":")]
    styles = styles if pruned else styles[:2]
    handles = [Line2D([], [], color=color, linestyle=style, label=label) for label, color, style in styles]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


@contract
def locate(scale: Scale, number: float) -> float:
    """Return a number's height on its line of a parallel-coordinate plot; categories stand half a step from the ends."""
    if scale.categories:
        return (number + 0.5) / len(scale.categories)
    return scale.to_fraction(number)


def label_line(axis: Axes, x: int, labels: Sequence[tuple[float, str]]) -> None:
    """Write labels beside a line, every second one and so on where they would overlap, with a white edge around them."""
    every = -(-len(labels) // 14)
    edge = [withStroke(linewidth=3, foreground="white")]
    for height, text in labels[::every]:
        axis.plot([x - 0.02, x + 0.02], [height, height], color="0.2", linewidth=0.8, zorder=4)
        axis.text(x + 0.05, height, text, fontsize=8, va="center", path_effects=edge, zorder=5, gid="tick")


@contract
def draw_pairs(sweep: Sweep, index: int, keys: Sequence[str]) -> Figure:
    """Return the parameters against each other, each trial in the shade of its value, the best one with an orange ring."""
    pairs = list(combinations(keys, 2))
    title = f"{shorten(sweep.objectives[index], 60)} by pairs of parameters: the better, the stronger"
    figure, axes = make_figure(1 + 3.4 * len(pairs), 3.8, title, 1, len(pairs))
    complete, pruned, failed = collect_points(sweep, index)
    shades = rank_colors(sweep, index, complete)
    best = complete[find_best(sweep, index, complete)][0]
    for axis, (first, second) in zip(axes, pairs, strict=True):
        across, up = make_scale(sweep, first), make_scale(sweep, second)

        def get_point(row: Row, across: Scale = across, up: Scale = up) -> tuple[float, float] | None:
            x, y = across.to_number(row.params.get(across.key)), up.to_number(row.params.get(up.key))
            return None if x is None or y is None else (spread(across, x, row), spread(up, y, row, 0.5))

        for rows, label in ([row for row, _ in pruned], "pruned"), (failed, "failed"):
            scatter(axis, [point for row in rows if (point := get_point(row))], label)
        own = [(point, shade) for (row, _), shade in zip(complete, shades, strict=True) if (point := get_point(row))]
        colors: dict[str, Any] = {"c": [shade for _, shade in own], "color": None, "cmap": SHADES, "vmin": 0, "vmax": 1}
        scatter(axis, [point for point, _ in own], "complete", s=36, **colors)
        scatter(axis, [point] if (point := get_point(best)) else [], "best")
        across.apply(axis, "x")
        up.apply(axis, "y")
    add_legend(figure, 5)
    return figure


def spread(scale: Scale, number: float, row: Row, start: float = 0.0) -> float:
    """Return a place beside a choice, another one for each trial, so that equal choices do not hide each other."""
    is_choice = scale.categories or (scale.is_whole and not scale.is_log)
    return number + 0.5 * ((start + row.number * 0.618034) % 1 - 0.5) if is_choice else number


@contract
def draw_timeline(sweep: Sweep) -> Figure:
    """Return when each trial ran and how it ended."""
    rows = [row for row in sweep.rows if row.started]
    start = min(row.started for row in rows if row.started)
    begins = [(row.started - start).total_seconds() for row in rows if row.started]
    longest = max([begin + (row.seconds or 0.0) for begin, row in zip(begins, rows, strict=True)])
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if longest > 2 * size or size == 1)
    figure, (axis,) = make_figure(7, min(9.0, 1.6 + 0.13 * len(rows)), "when the trials ran")
    for (state, color), label in zip(STATE_COLORS.items(), STATE_NAMES, strict=True):
        own = [(row.number, begin, row.seconds or 0.0) for row, begin in zip(rows, begins, strict=True) if row.state == state]
        if own:
            numbers, lefts, widths = zip(*own, strict=True)
            axis.barh(numbers, np.divide(widths, size), left=np.divide(lefts, size), color=color, label=label)
    number_trials(axis.yaxis)
    axis.set_ylim(max(row.number for row in rows) + 0.6, min(row.number for row in rows) - 0.6)
    axis.set_xlabel(unit, fontsize=9)
    add_legend(figure, 4)
    return figure


@contract
def draw_pareto(sweep: Sweep) -> Figure:
    """Return the objectives against each other, the Pareto front in orange."""
    pairs = list(combinations(range(len(sweep.objectives)), 2))
    figure, axes = make_figure(1 + 4 * len(pairs), 4, "the Pareto front", 1, len(pairs))
    front = {row.number for row in sweep.best}
    for axis, (first, second) in zip(axes, pairs, strict=True):
        for is_front, color, label in ((False, GRAY, "complete"), (True, ORANGE, "Pareto front")):
            rows = [row for row in sweep.complete if (row.number in front) == is_front and all(map(is_drawable, row.values))]
            xs, ys = [row.values[first] for row in rows], [row.values[second] for row in rows]
            axis.scatter(xs, ys, s=26, color=color, label=label, zorder=3 + is_front)
        for which, index in (("x", first), ("y", second)):
            set_value_scale(axis, sweep.objectives[index], [row.values[index] for row in sweep.complete], which)
    add_legend(figure)
    return figure
