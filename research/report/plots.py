"""The pictures of a sweep, each for itself: one that makes no sense, or fails, says why and leaves the others alone."""

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from research.metrics import confidence_interval
from research.report.results import Curve, Row, Sweep, get_setting, parse_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
MAX_CURVES, MAX_NAMED_CURVES = 50, 8  # at most so many learning curves; up to so many have each its own colour and name
MIN_IMPORTANCE_TRIALS, PALE_LIMIT = (
    3,
    0.8,
)  # complete trials that importances need at least; the palest line's darkest channel is below this
MAX_PARAMETERS, MAX_CONTOUR_PARAMETERS = (
    6,
    3,
)  # at most so many parameters side by side, and against each other: those that matter most
BOUNDS = re.compile(r"((?:(?:high|log|low|step)=\S+ ?)+)(.*)")  # what study.json says of a parameter on an axis, and when
PlotSpec = tuple[str, str, Callable[[], "Figure"]]  # a picture's name, why it makes no sense here, and what makes it


def draw(sweep: Sweep, folder: Path) -> dict[str, str]:
    """Write them into the folder. Returns the name of each and why it is not there: empty where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    with use_off_screen_backend():
        for name, reason, make in (*iter_objective_plots(sweep), *iter_sweep_plots(sweep)):
            file = folder / f"{name}.png"
            try:
                if not reason:
                    save(make(), file)
            except Exception as error:  # whatever a library makes of unusual trials
                log.info("%s could not be drawn", name, exc_info=True)
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if reason:
                file.unlink(missing_ok=True)  # an earlier report's
            reasons[name] = reason
    return reasons


@contextmanager
def use_off_screen_backend() -> Iterator[None]:
    """Optuna draws with pyplot: it leaves no window, no style and no open figure behind."""
    import matplotlib
    from matplotlib import pyplot

    backend, before = matplotlib.get_backend(auto_select=False), set(pyplot.get_fignums())
    with matplotlib.rc_context(), silence_optuna():
        pyplot.switch_backend("agg")
        try:
            yield
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
    if backend:
        pyplot.switch_backend(backend)


@contextmanager
def silence_optuna() -> Iterator[None]:
    """Optuna does not tell of each study that it makes, that its pictures are an experiment, or what the report says itself."""
    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Some regimes|Target and region", UserWarning)  # few trials, or equal values
            yield
    finally:
        optuna.logging.set_verbosity(said)


def save(figure: "Figure", file: Path) -> None:
    """Whole or not at all."""
    draft = file.with_name(f".{file.name}.draft")
    figure.savefig(draft, dpi=110, format="png", bbox_inches="tight")
    draft.replace(file)


def iter_objective_plots(sweep: Sweep) -> Iterator[PlotSpec]:
    """What is about one objective; that of the second has its number in its name."""
    none = "" if sweep.complete else "no trial is complete"
    but = f" but for {sweep.repeat_key}" if sweep.repeat_key in sweep.space else ""
    same = none or ("" if list_varied(sweep) else f"all complete trials have the same parameters{but}")
    for index, objective in enumerate(sweep.objectives):
        number = f"_{index + 1}" if index else ""
        study, shares = to_study(sweep, index), compute_importances(sweep, index)
        plot, names = partial(plot_study, study, objective), list(shares or list_varied(sweep))
        few = same or ("" if len(sweep.complete) > 1 else "one trial alone is complete")
        one = few or ("" if len(names) > 1 else "one parameter alone varies")
        wide, pairs = names[:MAX_PARAMETERS], names[:MAX_CONTOUR_PARAMETERS]
        yield f"history{number}", none, partial(plot, "optimization_history")
        rare = "" if len(sweep.complete) >= MIN_IMPORTANCE_TRIALS else f"{len(sweep.complete)} complete trials do not tell it"
        unknown = one or rare or ("" if shares else "it cannot be told from these values")
        yield f"importance{number}", unknown, partial(plot, "param_importances", names)
        yield f"slice{number}", few, partial(plot, "slice", wide)
        yield f"parallel{number}", few, partial(plot, "parallel_coordinate", wide, (2 + 1.6 * len(wide), 5))
        yield f"contour{number}", one, partial(plot, "contour", pairs, (2.6 * len(pairs) + 1.5, 2.6 * len(pairs)))


def iter_sweep_plots(sweep: Sweep) -> Iterator[PlotSpec]:
    """What is about all objectives, or none."""
    study, count, drawn = to_study(sweep), len(sweep.directions), collect_curves(sweep)
    unfit = "" if sweep.complete else "no trial is complete"
    unfit = unfit if 1 < count < 4 else f"for two or three objectives; this sweep has {count}"
    begun = "" if any(row.started for row in sweep.rows) else "no trial has begun"
    yield "timeline", begun, partial(plot_study, study, "", "timeline")
    yield "pareto", unfit, partial(plot_study, study, "", "pareto_front", sweep.objectives)
    yield "curves", "" if drawn else "no run has logged what judges it", partial(plot_learning_curves, sweep, drawn)


def plot_study(
    study: Study, objective: str, kind: str, names: Sequence[str] = (), size: tuple[float, float] = (7, 4.2)
) -> "Figure":
    """Optuna's picture of this kind, in a size that can be read."""
    import matplotlib
    from matplotlib import colors, patheffects, pyplot
    from optuna.visualization import matplotlib as pictures

    settings: dict[str, Any] = {"target_names" if kind == "pareto_front" else "params": list(names)} if names else {}
    settings |= {"target_name": objective} if objective else {}
    crowded = kind in ("slice", "contour")
    with matplotlib.rc_context({"figure.figsize": size, "figure.constrained_layout.use": crowded}):
        getattr(pictures, f"plot_{kind}")(study, **settings)
        figure = pyplot.gcf()
    for place in ("left", "center"):
        figure.axes[0].set_title("", loc=place)
    figure.suptitle(f"{kind.replace('_', ' ')} {objective}", fontsize=11)
    if kind == "parallel_coordinate":  # its labels stand upon its lines
        for lines in figure.axes[0].collections:  # and the pale end of its colours cannot be told from paper
            lines.set_cmap(colors.ListedColormap([c for c in map(lines.get_cmap(), range(256)) if min(c[:3]) < PALE_LIMIT]))
        for label in (label for axis in figure.axes for label in axis.get_yticklabels()):
            label.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
    return figure


