"""Collect the runs of a sweep into results.csv, print its table, draw figure.png.

python experiments/grokking/figure.py outputs/grokking/sweep_DATE     (without a folder: from the results.csv kept here)
"""

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLUMNS = ("model", "optim", "seed", "step", "seconds", "val/acc")
COLOURS = {"adamw": "tab:gray", "grokfast": "tab:orange"}
Curve = list[tuple[int, float, float]]  # step, seconds, validation accuracy
Arm = tuple[str, str]  # model, optim


def collect(sweep: Path) -> None:
    """One row for each evaluation of each run."""
    rows = []
    for folder in sorted((path.parent for path in sweep.glob("*/summary.json")), key=lambda path: int(path.name)):
        given = dict(line.split("=", 1) for line in (folder / "overrides.txt").read_text().splitlines())
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            record = given | json.loads(line)
            if "val/acc" in record:
                rows.append([record[column] for column in COLUMNS])
    if not rows:
        sys.exit(f"{sweep} holds no finished run; give the folder that the sweep printed")
    with (HERE / "results.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def read() -> dict[Arm, dict[int, Curve]]:
    arms: dict[Arm, dict[int, Curve]] = defaultdict(lambda: defaultdict(list))
    with (HERE / "results.csv").open() as file:
        for row in csv.DictReader(file):
            point = int(row["step"]), float(row["seconds"]), float(row["val/acc"])
            arms[row["model"], row["optim"]][int(row["seed"])].append(point)
    return arms


def find_step(curve: Curve, accuracy: float) -> int | None:
    """The first step at which it was seen; None: not within the run."""
    return next((step for step, _, value in curve if value >= accuracy), None)


def format_step(curve: Curve, accuracy: float) -> str:
    step = find_step(curve, accuracy)
    return f"{step:,}" if step else f"not in {curve[-1][0]:,}"


def format_table(arms: dict[Arm, dict[int, Curve]]) -> str:
    """Markdown: steps to 95 and 99 % for each seed, accuracy at the end, seconds a thousand steps."""
    lines = ["| model | optim | 95 % at step | 99 % at step | at the end | s / 1,000 steps |", "|---|---|---|---|---|---|"]
    for (model, optim), seeds in arms.items():
        curves = [seeds[seed] for seed in sorted(seeds)]
        steps = [", ".join(format_step(curve, accuracy) for curve in curves) for accuracy in (0.95, 0.99)]
        ends = ", ".join(f"{curve[-1][2]:.3f}" for curve in curves)
        pace = statistics.median(1000 * curve[-1][1] / curve[-1][0] for curve in curves)
        lines.append(f"| {model} | {optim} | {steps[0]} | {steps[1]} | {ends} | {pace:.1f} |")
    return "\n".join(lines)


def draw(arms: dict[Arm, dict[int, Curve]]) -> None:
    """One panel a model, one line a seed."""
    models = list(dict.fromkeys(model for model, _ in arms))
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, model in zip(figure.subplots(1, len(models), sharey=True), models, strict=True):
        for (name, optim), seeds in arms.items():
            for number, curve in enumerate(seeds.values()) if name == model else ():
                steps, _, values = zip(*curve, strict=True)
                axis.plot(steps, values, color=COLOURS.get(optim), alpha=0.8, label=optim if number == 0 else None)
        axis.set(xlabel="step", title="bitnet (ternary)" if model == "bitnet" else f"{model} (float32)")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("validation accuracy")
    figure.axes[0].legend(loc="lower right")
    figure.savefig(HERE / "figure.png", dpi=130)


if __name__ == "__main__":
    if sys.argv[1:]:
        collect(Path(sys.argv[1]))
    found = read()
    print(format_table(found))
    draw(found)
