"""The look of the report's pictures: figures, axes of parameters and of trials, and labels that do not overlap."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from optuna.distributions import FloatDistribution, IntDistribution

from research.cli import UNPRINTABLE
from research.contracts import contract
from research.report.results import Sweep, parse_number
from research.report.study import infer_distribution, parse_bounds

GRAY, BLUE, ORANGE, RED = "tab:gray", "tab:blue", "tab:orange", "tab:red"  # also of the figures of experiments/
SHADES = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0.3, 1.0, 256)))  # worst to best: none is white on white
MAX_TICK_TEXT, MAX_NAME_TEXT = 16, 22  # characters of a category, and of a line of a parameter's name
MAX_FIXED_TICKS, MAX_TICKS = 6, 5  # values that were chosen from, each with its own tick; ticks of an interval
STEPS = (1, 2, 5, 10)  # between two ticks, times a power of ten
LARGEST = 1e100  # larger numbers are drawn as those that are not finite: an axis is wider than its values
WIDE_RANGE = 100.0  # objective values whose largest is so many times the smallest have a logarithmic axis
LONG_RUN = 100  # steps
MISSING = "not set"  # the category of trials without the parameter


@contract
@dataclass(frozen=True)
class Scale:
    """How a parameter lies along an axis: as categories, or as numbers."""

    key: str
    is_log: bool = False
    is_whole: bool = False
    categories: tuple[str, ...] = ()  # in their order; empty: numbers
    ticks: tuple[float, ...] = ()  # the few numbers that there were to choose from
    low: float = 0.0
    high: float = 1.0

    def to_number(self, text: str | None) -> float | None:
        """Return where a value lies: a category by its index. None for a value that the trial has not."""
        if self.categories:
            return float(self.categories.index(text)) if text in self.categories else None
        number = None if text is None else parse_number(text)
        return float(number) if number is not None and is_drawable(number) else None

    def to_fraction(self, number: float) -> float:
        """Return a number's share of the way along the axis, 0 to 1."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, number))
        return 0.5 if low == high else (value - low) / (high - low)

    def list_ticks(self) -> list[tuple[float, str]]:
        """Return the numbers along the axis that have a label."""
        if self.categories:
            return [(float(index), text) for index, text in enumerate(shorten_all(self.categories))]
        if self.ticks:
            return [(number, f"{number:g}") for number in self.ticks]
        numbers = [float(x) for x in self._make_locator().tick_values(self.low, self.high)]
        return [(number, f"{number:g}") for number in numbers if self.low <= number <= self.high] or [
            (number, f"{number:.3g}") for number in dict.fromkeys((self.low, self.high))
        ]

    def _make_locator(self) -> Locator:
        if self.is_log:
            decades = math.log10(self.high / self.low)
            return LogLocator(
                subs=(1.0,) if decades > 2 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0), numticks=MAX_TICKS
            )
        return MaxNLocator(MAX_TICKS, steps=STEPS, integer=self.is_whole, min_n_ticks=1)

    def apply(self, axes: Axes, which: str) -> None:
        """Give the x or the y axis this scale, its ticks and its name."""
        axis: Axis = axes.xaxis if which == "x" else axes.yaxis
        set_scale = axes.set_xscale if which == "x" else axes.set_yscale
        set_limits = axes.set_xlim if which == "x" else axes.set_ylim
        axis.set_label_text(wrap_name(self.key), fontsize=9)
        if self.is_log:
            set_scale("log")
        numbers = [number for number, _ in self.list_ticks()]
        names = dict(self.list_ticks())
        axis.set_major_locator(FixedLocator(numbers) if self.categories or self.ticks else self._make_locator())
        axis.set_major_formatter(FuncFormatter(lambda number, _: names.get(number, f"{number:g}")))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        margin = 0.08
        if self.categories:
            set_limits(-0.5, len(self.categories) - 0.5)
        elif self.is_log:
            span = (self.high / self.low) ** margin if self.high > self.low else 2.0
            set_limits(self.low / span, self.high * span)
        else:
            span = margin * (self.high - self.low) or 0.5
            set_limits(self.low - span, self.high + span)


@contract
def make_scale(sweep: Sweep, key: str) -> Scale:
    """Return the scale of a parameter: logarithmic where the space is, whole numbers as such, words as categories."""
    texts = list(dict.fromkeys(row.params[key] for row in sweep.rows if key in row.params))
    distribution = infer_distribution(sweep.space[key], texts)
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return Scale(key, categories=tuple(texts))
    has_bounds = bool(parse_bounds(sweep.space[key])[0])
    numbers = sorted({float(number) for text in texts if (number := parse_number(text)) is not None})
    ticks = tuple(numbers) if not has_bounds and len(numbers) <= MAX_FIXED_TICKS else ()
    is_whole = isinstance(distribution, IntDistribution)
    return Scale(key, bool(distribution.log), is_whole, (), ticks, float(distribution.low), float(distribution.high))


