"""Does the filter help ternary networks? README.md tells what came out, experiments/study.py how to run it."""

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from experiments.arms import MODELS, TASKS, make_arm
from experiments.results import (
    Row,
    compare,
    count_trials,
    format_table,
    format_value,
    get_value,
    is_bound,
    select_largest,
    select_rows,
)
from experiments.study import Arm, Study

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


def list_arms(size: str) -> list[Arm]:
    tuned = [optim for optim in COMPARED if optim != "same"]
    found = [
        make_arm(task, size, kind, optim, TRIALS[size]) for task in TASKS for kind in ("dense", "ternary") for optim in tuned
    ]
    return [replace(made, control=("optim.lamb=0",)) if made.name.endswith("grokfast") else made for made in found]


def select_runs(rows: list[Row], kind: str, optim: str, task: str) -> list[Row]:
    """The runs, a seed each, of one of COMPARED."""
    return (
        select_rows(rows, f"{kind}_grokfast", task, "control")
        if optim == "same"
        else select_rows(rows, f"{kind}_{optim}", task)
    )


def make_table(rows: list[Row], size: str) -> str:
    lines = []
    for task, unit in UNITS.items():
        for kind in ("dense", "ternary"):
            for optim in COMPARED:
                runs = select_runs(rows, kind, optim, task)
                over = "-" if optim == "adamw" else compare(runs, select_rows(rows, f"{kind}_adamw", task))
                own = compare(runs, select_runs(rows, kind, "same", task)) if optim == "grokfast" else "-"
                tuned = f"{count_trials(rows, f'{kind}_{optim}', task)}: {runs[0]['settings']}"
                where = [f"{task}, {unit}", MODELS[task][kind]]
                named = ["the same, lamb 0", "as above"] if optim == "same" else [optim, tuned]
                lines.append([*where, named[0], ", ".join(map(format_value, runs)), over, own, named[1]])
    return format_table(["task", "model", "optimizer", "at each seed", "over AdamW", "over lamb 0", "tuned with"], lines)


def draw(rows: list[Row]) -> Figure:
    """What each seed reached, a panel a task; smaller is better throughout; a hollow mark: not within the run."""
    rows = select_largest(rows)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(UNITS)), UNITS, strict=True):
        names = [f"{kind} {optim}" for kind in ("dense", "ternary") for optim in COMPARED]
        for place, name in enumerate(names):
            for row in select_runs(rows, *name.split(), task):
                how = {"color": COMPARED[name.split()[1]], "fillstyle": "none" if is_bound(row) else "full"}
                axis.plot(get_value(row), place, ">" if is_bound(row) else "o", alpha=0.8, **how)
        axis.set(title=task, xscale="log" if task == "modular" else "linear")
        axis.set(xlabel={"modular": "steps to 95 %", "digits": "share of wrong answers", "text": "bits per byte"}[task])
        shown = [name.replace("same", "that, lamb 0") if task == "modular" else "" for name in names]
        axis.set_yticks(range(len(names)), shown, fontsize=8)
        axis.invert_yaxis()
        axis.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    Study(HERE, list_arms, {"quick": 3, "full": 5}, make_table, draw).main()