def list_varied(sweep: Sweep) -> list[str]:
    """Parameters that are not the same in all complete trials; the repeated key, as seed, is none."""
    keys = [key for key in sweep.space if key != sweep.repeat_key]
    return [key for key in keys if len({row.params.get(key) for row in sweep.complete}) > 1]


def compute_importances(sweep: Sweep, index: int = 0) -> dict[str, float]:
    """How much of an objective each parameter explains, by PED-ANOVA, the most first; nothing where that makes no sense."""
    values = [row.values[index] for row in sweep.complete]
    if len(list_varied(sweep)) < 2 or len(values) < MIN_IMPORTANCE_TRIALS or len(set(values)) < 2:
        return {}
    with silence_optuna():
        try:
            found = optuna.importance.get_param_importances(to_study(sweep, index), params=list_varied(sweep))
        except (ValueError, RuntimeError) as error:
            log.info("no importance: %s", error)
            return {}
    return found if all(map(math.isfinite, found.values())) else {}


# The trials as Optuna's pictures take them.


def to_study(sweep: Sweep, index: int | None = None) -> Study:
    """Trial n is row n, and one that has none is waiting. With an index it has this objective alone."""
    ways = sweep.directions if index is None else sweep.directions[index : index + 1]
    rows = {row.number: row for row in sweep.rows}
    seen = {key: list(dict.fromkeys(row.params[key] for row in sweep.rows if key in row.params)) for key in sweep.space}
    kinds = {key: infer_distribution(sweep.space[key], texts) for key, texts in seen.items() if texts}
    with silence_optuna():
        study = optuna.create_study(study_name=sweep.name, directions=ways)
        for number in range(max(rows, default=-1) + 1):
            study.add_trial(to_frozen_trial(rows.get(number), kinds, index))
    return study


def to_frozen_trial(row: Row | None, kinds: Mapping[str, BaseDistribution], index: int | None) -> FrozenTrial:
    """A row as Optuna has it; a choice is known by its text, so that none is taken for another."""
    if row is None or row.state not in TrialState.__members__:
        return create_trial(state=TrialState.WAITING)
    mine = {key: kinds[key] for key in row.params}
    params = {k: t if isinstance(mine[k], CategoricalDistribution) else parse_value(t) for k, t in row.params.items()}
    values = [*row.values] if index is None else [row.values[index]] if row.values else None
    found = create_trial(
        state=TrialState[row.state],
        values=values or None,
        params=params,
        distributions=mine,
        constraints=dict(row.limits) or None,
    )
    found.datetime_start = row.started
    found.datetime_complete = row.started + timedelta(seconds=row.seconds) if row.started and row.seconds is not None else None
    return found


