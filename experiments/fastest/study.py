"""What makes the ternary network of `make train` generalise soonest: README.md has the result."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from experiments.arms import OPTIMS
from experiments.base import format_table
from experiments.results import (
    Row,
    compare,
    count_trials,
    format_values,
    get_value,
    is_bound,
    select_largest,
    select_rows,
)
from experiments.study import Arm, Study
from research.contracts import contract

HERE = Path(__file__).parent
BASE = ("model=bitnet", "callbacks=grokking", "callbacks.grokking.end=0.99", "callbacks.grokking.hold=1", "steps=500")
COMPARED = {"quick": ("adamw", "grokfast", "orthograd"), "full": tuple(OPTIMS)}
TRIALS = {"quick": 3, "full": 6}
PRESET = "preset"


@contract
def list_arms(size: str) -> list[Arm]:
    tuned = [Arm(optim, "modular", (*BASE, *OPTIMS[optim][0]), OPTIMS[optim][1], TRIALS[size]) for optim in COMPARED[size]]
    return [Arm(PRESET, "modular", ("experiment=fastest", *BASE)), *tuned]


def rank_arms(rows: list[Row]) -> list[str]:
    """Return the arms, the fastest by the median first."""
    arms = [arm for arm in (PRESET, *OPTIMS) if select_rows(rows, arm)]
    return sorted(arms, key=lambda arm: statistics.median(map(get_value, select_rows(rows, arm))))


@contract
def make_table(rows: list[Row], size: str) -> str:
    lines = []
    for arm in rank_arms(rows):
        runs, number = select_rows(rows, arm), count_trials(rows, arm)
        over_adamw = "-" if arm == "adamw" else compare(runs, select_rows(rows, "adamw"))
        middle = f"{statistics.median(map(get_value, runs)):g}"
        settings = f"{number} trials: {runs[0]['settings']}" if number else "-"
        lines.append([arm, format_values(runs, "val_99"), middle, over_adamw, settings])
    return format_table(["optimizer", "99 % at step", "median", "over AdamW", "tuned with"], lines)


@contract
def draw(rows: list[Row]) -> Figure:
    """Draw the steps to 99 % of each seed, by optimizer. A hollow mark means not within the run."""
    rows = select_largest(rows)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis, names = figure.subplots(), rank_arms(rows)
    for position, arm in enumerate(names):
        for row in select_rows(rows, arm):
            shape, fill = (">", "none") if is_bound(row) else ("o", "full")
            axis.plot(get_value(row), position, shape, color="tab:blue", fillstyle=fill, alpha=0.6)
    axis.set(xscale="log", xlabel="steps to 99 % of the held-back half")
    axis.set_xticks((50, 100, 200, 300, 500), ("50", "100", "200", "300", "500"))
    axis.set_xticks([], minor=True)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    Study(HERE, list_arms, {"quick": 3, "full": 8}, make_table, draw).main()
