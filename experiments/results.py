"""What the runs of a study tell: rows of results.csv, how good each is, and what sets of them are in comparison."""

import csv
import math
import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

STEP_COLUMNS = ("train_95", "val_95", "held_95", "train_99", "val_99", "held_99")  # steps; empty: not within the run
FACTS = ("size", "task", "arm", "phase", "settings", "seed", "status", "judged", "steps", "asked")
COLUMNS = (*FACTS, *STEP_COLUMNS, "lowest", "acc", "bpb", "seconds", "seconds_95")
Row = dict[str, str]
HALF = 0.5 / 359  # half a wrong answer of digits' 359: what a perfect network is counted as
WORST = {"acc": 1.0, "bpb": 8.0}  # every answer wrong; eight bits a byte: what a run that failed is counted as


def read(folder: Path) -> list[Row]:
    path = folder / "results.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def score(row: Row) -> float:
    """What settings are chosen by, smaller is better: steps to 95 or 99 % where a run is about that (of one that did not get
    there all of its steps, and more the worse it was), else bits per byte, else the share of wrong answers. Of one that
    failed, infinity.
    """
    if row["status"] == "FAILED" or not row["acc"]:
        return math.inf
    if (at := row["judged"]).startswith("val_"):
        return float(row[at]) if row[at] else float(row["asked"]) * (2 - float(row["acc"]))
    return float(row["bpb"]) if row["judged"] == "bpb" else max(1 - float(row["acc"]), HALF)


def get_value(row: Row, key: str = "") -> float:
    """What tables compare: what `score` gives, or the steps or seconds in another column. Of a run that did not get there a
    bound: its steps or seconds, or the worst there is.
    """
    if key:
        return float(row[key] or row["seconds" if key == "seconds_95" else "asked"])
    return min(score(row), WORST.get(row["judged"]) or float(row["asked"]))


def is_bound(row: Row, key: str = "") -> bool:
    """Whether `value` is a bound only."""
    return row["status"] == "FAILED" or not row[key or row["judged"]]


def format_value(row: Row, key: str = "") -> str:
    """For people: `value`, or the steps to another accuracy."""
    key = key or row["judged"]
    if row["status"] == "FAILED":
        return f"diverged at {int(row['steps']):,}"
    if key in STEP_COLUMNS:
        return f"{int(row[key]):,}" if row[key] else f"not in {int(row['steps']):,}"
    return f"{float(row['bpb']):.3f}" if key == "bpb" else f"{float(row['acc']):.4f}"


def select_largest(rows: Sequence[Row]) -> list[Row]:
    """What a figure shows: the full size where there is one."""
    return [row for row in rows if row["size"] == "full"] or list(rows)


def select_rows(rows: Iterable[Row], arm: str, task: str = "", phase: str = "seeds") -> list[Row]:
    """The runs that an arm is judged by, a seed each; or its control."""
    return [row for row in rows if row["arm"] == arm and task in ("", row["task"]) and row["phase"] == phase]


def count_trials(rows: Iterable[Row], arm: str, task: str = "") -> int:
    """How many settings an arm was tuned with; 0: it was not."""
    return sum(row["arm"] == arm and row["phase"] == "search" and task in ("", row["task"]) for row in rows)


def format_values(rows: Sequence[Row], key: str) -> str:
    """The steps of each seed to an accuracy."""
    return ", ".join(format_value(row, key) for row in rows)


def compare(slow: Sequence[Row], fast: Sequence[Row], key: str = "") -> str:
    """How many times the number of `fast` that of `slow` is: the geometric mean over seeds, with its 95 % bootstrap interval.

    Paired by seed where both have the same ones. Where runs of one side did not get there it is a bound, and so is that end of
    the interval; where runs of both did not, nothing can be said.
    """
    lost, won = (any(is_bound(row, key) for row in side) for side in (slow, fast))
    if (lost and won) or not (slow and fast):
        return "-"
    paired = [row["seed"] for row in slow] == [row["seed"] for row in fast]
    sides = ([get_value(row, key) for row in side] for side in (slow, fast))
    middle, low, high = compute_ratio(*sides, paired)
    if lost or won:
        return f"more than {middle:.3g} (from {low:.3g})" if lost else f"less than {middle:.3g} (to {high:.3g})"
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def compute_ratio(
    slow: Sequence[float], fast: Sequence[float], paired: bool = False, draws: int = 10_000
) -> tuple[float, float, float]:
    """Geometric mean of `slow` over that of `fast`, with the ends of its 95 % bootstrap interval (percentiles); `paired`:
    each number of the one belongs to that of the other (a seed), and pairs are drawn.
    """
    generator = random.Random(0)
    logs = [math.log(value) for value in slow], [math.log(value) for value in fast]
    gaps = [a - b for a, b in zip(*logs, strict=True)] if paired else []

    def draw_mean(values: Sequence[float]) -> float:
        return statistics.fmean(generator.choices(values, k=len(values)))

    found = sorted(math.exp(draw_mean(gaps) if paired else draw_mean(logs[0]) - draw_mean(logs[1])) for _ in range(draws))
    middle = math.exp(statistics.fmean(logs[0]) - statistics.fmean(logs[1]))
    return middle, found[round(0.025 * draws)], found[round(0.975 * draws) - 1]


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
