"""The report of one run: what it reached, its curves, what was requested, where it ran, and how to go on with it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from research.cli import first_line, format_count, format_duration
from research.composition.overrides import format_command, to_argument
from research.composition.recorded import list_differences, load_config
from research.contracts import contract
from research.files.locks import is_locked
from research.options.trigger import higher_is_better, read_directions
from research.preflight.check import find_defaults
from research.report.blocks import Block, Code, Heading, Items, Listing, Picture, Table, write
from research.report.page import embed_figure, embed_file, render_page
from research.report.results import format_number
from research.report.style import (
    BLUE,
    GRAY,
    ORANGE,
    is_drawable,
    keep_drawable,
    make_figure,
    set_step_scale,
    set_value_scale,
    shorten,
)
from research.report.target import Curve
from research.run_dir import OUTER_KEYS, Summary, read_json, read_summary, read_text
from research.tracking.history import METRICS_FILE, read_records

MAX_PANELS, MAX_POINTS, MAX_ROWS = 12, 400, 80  # of curves; of a line; of a table
LAST_GROUPS = ("lr", "grad", "perf")  # curves that come after those of the results


@contract
def build_run_page(folder: Path) -> str:
    """Return the page of a run."""
    curves = read_curves(folder)
    summary = read_summary(folder) or describe_unfinished(folder, curves)
    environment = read_json(folder / "env.json")
    overrides = [line for line in str(environment.get("overrides") or read_lines(folder)).split("\n") if line]
    drawable = {name: points for name, curve in curves.items() if (points := keep_drawable(curve))}
    groups = group_curves(drawable, summary)
    figures = {f"curves of {name}": draw_panel(name, group, summary) for name, group in groups.items()}
    pictures = {name: embed_figure(figure, name) for name, figure in figures.items()}
    drawn = [file for file in sorted(folder.glob("plots/*.png")) if file.stem != "curves" and not file.is_symlink()]
    pictures |= {file.stem: embed_file(file) for file in drawn}
    blocks: list[Block] = [Heading(f"{folder.parent.name}/{folder.name}", 1), write(describe_end(summary))]
    blocks += [Table(("", ""), [*list_facts(summary, folder), *describe_code(environment, folder)])]
    blocks += (
        [Heading("Curves"), *map(Picture, figures), Heading("Metrics")] if figures else [write("It has logged no metrics.")]
    )
    blocks += list_metrics(summary, curves, read_directions(load_config(folder)[0])) if figures else []
    blocks += [Heading("More pictures"), *(Picture(file.stem) for file in drawn)] if drawn else []
    blocks += [
        Heading("Settings"),
        *list_settings(folder, overrides),
        Heading("Again"),
        *list_commands(folder, summary, overrides),
    ]
    blocks += [Heading("Environment"), Table(("", ""), list_environment(environment))]
    return render_page(f"{folder.name} {summary.monitor} {summary.status}", blocks, pictures)


def describe_unfinished(folder: Path, curves: Mapping[str, Curve]) -> Summary:
    """Return what is known of a run without a summary: it is under way, or was killed, or its summary is damaged."""
    steps = max((step for curve in curves.values() for step in curve), default=0)
    status = "RUNNING" if is_locked(folder) else "INTERRUPTED"
    monitor = load_config(folder)[0].get("monitor")
    return Summary(status, monitor=monitor if isinstance(monitor, str) else "", steps=steps)


@contract
def read_lines(folder: Path) -> str:
    """Return the overrides of a run, a line each; nothing where the file is not there."""
    try:
        return read_text(folder / "overrides.txt", "replace")
    except OSError:
        return ""


@contract
def read_curves(folder: Path) -> dict[str, Curve]:
    """Return each metric of a run by step."""
    curves: dict[str, Curve] = {}
    for record in read_records(folder / METRICS_FILE):
        for name, value in record.items():
            if name not in ("step", "seconds") and isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, {})[record["step"]] = float(value)
    return curves


def group_curves(curves: Mapping[str, Curve], summary: Summary) -> dict[str, dict[str, Curve]]:
    """Return the curves that are drawn, those of one quantity, as train/loss and val/loss, together; the monitor's first."""
    groups: dict[str, dict[str, Curve]] = {}
    for name in curves:
        split, _, quantity = name.partition("/")
        groups.setdefault(quantity if split in ("train", "val") else name, {})[name] = curves[name]
    monitored = summary.monitor.partition("/")[2]

    def rank(name: str) -> tuple[bool, bool, bool]:
        return name != monitored, name != "loss", name.partition("/")[0] in LAST_GROUPS

    return {name: groups[name] for name in sorted(groups, key=rank)[:MAX_PANELS]}


