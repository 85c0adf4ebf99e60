"""Every optimizer at equal budgets on three tasks: README.md has the result."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from experiments.arms import OPTIMS, TASKS, make_arm
from experiments.base import format_table
from experiments.results import Row, count_trials, format_value, get_value, is_bound, select_largest, select_rows
from experiments.study import Arm, Study
from research.contracts import contract

HERE = Path(__file__).parent
KINDS = {"quick": ("dense",), "full": ("dense", "ternary")}
TRIALS = {"quick": 3, "full": 16}
STYLES = ("-", "--", ":")


@contract
def list_arms(size: str) -> list[Arm]:
    return [
        make_arm(task, size, kind, optim, TRIALS[size], short=True)
        for task in TASKS
        for kind in KINDS[size]
        for optim in OPTIMS
    ]


def collect_problems(rows: list[Row]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return by (task, kind, seed) what each optimizer reached; smaller is better."""
    problems: dict[tuple[str, str, str], dict[str, float]] = {}
    for kind in ("dense", "ternary"):
        for task in TASKS:
            for optim in OPTIMS:
                for row in select_rows(rows, f"{kind}_{optim}", task):
                    reached = math.inf if is_bound(row) else get_value(row)
                    problems.setdefault((task, kind, row["seed"]), {})[optim] = reached
    return problems


def compute_profile(rows: list[Row]) -> dict[str, list[float]]:
    """Return for each optimizer its ratios to the best one, sorted: the performance profile of Dolan & More (2002)."""
    ratios: dict[str, list[float]] = {optim: [] for optim in OPTIMS}
    for reached in collect_problems(rows).values():
        best = min(reached.values())
        for optim, number in reached.items():
            ratios[optim].append(number / best if math.isfinite(best) else math.inf)
    return {optim: sorted(values) for optim, values in ratios.items() if values}


@contract
def make_table(rows: list[Row], size: str) -> str:
    lines = []
    for optim, ratios in compute_profile(rows).items():
        for kind in KINDS[size]:
            runs = {task: select_rows(rows, f"{kind}_{optim}", task) for task in TASKS}
            cells = [", ".join(map(format_value, rows_of_task)) for rows_of_task in runs.values()]
            number = count_trials(rows, f"{kind}_{optim}", "modular")
            near = sum(ratio <= 1.05 for ratio in ratios) / len(ratios)
            name = f"{optim} ({kind})" if len(KINDS[size]) > 1 else optim
            worst = f"{ratios[-1]:.2f}" if math.isfinite(ratios[-1]) else "not solved"
            lines.append([name, *cells, f"{near:.0%}", worst, str(number)])
    head = [
        "optimizer",
        "modular: steps to 95 %",
        "digits: accuracy",
        "text: bits per byte",
        "within 5 % of the best",
        "at worst",
        "trials",
    ]
    return format_table(head, lines)


@contract
def draw(rows: list[Row]) -> Figure:
    """Draw performance profiles: the share of problems on which an optimizer was within so many times of the best."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    profile = compute_profile(select_largest(rows))
    for number, (optim, ratios) in enumerate(profile.items()):
        solved = [ratio for ratio in ratios if math.isfinite(ratio)]
        shares = [(count + 1) / len(ratios) for count in range(len(solved))]
        style = STYLES[number % len(STYLES)]
        axis.step([1, *solved, 1000], [0, *shares, shares[-1] if shares else 0], where="post", label=optim, linestyle=style)
    worst = max(ratio for ratios in profile.values() for ratio in ratios if math.isfinite(ratio))
    axis.set(xscale="log", xlim=(1, 1.1 * worst), ylim=(0, 1.02))
    axis.set(xlabel="times the best optimizer's number", ylabel="share of the problems")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


if __name__ == "__main__":
    Study(HERE, list_arms, {"quick": 2, "full": 5}, make_table, draw).main()
