"""Collect the searches into results.csv, with the losses of what they chose on digits that they never saw; table; figure.png.

python experiments/pbt_digits/figure.py outputs/pbt_digits     (without a folder: from the results.csv kept here)
"""

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
STEPS, INTERVAL = 500, 50  # of a run, of a generation
NUMBERS = [f"{name} {number}" for name in ("best", "last") for number in ("val/loss", "test/loss", "test/acc")]
LINEAGE = ["copies", "lr ratio"]  # of a population's best at the end: copies among its ancestors, its lr over its founder's
COLUMNS = ["schedule", "method", "seed", "steps", *NUMBERS, *LINEAGE]
COLOURS = {"pbt": "tab:orange", "random": "tab:gray"}
T = 2.776  # the 97.5 % point of Student's t with four degrees of freedom: five seeds
Searches = dict[str, dict[str, dict[int, dict[str, float]]]]  # schedule -> method -> seed -> number


def collect(root: Path) -> None:
    """One row a search: `best` is the checkpoint of the lowest val/loss that any run had at any time, `last` the one of the
    lowest val/loss after the last step.
    """
    sys.path.insert(0, str(HERE.parents[1]))  # research, and this folder as a package
    from research.run_dir import read_json

    rows = []
    for search in sorted(path for path in root.iterdir() if path.name.count("_") == 2):
        method, schedule, seed = search.name.split("_")
        runs = {path.parent: read_json(path) for path in sorted(search.glob("*/summary.json"))}
        row: dict[str, Any] = {"schedule": schedule, "method": method, "seed": seed}
        row["steps"] = sum(told["steps"] - get_first_step(folder.name) for folder, told in runs.items())
        ways = {"best": [(t["best"]["val/loss"], f, int(t["best"]["step"])) for f, t in runs.items()]}
        ways["last"] = [(t["metrics"]["val/loss"], f, STEPS) for f, t in runs.items()]
        for name, candidates in ways.items():
            found = [(value, f / "checkpoints" / f"step-{step:08d}") for value, f, step in candidates]
            value, checkpoint = min(each for each in found if each[1].exists())
            row[f"{name} val/loss"] = value
            row[f"{name} test/loss"], row[f"{name} test/acc"] = evaluate_checkpoint(checkpoint)
        if method == "pbt":
            row |= zip(LINEAGE, trace_lineage(search), strict=True)
        rows.append(row)
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def trace_lineage(search: Path) -> tuple[int, float]:
    """How many copies the best member of the last generation has among its ancestors, and its lr over that of its founder."""
    with (search / "population.csv").open() as file:
        rows = {row["folder"]: row for row in csv.DictReader(file)}
    last = [row for row in rows.values() if int(row["steps"]) == STEPS and row["value"]]
    line = [min(last, key=lambda row: float(row["value"]))]
    while line[0]["parent"]:
        line.insert(0, rows[f"g{int(line[0]['generation']) - 1}m{line[0]['parent']}"])
    copies = sum(row["parent"] not in ("", row["member"]) for row in line)
    return copies, float(line[-1]["lr"]) / float(line[0]["lr"])


def get_first_step(run: str) -> int:
    """The step that a run began at: a member of generation n goes on from the one before."""
    return int(run[1:].partition("m")[0]) * INTERVAL if run.startswith("g") else 0


def evaluate_checkpoint(checkpoint: Path) -> tuple[float, float]:
    """Loss and accuracy on the half of the digits that was kept back."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    from experiments.pbt_digits.data import load_held_out
    from research.losses import classification
    from research.training.evaluate import evaluate

    config = OmegaConf.load(checkpoint.parents[1] / "config.yaml")
    model = instantiate(config.model, instantiate(config.data).shape)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    metrics = evaluate(model, load_held_out(config.data.split_seed), classification, batch_size=512)
    return metrics["val/loss"], metrics["val/acc"]


def read() -> Searches:
    found: Searches = defaultdict(lambda: defaultdict(dict))
    with (HERE / "results.csv").open() as file:
        for row in csv.DictReader(file):
            numbers = {key: float(row[key]) for key in COLUMNS[3:] if row[key]}
            found[row["schedule"]][row["method"]][int(row["seed"])] = numbers
    return found


def format_mean(values: list[float], digits: int = 3, sign: str = "") -> str:
    """Mean and 95 % interval of the mean (t)."""
    half = T * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):{sign}.{digits}f} ± {half:.{digits}f}"


def format_table(searches: Searches) -> str:
    """Markdown: mean and interval for each method, and of the difference between the two at the same seed."""
    head = ["schedule", "", *NUMBERS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for schedule, methods in searches.items():
        for method, seeds in methods.items():
            cells = [format_mean([row[number] for row in seeds.values()]) for number in NUMBERS]
            lines.append(f"| {schedule} | {method} | {' | '.join(cells)} |")
        pairs = [(methods["pbt"][seed], methods["random"][seed]) for seed in methods["pbt"]]
        cells = [format_mean([one[number] - other[number] for one, other in pairs], sign="+") for number in NUMBERS]
        lines.append(f"| | pbt - random | {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_selection(searches: Searches) -> str:
    """What the lineages say of how much was chosen among, and how far the settings went from where they began."""
    best = [row for methods in searches.values() for row in methods["pbt"].values()]
    copies, ratio = ([row[key] for row in best] for key in LINEAGE)
    mean = f"{statistics.fmean(copies):.1f} ({min(copies):.0f} to {max(copies):.0f})"
    return f"copies among the ancestors of the best: {mean}; its lr over its founder's: {min(ratio):.2f} to {max(ratio):.2f}"


def draw(searches: Searches) -> None:
    """Each search a point, those of one seed joined."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, number in zip(axes, ("best val/loss", "best test/loss", "best test/acc"), strict=True):
        for at, methods in enumerate(searches.values()):
            for seed in methods["pbt"]:
                axis.plot(
                    (3 * at, 3 * at + 1), [methods[m][seed][number] for m in ("pbt", "random")], color="lightgray", zorder=1
                )
            for offset, method in enumerate(("pbt", "random")):
                values = [row[number] for row in methods[method].values()]
                axis.scatter([3 * at + offset] * len(values), values, color=COLOURS[method], label=method if at == 0 else None)
                axis.plot(3 * at + offset, statistics.fmean(values), marker="_", markersize=22, color=COLOURS[method])
        axis.set(
            title=number,
            xlim=(-1, 3 * len(searches) - 1),
            xticks=[3 * at + 0.5 for at in range(len(searches))],
            xticklabels=list(searches),
        )
        axis.grid(alpha=0.3, axis="y")
    axes[1].legend()
    figure.savefig(HERE / "figure.png", dpi=130)


if __name__ == "__main__":
    if sys.argv[1:]:
        collect(Path(sys.argv[1]))
    results = read()
    print(format_table(results))
    print(describe_selection(results))
    draw(results)
