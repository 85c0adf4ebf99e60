"""Collect the runs of the sweeps into results.csv, print their tables, draw figure.png.

python experiments/bitnet_gap/figure.py SWEEP...     (without a folder: from the results.csv kept here)
python experiments/bitnet_gap/figure.py --best SWEEP...     model, width and best lr of each network
python experiments/bitnet_gap/figure.py --quick SWEEP     the quick size, into quick.csv
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from research.metrics import confidence_interval  # noqa: E402
from research.report import gap  # noqa: E402
from research.report.results import Row, RunResult, Sweep  # noqa: E402
from research.run_dir import read_json  # noqa: E402

KEYS = {"model": "model", "model.dim": "width", "model.depth": "depth", "lr": "lr", "seed": "seed"}  # key -> column
METRICS = ("val/bpb", "val/acc")
COLUMNS = ("data", *KEYS.values(), *METRICS)
TERNARY_MODELS = ("bitnet", "bitmlp")
COLOURS = {False: "tab:gray", True: "tab:blue"}
Rows = list[dict[str, str]]


def collect(sweeps: list[Path], name: str) -> None:
    """One row a run, of the evaluation that its monitor judged best."""
    rows: list[list[Any]] = []
    for folder in (path.parent for sweep in sweeps for path in sorted(sweep.glob("*/summary.json"))):
        given = dict(line.split("=", 1) for line in (folder / "overrides.txt").read_text().splitlines())
        told = read_json(folder / "summary.json")
        best = told["best"]
        data = "text" if "val/bpb" in best else "digits"
        given.setdefault("model.depth", "2")  # of text, throughout
        model, *numbers = (given[key] for key in KEYS)
        rows.append([data, model, *map(float, numbers), *(best.get(metric, "") for metric in METRICS)])
    if not rows:
        sys.exit("no finished run in these folders; give those that the sweeps printed")
    with (HERE / name).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [COLUMNS, *([cell if isinstance(cell, str) else f"{cell:.8g}" for cell in row] for row in sorted(rows))]
        )


def read(name: str) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    with (HERE / name).open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["data"], []).append(row)
    return found


def build_arms(rows: Rows) -> list[gap.Arm]:
    """What the section of a sweep's report would be made of."""
    monitor = next(metric for metric in METRICS if rows[0][metric])
    asked = {"directions": ["maximize" if monitor == "val/acc" else "minimize"], "space": dict.fromkeys(KEYS, "")}
    trials = []
    for number, row in enumerate(rows):
        params = {key: row[column] for key, column in KEYS.items()}
        best = {metric: float(row[metric]) for metric in METRICS if row[metric]}
        run = RunResult(best=best, is_quantized=row["model"] in TERNARY_MODELS)
        trials.append(Row(number, "COMPLETE", (float(row[monitor]),), params, runs=(run,)))
    return gap.collect_arms(Sweep("gap", asked, [monitor], monitor, "", trials))


def format_table(arms: list[gap.Arm]) -> Iterator[str]:
    """Markdown."""
    head, *lines = gap.table_rows(arms)
    for line in (head, ["---"] * len(head), *lines):
        yield f"| {' | '.join(line)} |"


def draw(data: dict[str, list[gap.Arm]]) -> None:
    """A panel a task: what the best setting reaches by width, with 95 % t intervals; a line a kind and depth."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, (task, found) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items(), strict=True):
        for rounded in (False, True):
            for depth in sorted({dict(arm.size)["model.depth"] for arm in found}):
                mine = [arm for arm in found if (arm.is_quantized, dict(arm.size)["model.depth"]) == (rounded, depth)]
                mine.sort(key=lambda arm: arm.size)
                means, halves = zip(
                    *(confidence_interval([*arm.get_values(arm.monitor).values()]) for arm in mine), strict=True
                )
                axis.errorbar(
                    [dict(arm.size)["model.dim"] for arm in mine], means, halves, marker="o", capsize=3,
                    color=COLOURS[rounded], linestyle="--" if depth == 1 else "-",
                    label=f"{'ternary' if rounded else 'full precision'}, {depth} block{'s' * (depth > 1)}",
                )  # fmt: skip
        widths = sorted({dict(arm.size)["model.dim"] for arm in found})
        axis.set_xscale("log", base=2)
        axis.set(title=task, xlabel="width", ylabel=found[0].monitor)
        axis.set_xticks(widths, widths)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(HERE / "figure.png", dpi=130)


def print_tables(name: str) -> dict[str, list[gap.Arm]]:
    """Print the tables of a file."""
    results = {task: build_arms(rows) for task, rows in read(name).items()}
    for task, found in results.items():
        print(f"{task}: {gap.describe_budget(found)}\n", *format_table(found), "", sep="\n")
    return results


if __name__ == "__main__":
    words = sys.argv[1:]
    best, quick = words[:1] == ["--best"], words[:1] == ["--quick"]
    if folders := words[best or quick :]:
        collect([Path(folder) for folder in folders], "quick.csv" if quick else "results.csv")
    if best:  # the setting of each network at each width, for more seeds of it
        for arm in (arm for rows in read("results.csv").values() for arm in build_arms(rows)):
            print(arm.network, dict(arm.size)["model.dim"], dict(arm.best)["lr"])
        sys.exit()
    print_tables("quick.csv")
    draw(print_tables("results.csv"))
