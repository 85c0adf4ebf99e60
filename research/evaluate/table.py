"""Results as a table for people, and as JSON for programs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research.cli import format_count
from research.contracts import contract
from research.evaluate.compare import BuiltTask, Result
from research.evaluate.intervals import Estimate
from research.run_dir import replace_nonfinite

VERSION = 1
Estimates = Mapping[str, Estimate]
METHODS = {
    "interval": "95 % t interval of the mean over parts; losses, accuracies and bits as ratios of sums (Cochran 1977), other "
    "metrics by the delete-a-group jackknife (Kott 2001)",
    "difference": "to the first run, paired over the same parts (Miller 2024, arXiv 2411.00640)",
}


@contract
def rename(metric: str, split: str) -> str:
    """Return a metric under the name of its split: test/loss."""
    return metric.replace("val/", f"{split}/", 1)


@contract
def to_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return all results as plain values. Keys are only ever added; numbers that JSON has not are null."""
    runs = [replace_nonfinite(describe_result(result)) for result in results]
    return {"version": VERSION, "first": results[0].name, "method": METHODS, "runs": runs}


def describe_result(result: Result) -> dict[str, Any]:
    """Return one result as plain values."""
    built, loaded, measured = result.built, result.loaded, result.measurement
    recorded = result.ref.recorded
    data = {
        "source": built.data.source,
        "digest": built.data.digest,
        "own": built.task.is_own,
        "split": built.split_name,
        "samples": len(built.split),
        "targets": measured.num_targets,
        "bytes": measured.num_bytes,
        "parts": int(built.parts.max()) + 1,
        "part": built.unit,
    }
    return {
        "run": result.name,
        "path": str(result.ref.path),
        "form": loaded.label,
        "checkpoint": loaded.checkpoint or None,
        "step": loaded.step,
        "seed": recorded.get("seed"),
        "data": data,
        "metrics": {rename(key, built.split_name): describe_estimate(value) for key, value in result.metrics.items()},
        "differences": {
            rename(key, built.split_name): describe_estimate(value) | {"paired": result.is_paired}
            for key, value in result.differences.items()
        },
        "seconds": round(measured.seconds, 3),
    }


@contract
def describe_estimate(value: Estimate) -> dict[str, Any]:
    """Return an estimate as plain values."""
    return {"value": value.value, "stderr": value.stderr, "low": value.low, "high": value.high}


@contract
def format_table(results: Sequence[Result]) -> str:
    """Return the samples, and the table of `format_rows`."""
    rows = []
    for result in results:
        label, split = f"{result.loaded.label} {result.loaded.checkpoint}".strip(), result.built.split_name
        values, differences = (
            {rename(key, split): value for key, value in estimates.items()}
            for estimates in (result.metrics, result.differences)
        )
        rows.append((result.name, label, values, differences))
    return "\n".join([*describe_data(results), format_rows(rows)])


@contract
def format_rows(results: Sequence[tuple[str, str, Estimates, Estimates]]) -> str:
    """Return a table by metric: each model with its form, its value and interval, and its difference to the first."""
    several = len(results) > 1
    rows = [["metric", "run", "form", "value", "± 95 %", *(["to the first", "± 95 %"] if several else [])]]
    for metric in dict.fromkeys(key for _, _, values, _ in results for key in values):
        shown = metric
        for name, label, values, differences in results:
            if metric in values:
                row = [shown, name, label, *format_estimate(values[metric])]
                if several:
                    row += format_estimate(differences[metric], "+") if metric in differences else ["", ""]
                rows.append(row)
                shown = ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = (
        [cell.ljust(w) if n < 3 else cell.rjust(w) for n, (cell, w) in enumerate(zip(r, widths, strict=True))] for r in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in cells)


@contract
def describe_data(results: Sequence[Result]) -> list[str]:
    """Return a line on the samples, one for each kind of them."""
    lines = dict.fromkeys(describe_samples(result.built, result) for result in results)
    return [*lines, ""]


def describe_samples(built: BuiltTask, result: Result) -> str:
    """Return what samples there are, in one line."""
    count, parts = len(built.split), int(built.parts.max()) + 1
    grouped = f" in {format_count(parts, built.unit)}" if built.unit != "sample" else ""
    text = f", {result.measurement.num_bytes:,} bytes" if result.measurement.num_bytes is not None else ""
    return f"{built.split_name}: {format_count(count, 'sample')}{grouped}{text} of {built.data.source}"


def format_estimate(value: Estimate, sign: str = "") -> list[str]:
    """Return a value in as many digits as its interval has a use for, and half the width of that."""
    if not math.isfinite(value.half):
        return [f"{value.value:{sign}.5g}", ""]
    digits = 4 if value.half == 0 else min(8, max(1, 1 - math.floor(math.log10(value.half))))
    return [f"{value.value:{sign}.{digits}f}", f"{value.half:.{digits}f}"]
