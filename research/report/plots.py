"""The pictures of a sweep, mostly Optuna's. One that fails, or does not suit this sweep, gives its reason."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib import colors, patheffects, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.study import Study
from optuna.visualization import matplotlib as visualization

from research.cli import first_line
from research.metrics import confidence_interval
from research.report.results import Row, Sweep, format_number
from research.report.study import to_study
from research.run_dir import replace_file
from research.tracking.history import METRICS_FILE, read_records
from research.tracking.optuna_storage import silence_optuna

log = logging.getLogger(__name__)
MIN_IMPORTANCE_TRIALS = 3  # complete trials
MAX_PARAMETERS, MAX_CONTOUR_PARAMETERS = 6, 3  # the most important ones: side by side, and against each other
MAX_CURVES, MAX_NAMED_CURVES = 50, 8  # configurations in the picture; up to so many have their own colour and label
MAX_LABEL = 80  # characters
PALE_LIMIT = 0.8  # lines whose darkest channel is above this cannot be told from white paper
PlotSpec = tuple[str, str, Callable[[], Figure]]  # a picture's name, why it makes no sense here, and its function
Curve = dict[int, float]  # step -> value
Group = tuple[list[Row], list[Curve]]  # the trials of a configuration, and the curves of their runs


def draw(sweep: Sweep, folder: Path) -> dict[str, str]:
    """Write the pictures into a folder. Return for each name why it is not there, or an empty text where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    with use_off_screen_backend():
        for name, reason, plot in iter_plots(sweep):
            file, reasons[name] = folder / f"{name}.png", reason
            try:
                if not reason:
                    save(plot(), file)
            except Exception as error:  # libraries raise errors of many kinds for unusual trials
                log.info("%s could not be drawn", name, exc_info=True)
                reasons[name] = f"{type(error).__name__}: {first_line(error)}"
            if reasons[name]:
                file.unlink(missing_ok=True)  # an earlier report's
    return reasons


@contextmanager
def use_off_screen_backend() -> Iterator[None]:
    """Let Optuna draw with pyplot, and restore pyplot's backend, style and open figures after it."""
    backend, open_figures = matplotlib.get_backend(auto_select=False), set(pyplot.get_fignums())
    with matplotlib.rc_context(), silence_optuna():
        pyplot.switch_backend("agg")
        try:
            yield
        finally:
            for number in set(pyplot.get_fignums()) - open_figures:
                pyplot.close(number)
    if backend:
        pyplot.switch_backend(backend)


def save(figure: Figure, file: Path) -> None:
    """Write a picture, complete or not at all."""
    with replace_file(file) as draft:  # a tight box draws the figure twice, and one with a layout of its own does not need it
        figure.savefig(draft, dpi=110, format="png", bbox_inches=None if figure.get_layout_engine() else "tight")


def iter_plots(sweep: Sweep) -> Iterator[PlotSpec]:
    """Yield the pictures of each objective, those of the second with its number in their names, then those of all or none."""
    count, num_objectives = len(sweep.complete), len(sweep.objectives)
    incomplete = "" if count else "no trial is complete"
    exception = f" but for {sweep.spec.repeat_key}" if sweep.spec.repeat_key in sweep.space else ""
    equal = incomplete or ("" if list_varied(sweep) else f"all complete trials have the same parameters{exception}")
    single = equal or ("" if count > 1 else "one trial alone is complete")
    for index, objective in enumerate(sweep.objectives):
        suffix, shares = f"_{index + 1}" if index else "", compute_importances(sweep, index)
        plot = partial(plot_study, to_study(sweep, index), objective, target_name=objective)
        names = list(shares or list_varied(sweep))
        alone = single or ("" if len(names) > 1 else "one parameter alone varies")
        rare = "" if count >= MIN_IMPORTANCE_TRIALS else f"{count} complete trials do not tell it"
        unknown = alone or rare or ("" if shares else "it cannot be told from these values")
        wide, pairs = names[:MAX_PARAMETERS], names[:MAX_CONTOUR_PARAMETERS]
        yield f"history{suffix}", incomplete, partial(plot, "optimization_history")
        yield f"importance{suffix}", unknown, partial(plot, "param_importances", params=names)
        yield f"slice{suffix}", single, partial(plot, "slice", params=wide)
        yield f"parallel{suffix}", single, partial(plot, "parallel_coordinate", (2 + 1.6 * len(wide), 5), params=wide)
        side = 2.6 * len(pairs)
        yield f"contour{suffix}", alone, partial(plot, "contour", (side + 1.5, side), params=pairs)
    plot, curves = partial(plot_study, to_study(sweep), ""), list(islice(iter_curves(sweep), MAX_CURVES))
    unfit = incomplete if 1 < num_objectives < 4 else f"for two or three objectives; this sweep has {num_objectives}"
    yield "timeline", "" if any(row.started for row in sweep.rows) else "no trial has begun", partial(plot, "timeline")
    yield "pareto", unfit, partial(plot, "pareto_front", target_names=sweep.objectives)
    missing = "" if curves else f"no run has logged its monitor {sweep.monitor}".rstrip()
    yield "curves", missing, partial(plot_learning_curves, sweep, curves)


