"""How trials are drawn: a mark of its own for each kind, the same in all charts of a sweep."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from research.contracts import contract
from research.report.results import Row, Sweep
from research.report.style import BLUE, GRAY, ORANGE, RED, is_drawable, set_value_scale, shorten
from research.report.target import Target

MANY_TRIALS = 200  # more have smaller dots
HOLLOW = {"facecolors": "none", "edgecolors": GRAY}
MARKS: dict[str, dict[str, Any]] = {  # a kind of trial, and how it is drawn
    "complete": {"color": BLUE},
    "pruned": HOLLOW,
    "failed": {"marker": "x", "color": RED, "s": 26, "zorder": 4},
    "reached": {"color": BLUE},
    "not reached": HOLLOW | {"marker": "^", "s": 26},
    "best": {"facecolors": "none", "edgecolors": ORANGE, "linewidths": 2, "s": 110, "zorder": 4},
}
FAILED_HEIGHT = 0.03  # of a failed trial, which has no value, above the lower edge of the picture
Points = list[tuple[Row, float]]


@contract
def collect_points(sweep: Sweep, index: int) -> tuple[Points, Points, list[Row]]:
    """Return the complete trials with an objective's value, the pruned ones with the last they had, and the failed ones.

    Values that are not finite, or too large to be drawn, count as failed.
    """
    points: dict[str, Points] = {"COMPLETE": [], "PRUNED": []}
    failed = [row for row in sweep.rows if row.state == "FAIL"]
    for row in sweep.rows:
        last = [value for run in row.runs.values() if (value := run.metrics.get(sweep.objectives[index])) is not None]
        value = row.values[index] if row.values else last[0] if last else math.nan
        if row.state in points and is_drawable(value):
            points[row.state].append((row, value))
        elif row.state == "COMPLETE":
            failed.append(row)
    return points["COMPLETE"], points["PRUNED"], failed


@contract
def mark(axes: Axes, sweep: Sweep, index: int, positions: Mapping[int, float]) -> None:
    """Draw each trial's value at its place along x: complete ones filled, pruned ones hollow, failed ones as crosses."""
    complete, pruned, failed = collect_points(sweep, index)
    for points, label in ((complete, "complete"), (pruned, "pruned, its last value")):
        pairs = [(positions[row.number], value) for row, value in points if row.number in positions]
        scatter(axes, pairs, label, len(sweep.rows))
    xs = [positions[row.number] for row in failed if row.number in positions]
    scatter(axes, [(x, FAILED_HEIGHT) for x in xs], "failed", transform=axes.get_xaxis_transform(), clip_on=False)
    set_value_scale(axes, sweep.objectives[index], [value for _, value in (*complete, *pruned)])


@contract
def scatter(axes: Axes, points: Sequence[tuple[float, float]], label: str, count: int = 0, **more: Any) -> None:
    """Draw trials of a kind, in its style; smaller where there are many."""
    style: dict[str, Any] = {"s": 22 if count <= MANY_TRIALS else 8, "zorder": 3} | MARKS[label.partition(",")[0]] | more
    if points:
        axes.scatter([x for x, _ in points], [y for _, y in points], label=label, **style)


@contract
def mark_steps(axes: Axes, target: Target, positions: Mapping[int, float]) -> None:
    """Draw each trial's steps to the target at its place along x; hollow at the top where it was not reached."""
    reached = [(positions[n], steps) for n, steps in target.steps.items() if n in positions and steps is not None]
    missed = [(positions[n], float(target.longest)) for n, steps in target.steps.items() if n in positions and steps is None]
    scatter(axes, reached, "reached", len(target.steps))
    scatter(axes, missed, "not reached")
    axes.set_ylabel(f"steps to\n{shorten(target.metric, 22)} {target.value:g}", fontsize=9)
    axes.set_ylim(bottom=0)