def draw_panel(name: str, curves: Mapping[str, Curve], summary: Summary) -> Figure:
    """Return the curves of one quantity against the step, with the best evaluation and what a trivial predictor reaches."""
    figure, (axis,) = make_figure(4.6, 2.9, "")
    colors = {label: GRAY if label.startswith("train/") and len(curves) > 1 else BLUE for label in curves}
    for label, curve in curves.items():
        steps, values = thin_out(curve)
        axis.plot(steps, values, color=colors[label], label=shorten(label, 40), marker="o" if len(steps) == 1 else None)
    step = summary.best.get("step")
    if summary.monitor in curves and step is not None and (value := curves[summary.monitor].get(int(step))) is not None:
        axis.plot([step], [value], "o", color=ORANGE, label=f"best, at step {step:.0f}", zorder=4)
    for label, value in summary.baseline.items():
        if label.split()[0] in curves and is_drawable(value):
            axis.axhline(value, color="tab:red", linestyle=":", linewidth=1, label=f"baseline {shorten(label.split()[-1], 20)}")
    set_step_scale(axis, max(max(curve) for curve in curves.values()))
    set_value_scale(axis, name, [value for curve in curves.values() for value in curve.values()])
    axis.legend(fontsize=7)
    return figure


@contract
def thin_out(curve: Curve) -> tuple[list[int], list[float]]:
    """Return the points of a curve; of a long one the lowest and the highest of each stretch, so that no peak is lost."""
    points = sorted(curve.items())
    size = -(-2 * len(points) // MAX_POINTS) if len(points) > MAX_POINTS else 1
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    kept = {point for chunk in chunks for point in (min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1]))}
    ordered = sorted({points[0], *kept, points[-1]})
    return [step for step, _ in ordered], [value for _, value in ordered]


@contract
def describe_end(summary: Summary) -> str:
    """Return in a sentence how the run ended and what it reached."""
    reason = f" ({summary.stop or summary.error})" if summary.stop or summary.error else ""
    best = f"; best {summary.monitor} {format_number(summary.value)}" if summary.value is not None else ""
    at = f" at step {summary.best['step']:.0f}" if best and summary.best.get("step") is not None else ""
    return f"{summary.status.capitalize()} after {format_count(summary.steps, 'step')}{reason}{best}{at}."


def list_facts(summary: Summary, folder: Path) -> list[tuple[str, str]]:
    """Return what the run was and what it took."""
    quantized = f", {summary.quantized_params:,} of them quantized" if summary.quantized_params else ""
    speeds = {"tokens": summary.tokens_per_s, "samples": summary.samples_per_s}
    speed = next((f", {value:,.0f} {unit}/s" for unit, value in speeds.items() if value), "")
    facts = [
        ("parameters", f"{summary.params:,}{quantized}" if summary.params else ""),
        ("data", summary.data),
        *(("", note) for note in summary.notes),
        ("shape of the data", ", ".join(f"{name} {size}" for name, size in summary.shape.items())),
        ("training", format_duration(summary.train_s) + speed if summary.train_s else ""),
        ("in all", format_duration(summary.wall_s) if summary.wall_s else ""),
        ("peak memory", f"{summary.peak_rss_mb:,.0f} MB" if summary.peak_rss_mb else ""),
        ("rollbacks", str(summary.rollbacks or "")),
        ("weights, sha256", summary.weights_sha256 or ""),
        ("run in MLflow", summary.mlflow_run_id or ""),
        ("folder", str(folder)),
    ]
    return [fact for fact in facts if fact[1]]


