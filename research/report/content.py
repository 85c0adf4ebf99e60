"""What the report of a sweep says, in the order in which people read it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from research.cli import format_count, format_duration
from research.contracts import contract
from research.metrics import confidence_interval
from research.report.blocks import Block, Code, Heading, Items, Picture, Table, write
from research.report.plots import compute_importances
from research.report.preset import EXCLUDED_KEYS, format_preset_command
from research.report.results import Row, Sweep, format_number
from research.report.study import parse_bounds
from research.report.target import Target

MAX_TABLE_ROWS = 10  # trials or configurations


@contract
def build_blocks(
    sweep: Sweep,
    reasons: Mapping[str, str],
    gap_section: Sequence[Block],
    target: Target | None = None,
    max_rows: int = MAX_TABLE_ROWS,
) -> Iterator[Block]:
    """Yield the report. `reasons` has for each picture why it is not there, or an empty text."""
    aims = ", ".join(f"{direction} {name}" for direction, name in zip(sweep.directions, sweep.objectives, strict=True))
    yield Heading(f"{sweep.name}: {aims}", 1)
    yield write(describe_ending(sweep))
    yield from list_best_trials(sweep, target, max_rows)
    yield from list_means(sweep, max_rows)
    yield from gap_section
    yield Heading("What was run")
    yield from describe_space(sweep)
    yield from list_failures(sweep, max_rows)
    yield from list_importances(sweep)
    if reasons:
        yield Heading("Pictures")
        yield from (Picture(name) for name, reason in reasons.items() if not reason)
        if missing := [f"no {name}: {reason}" for name, reason in reasons.items() if reason]:
            yield Items(missing)


def describe_ending(sweep: Sweep) -> str:
    """Return how many trials ended in which state, their steps and time, and why there are no more."""
    states = Counter(row.state for row in sweep.rows)
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items())) or "none"
    steps, seconds = sum(row.steps for row in sweep.rows), sum(row.seconds or 0.0 for row in sweep.rows)
    effort = format_count(steps, "step") + (f" in {format_duration(seconds)} of trials" if seconds else "")
    ended, total = sum(states[state] for state in ("COMPLETE", "PRUNED", "FAIL")), sweep.spec.total
    running = f", {states['RUNNING']} under way or interrupted" if states["RUNNING"] else ""
    if sweep.stop_reason:
        ending = f"It ended early: {sweep.stop_reason}."
    elif not total:
        ending = f"How many there were to be is not known{running}."
    elif ended >= total:
        ending = f"All {total} trials have ended." if total > 1 else "The only trial has ended."
    else:
        ending = f"{ended} of {total} trials have ended{running}: the same command runs the rest."
    return f"{format_count(len(sweep.rows), 'trial')}: {counts}; {effort}. {ending}"


def list_best_trials(sweep: Sweep, target: Target | None, max_rows: int) -> Iterator[Block]:
    """Yield the table of the best trials, with their steps to the target beside their value, and how to repeat the best one."""
    if not sweep.best:
        yield write("No trial is complete." if not sweep.complete else "No complete trial keeps to the constraints.")
        return
    by_mean = f", by the mean over {sweep.spec.repeat_key}" if sweep.spec.repeat_key in sweep.space else ""
    title, rows = ("The best trials", sweep.ranking) if len(sweep.directions) == 1 else ("The Pareto front", sweep.best)
    yield Heading(f"{title}{by_mean}")
    cells: list[list[Any]] = []
    for row in rows[:max_rows]:
        params = map(format_number, row.list_values(sweep.space))
        numbers = [*map(format_number, row.values), *format_steps(row, target), *params]
        cells.append([row.number, *numbers, row.steps, format_duration(row.seconds or 0.0), row.folder, row.note])
    values = *sweep.objectives, *([target.name] if target else [])
    yield Table(("trial", *values, *sweep.space, "steps", "time", "folder", ""), cells)
    trial = f"trial {sweep.best[0].number}{', the first of the best configuration' if by_mean else ''}"
    copy, then = Code("conf/experiment/NAME.yaml"), Code(format_preset_command())
    yield write(Code("best.yaml"), f" repeats {trial}: copy it to ", copy, ", then ", then, ".")


@contract
def format_steps(row: Row, target: Target | None) -> list[str]:
    """Return the cell of a trial's steps to the target; none where there is no target."""
    steps = target and target.steps.get(row.number)
    return [] if target is None else [f"not in {target.longest:,}" if steps is None else f"{steps:,.0f}"]


def list_means(sweep: Sweep, max_rows: int) -> Iterator[Block]:
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
        yield Heading(f"Means over {sweep.spec.repeat_key}, with their 95 % t intervals")
        yield Table((*keys, sweep.objectives[0], "", "runs"), [cells for _, cells in means[:max_rows]])


def list_failures(sweep: Sweep, max_rows: int) -> Iterator[Block]:
    """Yield the errors of the trials that failed, if there are any."""
    failed = [f"trial {row.number}: {row.error.splitlines()[0]}" for row in sweep.rows if row.state == "FAIL" and row.error]
    if failed:
        yield Heading("Failed")
        more = [f"and {len(failed) - max_rows} more"] if len(failed) > max_rows else []
        yield Items(failed[:max_rows] + more)


def list_importances(sweep: Sweep) -> Iterator[Block]:
    """Yield for each objective a table of the parameters' shares, where they can be told."""
    for index, name in enumerate(sweep.objectives):
        if shares := compute_importances(sweep, index):
            yield Heading(f"What {name} depends on")
            yield write("Shares of its variation, by PED-ANOVA; rough for few trials, or a parameter that few of them have.")
            yield Table(("parameter", "share"), [(key, f"{share:.2f}") for key, share in shares.items()])


@contract
def describe_space(sweep: Sweep) -> Iterator[Block]:
    """Yield the table of what was swept, and a line with what was fixed."""
    fixed = [line for line in sweep.spec.fixed or [] if line.partition("=")[0] not in EXCLUDED_KEYS]
    ranges = [(key, format_range(text)) for key, text in sweep.space.items()]
    yield Table(("parameter", "values"), ranges)
    if fixed:
        yield write("Fixed: ", Code(" ".join(fixed)))


def format_range(text: str) -> str:
    """Return for people the values that a parameter could take, from those of study.json."""
    bounds, condition = parse_bounds(text)
    if not bounds:
        return text or "suggested by a function"
    step = f", in steps of {bounds['step']}" if "step" in bounds else ""
    return f"{bounds['low']} .. {bounds['high']}{step}{', logarithmic' * ('log' in bounds)} {condition}".rstrip()
