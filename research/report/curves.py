"""The learning curves of a sweep: a line a configuration, over its repeats with their interval.

Optuna's plot_intermediate_values draws what a trial reported to its pruner; these are read from metrics.jsonl, so there are
curves without a pruner and of each repeat.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from research.metrics import confidence_interval
from research.report.results import Row, Setting, Sweep, parse_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CURVES, MAX_NAMED_CURVES = 50, 8  # configurations in the picture; up to so many have their own colour and label
MAX_LABEL = 80  # characters
Curve = list[tuple[int, float]]  # step, value
Group = tuple[list[Row], list[Curve]]  # the trials of a configuration, and the curves of their runs


def load_curves(row: Row, monitor: str) -> list[Curve]:
    """Return the learning curve of each run of a trial that has logged the metric."""
    files = [run.folder / "metrics.jsonl" for run in row.runs]
    return [curve for file in files if file.exists() and (curve := list(_iter_points(file, monitor)))]


def _iter_points(file: Path, monitor: str) -> Iterator[tuple[int, float]]:
    """Yield step and value of a metric in metrics.jsonl; skip a last line that is incomplete."""
    for line in file.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record.get(monitor), int | float):
            yield int(record["step"]), float(record[monitor])


def group_configurations(sweep: Sweep) -> list[list[Row]]:
    """Group trials that differ only in the repeated key, as seed. The best group comes first, incomplete trials last."""
    groups: dict[Setting, list[Row]] = {}
    for row in (*sweep.rank_rows(), *(row for row in sweep.rows if row.state != "COMPLETE")):
        groups.setdefault(row.get_setting(sweep.repeat_key), []).append(row)
    return list(groups.values())


def collect_curves(sweep: Sweep) -> list[Group]:
    """Return the best configurations whose runs have learning curves, at most MAX_CURVES."""
    groups: list[Group] = []
    for rows in group_configurations(sweep):
        if curves := [curve for row in rows for curve in load_curves(row, sweep.monitor)]:
            groups.append((rows, curves))
        if len(groups) == MAX_CURVES:
            break
    return groups


def plot_learning_curves(sweep: Sweep, groups: Sequence[Group]) -> "Figure":
    """Return a figure of the monitor against the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    has_names = len(groups) <= MAX_NAMED_CURVES
    for rank, (rows, curves) in reversed(list(enumerate(groups))):  # the best one is drawn last, above the others
        color = f"C{rank}" if has_names else "tab:blue" if rank == 0 else "0.75"
        label = format_label(rows) if rank == 0 or has_names else None
        plot_curve(axis, curves, color, 2.2 if rank == 0 else 1.0, label)
    points = [point for _, curves in groups for curve in curves for point in curve]
    last_step, low, high = max(step for step, _ in points), min(value for _, value in points), max(value for _, value in points)
    axis.set(xlabel="step", ylabel=sweep.monitor, xscale="log" if last_step > 100 else "linear")
    if low < high:  # limits by the curves alone: the interval of two or three runs may be many times as wide
        axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], fontsize=8)
    repeated = any(len(curves) > 1 for _, curves in groups)
    interval = ": mean and 95 % t interval over repeats" if repeated else ""
    figure.suptitle(f"{sweep.monitor} of {len(groups)} configurations{interval}, the best one bold", fontsize=10)
    return figure


def plot_curve(axis: "Axes", curves: Sequence[Curve], color: str, width: float, label: str | None) -> None:
    """Draw one curve, or the mean of several at the steps that all of them have, with its interval."""
    tables = [dict(curve) for curve in curves]
    steps = sorted(set(tables[0]).intersection(*tables[1:]))
    intervals = [confidence_interval([table[step] for table in tables]) for step in steps]
    means = [mean for mean, _ in intervals]
    axis.plot(steps, means, color=color, linewidth=width, label=label, marker="o" if len(steps) == 1 else None)
    if len(curves) > 1:
        low, high = [mean - half for mean, half in intervals], [mean + half for mean, half in intervals]
        axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def format_label(rows: Sequence[Row]) -> str:
    """Return the parameters that these trials have in common."""
    common = [
        f"{key}={format_number(text)}"
        for key, text in rows[0].params.items()
        if all(row.params.get(key) == text for row in rows)
    ]
    label = " ".join(common) or f"trial {rows[0].number}"
    return label if len(label) < MAX_LABEL else f"trial {rows[0].number}: {label[: MAX_LABEL - 20]} ..."


def format_number(value: float | str) -> str:
    """Return a float, also one that is still text, in six digits; anything else as it is."""
    parsed = parse_value(value) if isinstance(value, str) else value
    return f"{parsed:.6g}" if isinstance(parsed, float) else str(value)