def plot_study(study: Study, objective: str, kind: str, size: tuple[float, float] = (7, 4.2), **settings: Any) -> Figure:
    """Return optuna.visualization.matplotlib's picture of this kind, in a size (inches) that can be read."""
    crowded = kind in ("slice", "contour")
    with matplotlib.rc_context({"figure.figsize": size, "figure.constrained_layout.use": crowded}):
        getattr(visualization, f"plot_{kind}")(study, **settings)
        figure = pyplot.gcf()
    for location in ("left", "center"):
        figure.axes[0].set_title("", loc=location)
    figure.suptitle(f"{kind.replace('_', ' ')} {objective}", fontsize=11)
    if kind == "parallel_coordinate":
        _make_readable(figure)
    return figure


def _make_readable(figure: Figure) -> None:
    """Darken the pale lines of a parallel-coordinate plot, and put a white edge around the labels upon its lines."""
    for lines in figure.axes[0].collections:
        shades = map(lines.get_cmap(), range(256))
        lines.set_cmap(colors.ListedColormap([shade for shade in shades if min(shade[:3]) < PALE_LIMIT]))
    for label in (label for axis in figure.axes for label in axis.get_yticklabels()):
        label.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


# The learning curves. Optuna's plot_intermediate_values draws what a trial reported to its pruner; these are read from
# metrics.jsonl, so there are curves without a pruner and of each repeat.


def iter_curves(sweep: Sweep) -> Iterator[Group]:
    """Yield the configurations whose runs have logged the monitor, the best one first."""
    for rows in sweep.configurations:
        if curves := [curve for row in rows for folder in row.runs if (curve := load_curve(folder, sweep.monitor))]:
            yield rows, curves


def load_curve(folder: Path, monitor: str) -> Curve:
    """Return a metric of a run by step; skip damaged lines of metrics.jsonl, as a last one that is incomplete."""
    records = read_records(folder / METRICS_FILE)
    return {int(record["step"]): float(record[monitor]) for record in records if isinstance(record.get(monitor), int | float)}


def plot_learning_curves(sweep: Sweep, groups: Sequence[Group]) -> Figure:
    """Return a figure of the monitor against the step: a line a configuration, over its repeats with their interval."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    has_names = len(groups) <= MAX_NAMED_CURVES
    for rank, (rows, curves) in reversed(list(enumerate(groups))):  # the best one is drawn last, above the others
        color = f"C{rank}" if has_names else "tab:blue" if rank == 0 else "0.75"
        label = format_label(rows) if rank == 0 or has_names else None
        plot_curve(axis, curves, color, 2.2 if rank == 0 else 1.0, label)
    curves = [curve for _, curves in groups for curve in curves]
    values = [value for curve in curves for value in curve.values()]
    low, high = min(values), max(values)
    axis.set(xlabel="step", ylabel=sweep.monitor, xscale="log" if max(map(max, curves)) > 100 else "linear")
    if low < high:  # limits by the curves alone: the interval of two or three runs may be many times as wide
        axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, reverse=True)
    interval = ": mean and 95 % t interval over repeats" if len(curves) > len(groups) else ""
    figure.suptitle(f"{sweep.monitor} of {len(groups)} configurations{interval}, the best one bold", fontsize=10)
    return figure


def plot_curve(axis: Axes, curves: Sequence[Curve], color: str, width: float, label: str | None) -> None:
    """Draw one curve, or the mean of several at the steps that all of them have, with its interval."""
    steps = sorted(set(curves[0]).intersection(*curves[1:]))
    means, halves = np.array([confidence_interval([curve[step] for curve in curves]) for step in steps]).reshape(-1, 2).T
    axis.plot(steps, means, color=color, linewidth=width, label=label, marker="o" if len(steps) == 1 else None)
    if len(curves) > 1:
        axis.fill_between(steps, means - halves, means + halves, color=color, alpha=0.2, linewidth=0)


def format_label(rows: Sequence[Row]) -> str:
    """Return the parameters that these trials have in common."""
    common = [(key, text) for key, text in rows[0].params.items() if all(row.params.get(key) == text for row in rows)]
    label = " ".join(f"{key}={format_number(text)}" for key, text in common) or f"trial {rows[0].number}"
    return label if len(label) < MAX_LABEL else f"trial {rows[0].number}: {label[: MAX_LABEL - 20]} ..."


def list_varied(sweep: Sweep) -> list[str]:
    """Return the parameters that differ between complete trials, without the repeated key, as seed."""
    keys = [key for key in sweep.space if key != sweep.spec.repeat_key]
    return [key for key in keys if len({row.params.get(key) for row in sweep.complete}) > 1]


def compute_importances(sweep: Sweep, index: int = 0) -> dict[str, float]:
    """Return the share of an objective's variation that each parameter explains, largest first.

    By PED-ANOVA, Optuna's default. Return an empty dict for fewer than two varied parameters, for too few complete trials,
    and for equal values.
    """
    values, varied = [row.values[index] for row in sweep.complete], list_varied(sweep)
    if len(varied) < 2 or len(values) < MIN_IMPORTANCE_TRIALS or len(set(values)) < 2:
        return {}
    with silence_optuna():
        try:
            shares = optuna.importance.get_param_importances(to_study(sweep, index), params=varied)
        except (ValueError, RuntimeError) as error:
            log.info("no importance: %s", error)
            return {}
    return shares if all(map(math.isfinite, shares.values())) else {}