def describe_code(environment: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Return the commit that the run rests on, and whether something was not committed."""
    git = environment.get("git")
    if not isinstance(git, dict) or not git.get("sha"):
        return []
    what = "changes (git.diff)" if (folder / "git.diff").exists() else "new files"
    return [("code", f"commit {str(git['sha'])[:12]}" + (f", and {what} that were not committed" if git.get("dirty") else ""))]


@contract
def list_metrics(summary: Summary, curves: Mapping[str, Curve], directions: Mapping[str, bool]) -> Iterator[Block]:
    """Yield the table of metrics: at the best evaluation, at the end, and the best value of each with its step."""
    step = summary.best.get("step")
    head = (
        "metric",
        f"at step {step:.0f}, the best" if step is not None else "at the best step",
        "last",
        "its own best",
        "at step",
    )
    rows: list[Sequence[Any]] = []
    for name in [name for name in {**summary.metrics, **curves} if name != "step"]:
        finite = {at: value for at, value in curves.get(name, {}).items() if math.isfinite(value)}
        has_aim = name.startswith(("train/", "val/")) and finite
        own = (max if higher_is_better(name, directions) else min)(finite, key=finite.__getitem__) if has_aim else None
        values = [summary.best.get(name), summary.metrics.get(name, finite.get(max(finite, default=0)))]
        cells = ["" if value is None else format_number(float(value)) for value in values]
        rows.append((name, *cells, *((format_number(finite[own]), own) if own is not None else ("", ""))))
    rows.sort(key=lambda row: (row[0] != summary.monitor, not row[0].startswith("val/"), not row[0].startswith("train/")))
    yield Table(head, rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        yield write(f"{len(rows) - MAX_ROWS} more metrics are in ", Code(METRICS_FILE), ".")
    if summary.baseline:
        yield Items([f"baseline {name}: {format_number(float(value))}" for name, value in summary.baseline.items()])


@contract
def list_settings(folder: Path, overrides: Sequence[str]) -> Iterator[Block]:
    """Yield what the command line changed, and each setting that differs from the defaults of the chosen options."""
    yield write("The command line set: ", Code(" ".join(overrides))) if overrides else write("The command line set nothing.")
    config, damage = load_config(folder)
    if damage:
        yield write(damage[0].upper() + damage[1:] + ".")
    try:
        chosen, defaults = find_defaults(list(overrides))
        yield write("Settings that differ from the defaults of ", Code(" ".join(chosen)) if chosen else "this version", ":")
    except ValueError as error:  # options of one's own, in another folder
        defaults = {}
        yield write(f"The defaults are not known here: {first_line(error)}. These are all settings:")
    differences = list_differences(config, defaults, (*OUTER_KEYS, "hydra"))
    rows = [(key, now, then) for key, now, then in differences]
    yield Table(("setting", "this run", "default"), rows[:MAX_ROWS]) if rows else write("None.")
    if len(rows) > MAX_ROWS:
        yield write(f"{len(rows) - MAX_ROWS} more are in ", Code("config.yaml"), ".")


def list_commands(folder: Path, summary: Summary, overrides: Sequence[str]) -> Iterator[Block]:
    """Yield the lines that repeat the run, and that go on with it."""
    git = read_json(folder / "env.json").get("git")
    lines = []
    if isinstance(git, dict) and git.get("sha"):
        lines = [f"git checkout {git['sha']}"]
        lines += [f"git apply {folder / 'git.diff'}"] if git.get("dirty") and (folder / "git.diff").exists() else []
    yield write("To repeat it:")
    yield Listing("\n".join([*lines, format_command(overrides)]))
    yield write("To go on with it, to the steps that were asked for; give more by ", Code("steps=N"), ":")
    yield Listing(f"{format_command(overrides)} {to_argument('resume', str(folder))}")


@contract
def list_environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return env.json as rows: the machine, the packages, git."""
    rows: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, dict):
            rows += [(f"{key} {name}", str(inner)) for name, inner in value.items()]
        elif key != "overrides":
            rows.append((key, " ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return [(key, value) for key, value in rows if value] or [("env.json", "is not there")]
