"""Does the filter help ternary networks? README.md tells what came out, experiments/study.py how to run it."""

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from experiments.arms import MODELS, TASKS, make_arm
from experiments.base import format_table
from experiments.results import (
    Row,
    compare,
    count_trials,
    format_value,
    get_value,
    is_bound,
    select_largest,
    select_rows,
)
from experiments.study import Arm, Study
from research.contracts import contract

HERE = Path(__file__).parent
COMPARED = {
    "adamw": "tab:gray",
    "grokfast": "tab:orange",
    "same": "tab:brown",  # as grokfast at its best, with lamb 0: the control, which is not tuned
    "muon": "tab:green",
    "orthograd": "tab:purple",
}
UNITS = {"modular": "steps to 95 %", "digits": "accuracy", "text": "bits per byte"}
TRIALS = {"quick": 5, "full": 16}


@contract
def list_arms(size: str) -> list[Arm]:
    tuned = [optim for optim in COMPARED if optim != "same"]
    arms = [
        make_arm(task, size, kind, optim, TRIALS[size]) for task in TASKS for kind in ("dense", "ternary") for optim in tuned
    ]
    return [replace(arm, control=("optim.lamb=0",)) if arm.name.endswith("grokfast") else arm for arm in arms]


def select_runs(rows: list[Row], kind: str, optim: str, task: str) -> list[Row]:
    """Return the runs, one a seed, of one of COMPARED."""
    return (
        select_rows(rows, f"{kind}_grokfast", task, "control")
        if optim == "same"
        else select_rows(rows, f"{kind}_{optim}", task)
    )


@contract
def make_table(rows: list[Row], size: str) -> str:
    lines = []
    for task, unit in UNITS.items():
        for kind in ("dense", "ternary"):
            for optim in COMPARED:
                runs = select_runs(rows, kind, optim, task)
                over_adamw = "-" if optim == "adamw" else compare(runs, select_rows(rows, f"{kind}_adamw", task))
                own = compare(runs, select_runs(rows, kind, "same", task)) if optim == "grokfast" else "-"
                tuned = f"{count_trials(rows, f'{kind}_{optim}', task)}: {runs[0]['settings']}"
                where = [f"{task}, {unit}", MODELS[task][kind]]
                named = ["the same, lamb 0", "as above"] if optim == "same" else [optim, tuned]
                lines.append([*where, named[0], ", ".join(map(format_value, runs)), over_adamw, own, named[1]])
    return format_table(["task", "model", "optimizer", "at each seed", "over AdamW", "over lamb 0", "tuned with"], lines)


@contract
def draw(rows: list[Row]) -> Figure:
    """Draw the result of each seed, a panel a task. Smaller is better; a hollow mark means not within the run."""
    rows = select_largest(rows)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(UNITS)), UNITS, strict=True):
        names = [f"{kind} {optim}" for kind in ("dense", "ternary") for optim in COMPARED]
        for position, name in enumerate(names):
            kind, optim = name.split()
            for row in select_runs(rows, kind, optim, task):
                shape, fill = (">", "none") if is_bound(row) else ("o", "full")
                axis.plot(get_value(row), position, shape, alpha=0.8, color=COMPARED[optim], fillstyle=fill)
        axis.set(title=task, xscale="log" if task == "modular" else "linear")
        axis.set(xlabel={"modular": "steps to 95 %", "digits": "share of wrong answers", "text": "bits per byte"}[task])
        labels = [name.replace("same", "that, lamb 0") if task == "modular" else "" for name in names]
        axis.set_yticks(range(len(names)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    Study(HERE, list_arms, {"quick": 3, "full": 5}, make_table, draw).main()
