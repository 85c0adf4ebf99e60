"""Rows of a study's results.csv: how good each run is, and how sets of runs compare."""

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.base import read_csv
from research.contracts import contract

STEP_COLUMNS = ("train_95", "val_95", "held_95", "train_99", "val_99", "held_99")  # steps; empty: not within the run
FACTS = ("size", "task", "arm", "phase", "settings", "seed", "status", "judged", "steps", "asked")
COLUMNS = (*FACTS, *STEP_COLUMNS, "lowest", "acc", "bpb", "seconds", "seconds_95")
Row = dict[str, str]
HALF = 0.5 / 359  # half a wrong answer of digits' 359: the score of a perfect network
WORST = {"acc": 1.0, "bpb": 8.0}  # the value of a failed run: every answer wrong; eight bits a byte


@contract
def read(folder: Path) -> list[Row]:
    return read_csv(folder / "results.csv")


@contract
def score(row: Row) -> float:
    """Return the number that settings are chosen by; smaller is better, and infinity is a failed run.

    It is the steps to 95 or 99 % where a study is about that, else bits per byte, else the share of wrong answers. A run
    that did not reach its accuracy scores all its steps, and more the worse it was.
    """
    if row["status"] == "FAILED" or not row["acc"]:
        return math.inf
    if (at := row["judged"]).startswith("val_"):
        return float(row[at]) if row[at] else float(row["asked"]) * (2 - float(row["acc"]))
    return float(row["bpb"]) if row["judged"] == "bpb" else max(1 - float(row["acc"]), HALF)


@contract
def get_value(row: Row, key: str = "") -> float:
    """Return the number that tables compare: the score, or the steps or seconds of another column.

    For a run that did not reach its accuracy it is a bound: all its steps or seconds, or the worst value.
    """
    if key:
        return float(row[key] or row["seconds" if key == "seconds_95" else "asked"])
    return min(score(row), WORST.get(row["judged"]) or float(row["asked"]))


@contract
def is_bound(row: Row, key: str = "") -> bool:
    """Return true if `get_value` is only a bound."""
    return row["status"] == "FAILED" or not row[key or row["judged"]]


@contract
def format_value(row: Row, key: str = "") -> str:
    """Return the value as text, or the steps to another accuracy."""
    key = key or row["judged"]
    if row["status"] == "FAILED":
        return f"diverged at {int(row['steps']):,}"
    if key in STEP_COLUMNS:
        return f"{int(row[key]):,}" if row[key] else f"not in {int(row['steps']):,}"
    return f"{float(row['bpb']):.3f}" if key == "bpb" else f"{float(row['acc']):.4f}"


@contract
def select_largest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that a figure shows: the full size if there is one."""
    return [row for row in rows if row["size"] == "full"] or list(rows)


@contract
def select_rows(rows: Iterable[Row], arm: str, task: str = "", phase: str = "seeds") -> list[Row]:
    """Return the final runs of an arm, one a seed; or those of its control."""
    return [row for row in rows if row["arm"] == arm and task in ("", row["task"]) and row["phase"] == phase]


@contract
def count_trials(rows: Iterable[Row], arm: str, task: str = "") -> int:
    """Return with how many settings an arm was tuned; 0: it was not."""
    return sum(row["arm"] == arm and row["phase"] == "search" and task in ("", row["task"]) for row in rows)


@contract
def format_values(rows: Sequence[Row], key: str) -> str:
    """Return the steps of each seed to an accuracy, as text."""
    return ", ".join(format_value(row, key) for row in rows)


@contract
def compare(slow: Sequence[Row], fast: Sequence[Row], key: str = "") -> str:
    """Return `slow` over `fast` as text: the ratio of geometric means over seeds, with its 95 % bootstrap interval.

    Runs are paired by seed where both sides have the same seeds. If runs of one side did not reach the accuracy, the ratio
    is a bound, and so is that end of the interval. If runs of both sides did not, the result is "-".
    """
    lost, won = (any(is_bound(row, key) for row in side) for side in (slow, fast))
    if (lost and won) or not (slow and fast):
        return "-"
    paired = [row["seed"] for row in slow] == [row["seed"] for row in fast]
    slow_values, fast_values = ([get_value(row, key) for row in side] for side in (slow, fast))
    middle, low, high = compute_ratio(slow_values, fast_values, paired)
    if lost or won:
        return f"more than {middle:.3g} (from {low:.3g})" if lost else f"less than {middle:.3g} (to {high:.3g})"
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


@contract
def compute_ratio(
    slow: Sequence[float], fast: Sequence[float], paired: bool = False, draws: int = 10_000
) -> tuple[float, float, float]:
    """Return the ratio of geometric means, and both ends of its 95 % bootstrap interval (percentiles).

    If `paired`, the numbers at one index belong together (one seed), and pairs are drawn.
    """
    generator = random.Random(0)
    logs = [math.log(value) for value in slow], [math.log(value) for value in fast]
    gaps = [a - b for a, b in zip(*logs, strict=True)] if paired else []

    def draw_mean(values: Sequence[float]) -> float:
        return statistics.fmean(generator.choices(values, k=len(values)))

    ratios = sorted(math.exp(draw_mean(gaps) if paired else draw_mean(logs[0]) - draw_mean(logs[1])) for _ in range(draws))
    middle = math.exp(statistics.fmean(logs[0]) - statistics.fmean(logs[1]))
    return middle, ratios[round(0.025 * draws)], ratios[round(0.975 * draws) - 1]
