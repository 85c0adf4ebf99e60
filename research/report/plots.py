"""The pictures of a sweep: which there are, and their files. One that fails, or does not suit this sweep, gives its reason."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.cli import first_line
from research.contracts import contract
from research.metrics import confidence_interval
from research.report import charts
from research.report.marks import collect_points
from research.report.results import Row, Sweep, format_number
from research.report.study import to_study
from research.report.style import BLUE, fit_labels, keep_drawable, make_figure, set_step_scale, set_value_scale, shorten
from research.report.target import Curve, Target, load_curve
from research.run_dir import replace_file
from research.tracking.optuna_storage import silence_optuna

log = logging.getLogger(__name__)
MIN_IMPORTANCE_TRIALS = 3  # complete trials
MAX_PARAMETERS, MAX_PAIRED = 6, 3  # the most important ones: side by side, and against each other
MAX_CURVES, MAX_NAMED_CURVES = 50, 8  # configurations in the picture; up to so many have their own colour and label
CURVE_COLORS = [f"C{index}" for index in range(10) if index != 7]  # the seventh is grey, as what is not named
MAX_LABEL = 80  # characters
PlotSpec = tuple[str, str, Callable[[], Figure]]  # a picture's name, why it makes no sense here, and its function
Group = tuple[list[Row], list[Curve]]  # the trials of a configuration, and the curves of their runs


@contract
def draw(sweep: Sweep, folder: Path, target: Target | None = None) -> dict[str, str]:
    """Write the pictures into a folder. Return for each name why it is not there, or an empty text where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    for name, reason, plot in iter_plots(sweep, target):
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


@contract
def save(figure: Figure, file: Path) -> None:
    """Write a picture, complete or not at all, its labels apart from each other."""
    with replace_file(file) as draft, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in a script that the font lacks
        fit_labels(figure)
        figure.savefig(draft, dpi=110, format="png")


@contract
def iter_plots(sweep: Sweep, target: Target | None = None) -> Iterator[PlotSpec]:
    """Yield the pictures of each objective, those of the second with its number in their names, then those of all or none."""
    count, num_objectives = len(sweep.complete), len(sweep.objectives)
    incomplete = "" if count else "no trial is complete"
    exception = f" but for {sweep.spec.repeat_key}" if sweep.spec.repeat_key in sweep.space else ""
    equal = incomplete or ("" if list_varied(sweep) else f"all complete trials have the same parameters{exception}")
    single = equal or ("" if count > 1 else "one trial alone is complete")
    for index, objective in enumerate(sweep.objectives):
        suffix, shares = f"_{index + 1}" if index else "", compute_importances(sweep, index)
        names, own = list(shares or list_varied(sweep)), target if objective == sweep.monitor else None
        alone = single or ("" if len(names) > 1 else "one parameter alone varies")
        rare = "" if count >= MIN_IMPORTANCE_TRIALS else f"{count} complete trials do not tell it"
        unknown = alone or rare or ("" if shares else "it cannot be told from these values")
        wide, pairs = names[:MAX_PARAMETERS], names[:MAX_PAIRED]
        infinite = "" if collect_points(sweep, index)[0] else "no complete trial has a finite value"
        yield f"history{suffix}", incomplete or infinite, partial(charts.draw_history, sweep, index, own)
        yield f"importance{suffix}", unknown, partial(charts.draw_importance, shares, objective)
        yield f"slice{suffix}", single or infinite, partial(charts.draw_slices, sweep, index, wide, own)
        yield f"parallel{suffix}", single or infinite, partial(charts.draw_parallel, sweep, index, wide)
        yield f"contour{suffix}", alone or infinite, partial(charts.draw_pairs, sweep, index, pairs)
    curves = list(islice(iter_curves(sweep), MAX_CURVES))
    unfit = incomplete if 1 < num_objectives < 4 else f"for two or three objectives; this sweep has {num_objectives}"
    begun = "" if any(row.started for row in sweep.rows) else "no trial has begun"
    yield "timeline", begun, partial(charts.draw_timeline, sweep)
    yield "pareto", unfit, partial(charts.draw_pareto, sweep)
    missing = "" if curves else f"no run has logged its monitor {sweep.monitor}".rstrip()
    yield "curves", missing, partial(plot_learning_curves, sweep, curves)


# The learning curves are read from metrics.jsonl, so there are curves without a pruner and of each repeat.


def iter_curves(sweep: Sweep) -> Iterator[Group]:
    """Yield the configurations whose runs have logged the monitor, the best one first."""
    for rows in sweep.configurations:
        loaded = (keep_drawable(load_curve(folder, sweep.monitor)) for row in rows for folder in row.runs)
        if curves := [curve for curve in loaded if curve]:
            yield rows, curves


def plot_learning_curves(sweep: Sweep, groups: Sequence[Group]) -> Figure:
    """Return a figure of the monitor against the step: a line a configuration, over its repeats with their interval."""
    figure, (axis,) = make_figure(8, 4.5, "")
    has_names = len(groups) <= MAX_NAMED_CURVES
    for rank, (rows, curves) in reversed(list(enumerate(groups))):  # the best one is drawn last, above the others
        color = CURVE_COLORS[rank] if has_names else BLUE if rank == 0 else "0.75"
        label = format_label(rows) if rank == 0 or has_names else None
        plot_curve(axis, curves, color, 2.2 if rank == 0 else 1.0, label)
    drawn = [curve for _, curves in groups for curve in curves]
    values = [value for curve in drawn for value in curve.values()]
    low, high = min(values), max(values)
    set_step_scale(axis, max(map(max, drawn)))
    set_value_scale(axis, sweep.monitor, values)
    if low < high and axis.get_yscale() == "linear":
        # Limits by the curves alone: the interval of two or three runs may be many times as wide.
        axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    figure.legend(loc="outside lower center", fontsize=8, frameon=False, reverse=True)
    interval = ": mean and 95 % t interval over repeats" if len(drawn) > len(groups) else ""
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
    return shorten(label if len(label) < MAX_LABEL else f"trial {rows[0].number}: {label[: MAX_LABEL - 20]} ...", MAX_LABEL)


def list_varied(sweep: Sweep) -> list[str]:
    """Return the parameters that differ between complete trials, without the repeated key, as seed."""
    keys = [key for key in sweep.space if key != sweep.spec.repeat_key]
    return [key for key in keys if len({row.params.get(key) for row in sweep.complete}) > 1]


@contract
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