@contract
def make_figure(width: float, height: float, title: str, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of a size in inches, and its axes row by row, in the style of all our figures."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fill(title, int(14 * width)), fontsize=10)
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
    return figure, axes


@contract
def number_trials(axis: Axis) -> None:
    """Let an axis count trials: whole numbers only."""
    axis.set_major_locator(MaxNLocator(10, steps=STEPS, integer=True, min_n_ticks=1))
    axis.set_label_text("trial", fontsize=9)


@contract
def is_drawable(value: float) -> bool:
    """Return whether a value has a place along an axis."""
    return abs(value) <= LARGEST


@contract
def keep_drawable(curve: Mapping[int, float]) -> dict[int, float]:
    """Return the points of a curve that have a place along an axis."""
    return {step: value for step, value in curve.items() if is_drawable(value)}


@contract
def set_step_scale(axes: Axes, last: int) -> None:
    """Let the x axis count steps up to the last one: whole numbers, of a long run logarithmic."""
    if last > LONG_RUN:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, steps=STEPS, integer=True, min_n_ticks=1))
    axes.set_xlabel("step", fontsize=9)


@contract
def spans_decades(values: Collection[float]) -> bool:
    """Return whether values are to be drawn on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > WIDE_RANGE * min(values)


@contract
def set_value_scale(axes: Axes, name: str, values: Iterable[float], which: str = "y") -> None:
    """Name the axis of an objective; make it logarithmic where its values span decades, as losses that diverge do."""
    is_wide = spans_decades([value for value in values if is_drawable(value)])
    axis, set_scale = (axes.xaxis, axes.set_xscale) if which == "x" else (axes.yaxis, axes.set_yscale)
    axis.set_label_text(wrap_name(name), fontsize=9)
    if is_wide:
        set_scale("log")
        axis.set_major_locator(LogLocator(numticks=MAX_TICKS))
        axis.set_minor_formatter(NullFormatter())


@contract
def add_legend(figure: Figure, columns: int = 3) -> None:
    """Explain what is drawn, once and below it, where it hides nothing."""
    pairs = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    if handles := {label: handle for handle, label in pairs}:
        figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


@contract
def shorten(text: str, length: int) -> str:
    """Return a text of at most so many characters, its middle left out: names differ at their ends."""
    text = UNPRINTABLE.sub(" ", text).replace("$", r"\$")
    head = (length - 1) // 2
    return text if len(text) <= length else f"{text[:head]}…{text[-(length - 1 - head) :]}"


def shorten_all(texts: Sequence[str]) -> list[str]:
    """Return texts of a tick's length that still differ from each other."""
    short = [shorten(text, MAX_TICK_TEXT) for text in texts]
    return [text if short.count(text) == 1 else f"{index}: {text[-8:]}" for index, text in enumerate(short)]


@contract
def wrap_name(key: str) -> str:
    """Return a parameter's name in lines that fit, broken after dots; at most three, the last ones."""
    lines = [""]
    for part in key.replace("/", "/\0").replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > MAX_NAME_TEXT:
            lines.append("")
        lines[-1] += part
    return "\n".join(shorten(line, MAX_NAME_TEXT) for line in lines[-3:])


@contract
def fit_labels(figure: Figure) -> None:
    """Lay the figure out, and turn or thin out tick labels until none overlaps another. The layout is final then."""
    for _ in range(3):  # turned labels leave less room for others
        figure.draw_without_rendering()
        axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        if not sum(thin_out(axis) for axis in axes):
            break
    else:
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


@contract
def thin_out(axis: Axis) -> int:
    """Turn and leave out labels of an axis until none overlaps another; return how often that was needed."""
    for count in range(8):
        labels = list_labels(axis)
        if not has_overlap(labels):
            return count
        if isinstance(axis, XAxis) and isinstance(axis.get_major_locator(), FixedLocator) and not labels[0].get_rotation():
            axis.set_tick_params(rotation=90)
        else:
            axis.set_major_locator(FixedLocator([float(x) for x in axis.get_majorticklocs()][::2]))
    return count


def list_labels(axis: Axis) -> list[Text]:
    """Return the labels of an axis that can be seen."""
    low, high = sorted(axis.get_view_interval())
    axis.get_ticklabels()  # updates the ticks
    ticks = axis.get_major_ticks(len(axis.get_majorticklocs()))
    pairs = [(tick.label1, tick.get_loc()) for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
    return [label for label, number in pairs if low <= number <= high]


def has_overlap(labels: Sequence[Text]) -> bool:
    """Return whether the boxes of two labels that follow each other touch."""
    boxes: list[Bbox] = [label.get_window_extent() for label in labels]
    return any(first.overlaps(second) for first, second in pairwise(boxes))
