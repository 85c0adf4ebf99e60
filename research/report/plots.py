"""The pictures of a sweep, mostly Optuna's. One that makes no sense here, or fails, has a reason and spoils no other."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import Study

from research.cli import first_line
from research.report.curves import collect_curves, plot_learning_curves
from research.report.results import Sweep
from research.report.study import to_study
from research.tracking.optuna_storage import silence_optuna

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
MIN_IMPORTANCE_TRIALS = 3  # complete trials
MAX_PARAMETERS, MAX_CONTOUR_PARAMETERS = 6, 3  # the most important ones: side by side, and against each other
PALE_LIMIT = 0.8  # lines whose darkest channel is above this cannot be told from white paper
PlotSpec = tuple[str, str, Callable[[], "Figure"]]  # a picture's name, why it makes no sense here, and its function


def draw(sweep: Sweep, folder: Path) -> dict[str, str]:
    """Write the pictures into a folder. Return for each name why it is not there, or an empty text where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    with use_off_screen_backend():
        for name, reason, plot in (*iter_objective_plots(sweep), *iter_sweep_plots(sweep)):
            file = folder / f"{name}.png"
            try:
                if not reason:
                    save(plot(), file)
            except Exception as error:  # libraries raise errors of many kinds for unusual trials
                log.info("%s could not be drawn", name, exc_info=True)
                reason = f"{type(error).__name__}: {first_line(error)}"
            if reason:
                file.unlink(missing_ok=True)  # an earlier report's
            reasons[name] = reason
    return reasons


@contextmanager
def use_off_screen_backend() -> Iterator[None]:
    """Let Optuna draw with pyplot, and restore pyplot's backend, style and open figures after it."""
    import matplotlib
    from matplotlib import pyplot

    backend, open_figures = matplotlib.get_backend(auto_select=False), set(pyplot.get_fignums())
    with matplotlib.rc_context(), silence_optuna():
        warnings.filterwarnings("ignore", "Some regimes|Target and region", UserWarning)  # of few trials, or equal values
        pyplot.switch_backend("agg")
        try:
            yield
        finally:
            for number in set(pyplot.get_fignums()) - open_figures:
                pyplot.close(number)
    if backend:
        pyplot.switch_backend(backend)


def save(figure: "Figure", file: Path) -> None:
    """Write a picture under another name and rename it: a file is complete or not there."""
    draft = file.with_name(f".{file.name}.draft")
    # A tight box draws the figure twice, and one with a layout of its own does not need it.
    box = None if figure.get_layout_engine() else "tight"
    figure.savefig(draft, dpi=110, format="png", bbox_inches=box)
    draft.replace(file)


def iter_objective_plots(sweep: Sweep) -> Iterator[PlotSpec]:
    """Yield the pictures of one objective; those of the second have its number in their names."""
    count = len(sweep.complete)
    incomplete = "" if count else "no trial is complete"
    exception = f" but for {sweep.repeat_key}" if sweep.repeat_key in sweep.space else ""
    equal = incomplete or ("" if list_varied(sweep) else f"all complete trials have the same parameters{exception}")
    single = equal or ("" if count > 1 else "one trial alone is complete")
    for index, objective in enumerate(sweep.objectives):
        suffix = f"_{index + 1}" if index else ""
        study, shares = to_study(sweep, index), compute_importances(sweep, index)
        plot, names = partial(plot_study, study, objective), list(shares or list_varied(sweep))
        alone = single or ("" if len(names) > 1 else "one parameter alone varies")
        rare = "" if count >= MIN_IMPORTANCE_TRIALS else f"{count} complete trials do not tell it"
        unknown = alone or rare or ("" if shares else "it cannot be told from these values")
        wide, pairs = names[:MAX_PARAMETERS], names[:MAX_CONTOUR_PARAMETERS]
        yield f"history{suffix}", incomplete, partial(plot, "optimization_history")
        yield f"importance{suffix}", unknown, partial(plot, "param_importances", names)
        yield f"slice{suffix}", single, partial(plot, "slice", wide)
        yield f"parallel{suffix}", single, partial(plot, "parallel_coordinate", wide, (2 + 1.6 * len(wide), 5))
        yield f"contour{suffix}", alone, partial(plot, "contour", pairs, (2.6 * len(pairs) + 1.5, 2.6 * len(pairs)))


def iter_sweep_plots(sweep: Sweep) -> Iterator[PlotSpec]:
    """Yield the pictures of all objectives, or of none."""
    study, count, curves = to_study(sweep), len(sweep.directions), collect_curves(sweep)
    unfit = "" if sweep.complete else "no trial is complete"
    unfit = unfit if 1 < count < 4 else f"for two or three objectives; this sweep has {count}"
    not_started = "" if any(row.started for row in sweep.rows) else "no trial has begun"
    yield "timeline", not_started, partial(plot_study, study, "", "timeline")
    yield "pareto", unfit, partial(plot_study, study, "", "pareto_front", sweep.objectives)
    missing = "" if curves else f"no run has logged its monitor {sweep.monitor}".rstrip()
    yield "curves", missing, partial(plot_learning_curves, sweep, curves)


def plot_study(
    study: Study, objective: str, kind: str, names: Sequence[str] = (), size: tuple[float, float] = (7, 4.2)
) -> "Figure":
    """Return optuna.visualization.matplotlib's picture of this kind, in a size (inches) that can be read."""
    import matplotlib
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as visualization

    settings: dict[str, Any] = {"target_names" if kind == "pareto_front" else "params": list(names)} if names else {}
    settings |= {"target_name": objective} if objective else {}
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


def _make_readable(figure: "Figure") -> None:
    """Darken the pale lines of a parallel-coordinate plot, and put a white edge around the labels upon its lines."""
    from matplotlib import colors, patheffects

    for lines in figure.axes[0].collections:
        shades = map(lines.get_cmap(), range(256))
        lines.set_cmap(colors.ListedColormap([shade for shade in shades if min(shade[:3]) < PALE_LIMIT]))
    for label in (label for axis in figure.axes for label in axis.get_yticklabels()):
        label.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def list_varied(sweep: Sweep) -> list[str]:
    """Return the parameters that differ between complete trials, without the repeated key, as seed."""
    keys = [key for key in sweep.space if key != sweep.repeat_key]
    return [key for key in keys if len({row.params.get(key) for row in sweep.complete}) > 1]


def compute_importances(sweep: Sweep, index: int = 0) -> dict[str, float]:
    """Return the share of an objective's variation that each parameter explains, largest first.

    By PED-ANOVA, Optuna's default. Return an empty dict for fewer than two varied parameters, for too few complete trials,
    and for equal values.
    """
    values = [row.values[index] for row in sweep.complete]
    if len(list_varied(sweep)) < 2 or len(values) < MIN_IMPORTANCE_TRIALS or len(set(values)) < 2:
        return {}
    with silence_optuna():
        warnings.filterwarnings("ignore", "Some regimes|Target and region", UserWarning)  # of few trials, or equal values
        try:
            shares = optuna.importance.get_param_importances(to_study(sweep, index), params=list_varied(sweep))
        except (ValueError, RuntimeError) as error:
            log.info("no importance: %s", error)
            return {}
    return shares if all(map(math.isfinite, shares.values())) else {}
