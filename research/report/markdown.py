"""results.md: the report of a sweep for people."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from research.cli import UNPRINTABLE, format_duration
from research.metrics import confidence_interval
from research.report.plots import compute_importances
from research.report.preset import EXCLUDED_KEYS
from research.report.results import Row, Sweep, format_number
from research.report.study import parse_bounds
from research.report.target import Target

MAX_TABLE_ROWS = 10  # trials or configurations


def render_results(sweep: Sweep, reasons: Mapping[str, str], gap_section: Sequence[str], target: Target | None = None) -> str:
    """Return results.md. `reasons` has for each picture why it is not there, or an empty text."""
    aims = ", ".join(f"{direction} {name}" for direction, name in zip(sweep.directions, sweep.objectives, strict=True))
    title = f"# {escape(sweep.name)}: {escape(aims)}"
    parts = [title, describe_ending(sweep), *render_best_trials(sweep, target), *render_means(sweep), *gap_section]
    parts += ["## What was run", describe_space(sweep), *render_failures(sweep), *render_importances(sweep)]
    if reasons:
        parts += ["## Pictures", *(f"![{name}](plots/{name}.png)" for name, reason in reasons.items() if not reason)]
        parts += ["\n".join(f"- no {name}: {escape(reason)}" for name, reason in reasons.items() if reason)]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_ending(sweep: Sweep) -> str:
    """Return how many trials ended in which state, their steps and time, and why there are no more."""
    states = Counter(row.state for row in sweep.rows)
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items())) or "none"
    steps, seconds = sum(row.steps for row in sweep.rows), sum(row.seconds or 0.0 for row in sweep.rows)
    effort = f"{steps:,} steps" + (f" in {format_duration(seconds)} of trials" if seconds else "")
    ended, total = sum(states[state] for state in ("COMPLETE", "PRUNED", "FAIL")), sweep.spec.total
    running = f", {states['RUNNING']} are running or were interrupted" if states["RUNNING"] else ""
    if sweep.stop_reason:
        ending = f"It ended early: {escape(sweep.stop_reason)}."
    elif not total:
        ending = f"How many there were to be is not known{running}."
    elif ended >= total:
        ending = f"All {total} trials have ended."
    else:
        ending = f"{ended} of {total} trials have ended{running}: the same command runs the rest."
    return f"{len(sweep.rows)} trial{'s' * (len(sweep.rows) != 1)}: {counts}; {effort}. {ending}"


def render_best_trials(sweep: Sweep, target: Target | None = None) -> Iterable[str]:
    """Yield the table of the best trials, with their steps to the target beside their value, and how to repeat the best one."""
    if not sweep.best:
        yield "No trial is complete." if not sweep.complete else "No complete trial keeps to the constraints."
        return
    by_mean = f", by the mean over {sweep.spec.repeat_key}" if sweep.spec.repeat_key in sweep.space else ""
    title, rows = ("The best trials", sweep.ranking) if len(sweep.directions) == 1 else ("The Pareto front", sweep.best)
    yield f"## {title}{by_mean}"
    cells: list[list[Any]] = []
    for row in rows[:MAX_TABLE_ROWS]:
        params = map(format_number, row.list_values(sweep.space))
        numbers = [*map(format_number, row.values), *format_steps(row, target), *params]
        cells.append([row.number, *numbers, row.steps, format_duration(row.seconds or 0.0), row.folder, row.note])
    values = *sweep.objectives, *([target.name] if target else [])
    yield render_table(("trial", *values, *sweep.space, "steps", "time", "folder", ""), cells)
    trial = f"trial {sweep.best[0].number}{', the first of the best configuration' if by_mean else ''}"
    yield f"`best.yaml` repeats {trial}: copy it to `conf/experiment/NAME.yaml`, then `python train.py experiment=NAME`."


def format_steps(row: Row, target: Target | None) -> list[str]:
    """Return the cell of a trial's steps to the target; none where there is no target."""
    steps = target and target.steps.get(row.number)
    return [] if target is None else [f"not in {target.longest:,}" if steps is None else f"{steps:,.0f}"]


def render_means(sweep: Sweep) -> Iterable[str]:
    """Yield the table of means over the repeats of each configuration, where there are repeats of one objective."""
    if len(sweep.directions) != 1:
        return
    keys = [key for key in sweep.space if key != sweep.spec.repeat_key]
    means: list[tuple[float, list[Any]]] = []  # with the cells of their lines
    for rows in sweep.configurations:
        values = [value for row in rows if row.values for value in row.repeats or row.values]
        if len(values) > 1:
            mean, half_width = confidence_interval(values)
            cells = [*map(format_number, (*rows[0].list_values(keys), mean)), f"± {half_width:.2g}", len(values)]
            means.append((mean, cells))
    means.sort(key=itemgetter(0), reverse=sweep.directions[0] == "maximize")
    if means:
        yield f"## Means over {sweep.spec.repeat_key}, with their 95 % t intervals"
        yield render_table((*keys, sweep.objectives[0], "", "runs"), [cells for _, cells in means[:MAX_TABLE_ROWS]])


def render_failures(sweep: Sweep) -> Iterable[str]:
    failed = [
        f"- trial {row.number}: {escape(row.error.splitlines()[0])}" for row in sweep.rows if row.state == "FAIL" and row.error
    ]
    if failed:
        yield "## Failed"
        more = [f"- and {len(failed) - MAX_TABLE_ROWS} more"] if len(failed) > MAX_TABLE_ROWS else []
        yield "\n".join(failed[:MAX_TABLE_ROWS] + more)


def render_importances(sweep: Sweep) -> Iterable[str]:
    for index, name in enumerate(sweep.objectives):
        if shares := compute_importances(sweep, index):
            yield f"## What {escape(name)} depends on"
            yield "Shares of its variation, by PED-ANOVA; rough for few trials, or a parameter that few of them have."
            yield render_table(("parameter", "share"), [(key, f"{share:.2f}") for key, share in shares.items()])


def describe_space(sweep: Sweep) -> str:
    """Return the table of what was swept, and a line with what was fixed."""
    fixed = [line for line in sweep.spec.fixed or [] if line.partition("=")[0] not in EXCLUDED_KEYS]
    ranges = [(key, format_range(text)) for key, text in sweep.space.items()]
    return render_table(("parameter", "values"), ranges) + (f"\n\nFixed: {format_code(' '.join(fixed))}" if fixed else "")


def format_range(text: str) -> str:
    """Return for people the values that a parameter could take, from those of study.json."""
    bounds, condition = parse_bounds(text)
    if not bounds:
        return text or "suggested by a function"
    step = f", in steps of {bounds['step']}" if "step" in bounds else ""
    return f"{bounds['low']} .. {bounds['high']}{step}{', logarithmic' * ('log' in bounds)} {condition}".rstrip()


def render_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)


def escape(value: object) -> str:
    """Return a value as Markdown that shows it: on one line, without HTML, links or the end of a cell."""
    text = html.escape(UNPRINTABLE.sub(" ", str(value)), quote=False)
    return text.replace("|", "\\|").replace("](", "]\\(")


def format_code(text: str) -> str:
    """Return a code span, whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " * (len(fence) > 1)
    return f"{fence}{padding}{UNPRINTABLE.sub(' ', text)}{padding}{fence}"