def infer_distribution(description: str, texts: Sequence[str]) -> BaseDistribution:
    """Of a parameter that took these values: numbers are on an axis, by decades where the space or their span says so."""
    numbers = [
        v for v in map(parse_value, texts) if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    ]
    if len(numbers) < len(texts):
        return CategoricalDistribution(list(texts))
    said, _ = parse_bounds(description)
    ends = [float(said[end]) for end in ("low", "high") if end in said]
    low, high = min([*numbers, *ends]), max([*numbers, *ends])
    log_scale = low > 0 and ("log" in said if ends else high >= 10 * low)
    if all(isinstance(value, int) for value in numbers):
        return IntDistribution(int(low), int(high), log=log_scale)
    return FloatDistribution(float(low), float(high), log=log_scale)


def parse_bounds(description: str) -> tuple[dict[str, str], str]:
    """What study.json says of an interval or a range, key by key, and when the parameter is there; nothing of choices."""
    found = BOUNDS.fullmatch(description)
    return (dict(word.split("=") for word in found[1].split()), found[2]) if found else ({}, "")


# Learning curves.


def group_configurations(sweep: Sweep) -> list[list[Row]]:
    """Trials that differ in nothing but the repeated key, as seed; the best come first, then those that are not complete."""
    found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in (*sweep.rank_rows(), *(row for row in sweep.rows if row.state != "COMPLETE")):
        found.setdefault(get_setting(row, sweep.repeat_key), []).append(row)
    return list(found.values())


def collect_curves(sweep: Sweep) -> list[tuple[list[Row], list[Curve]]]:
    """Configurations whose runs have learning curves, and these."""
    drawn: list[tuple[list[Row], list[Curve]]] = []
    for rows in group_configurations(sweep):
        if curves := [curve for row in rows for curve in sweep.load_curves(row)]:
            drawn.append((rows, curves))
        if len(drawn) == MAX_CURVES:
            break
    return drawn


def plot_learning_curves(sweep: Sweep, groups: Sequence[tuple[list[Row], list[Curve]]]) -> "Figure":
    """What judges a run against the step: a line a configuration, over its repeats with their interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for place, (rows, curves) in reversed(list(enumerate(groups))):  # the best one is drawn last
        color = f"C{place}" if len(groups) <= MAX_NAMED_CURVES else "tab:blue" if place == 0 else "0.75"
        label = format_label(rows) if place == 0 or len(groups) <= MAX_NAMED_CURVES else None
        plot_curve(axis, curves, color, 2.2 if place == 0 else 1.0, label)
    points = [point for _, curves in groups for curve in curves for point in curve]
    longest, low, high = max(step for step, _ in points), min(value for _, value in points), max(value for _, value in points)
    axis.set(xlabel="step", ylabel=sweep.monitor, xscale="log" if longest > 100 else "linear")
    if low < high:  # the intervals of two or three runs may be many times as wide
        axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axis.grid(alpha=0.3)
    axis.legend(*(each[::-1] for each in axis.get_legend_handles_labels()), fontsize=8)
    repeated = any(len(curves) > 1 for _, curves in groups)
    how = ": mean and 95 % t interval over repeats" if repeated else ""
    figure.suptitle(f"{sweep.monitor} of {len(groups)} configurations{how}, the best one bold", fontsize=10)
    return figure


def format_label(rows: Sequence[Row]) -> str:
    """The parameters that these trials have in common."""
    same = [
        f"{key}={format_number(text)}"
        for key, text in rows[0].params.items()
        if all(row.params.get(key) == text for row in rows)
    ]
    told = " ".join(same) or f"trial {rows[0].number}"
    return told if len(told) < 80 else f"trial {rows[0].number}: {told[:60]} ..."


def format_number(value: float | str) -> str:
    """A number in six digits; other texts as they are."""
    known = parse_value(value) if isinstance(value, str) else value
    return f"{known:.6g}" if isinstance(known, float) else str(value)


def plot_curve(axis: "Axes", curves: Sequence[Curve], color: str, width: float, label: str | None) -> None:
    """One curve, or the mean of several at the steps that all of them have, with its interval."""
    tables = [dict(curve) for curve in curves]
    steps = sorted(set(tables[0]).intersection(*tables[1:]))
    spread = [confidence_interval([table[step] for table in tables]) for step in steps]
    means = [mean for mean, _ in spread]
    axis.plot(steps, means, color=color, linewidth=width, label=label, marker="o" if len(steps) == 1 else None)
    if len(curves) > 1:
        low, high = [mean - half for mean, half in spread], [mean + half for mean, half in spread]
        axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
