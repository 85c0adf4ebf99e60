"""How far the learning rate may be from its best, dense and ternary: README.md has the result."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from experiments.arms import MODELS, TASKS, make_arm
from experiments.base import format_table
from experiments.results import Row, get_value, is_bound, select_largest
from experiments.study import Arm, Study
from research.contracts import contract

HERE = Path(__file__).parent
RATES = {"quick": "5e-4,1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2", "full": "2.5e-4,5e-4,1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2"}
DECAY = {"modular": "1.0", "digits": "0.1", "text": "0.1"}
SEEDS = {"quick": {"modular": "0", "digits": "0,1,2", "text": "0"}, "full": dict.fromkeys(TASKS, "0,1,2,3,4")}
UNITS = {"modular": "steps to 95 %", "digits": "share of wrong answers", "text": "bits per byte"}
NEAR = {"modular": 1.5, "digits": 1.25, "text": 1.05}  # a result up to so many times the best counts as good


@contract
def list_arms(size: str) -> list[Arm]:
    arms = []
    for task in TASKS:
        for kind in ("dense", "ternary"):
            arm = make_arm(task, size, kind, "adamw", 0, short=True)
            fixed = (*arm.fixed, f"optim.weight_decay={DECAY[task]}")
            arms.append(Arm(kind, task, fixed, (f"lr={RATES[size]}",), search_seeds=SEEDS[size][task], search=arm.search))
    return arms


def compute_curve(rows: list[Row], kind: str, task: str) -> dict[float, tuple[float, bool]]:
    """Return the mean at each learning rate, and whether it is only a bound."""
    by_rate: dict[float, list[Row]] = {}
    for row in rows:
        if (row["arm"], row["task"]) == (kind, task):
            by_rate.setdefault(float(row["settings"].removeprefix("lr=")), []).append(row)
    return {r: (statistics.fmean(map(get_value, by_rate[r])), any(map(is_bound, by_rate[r]))) for r in sorted(by_rate)}


@contract
def format_mean(mean: float, bound: bool, task: str) -> str:
    return f"{'>' * bound}{mean:,.0f}" if task == "modular" else f"{mean:.3f}"


@contract
def make_table(rows: list[Row], size: str) -> str:
    lines = []
    for task, unit in UNITS.items():
        for kind in ("dense", "ternary"):
            if curve := compute_curve(rows, kind, task):
                best = min(curve, key=lambda rate: curve[rate])
                good = [rate for rate, (mean, bound) in curve.items() if mean <= NEAR[task] * curve[best][0] and not bound]
                edge = "*" if best in (min(curve), max(curve)) else ""
                chosen = "none" if curve[best][1] else f"{best:g}{edge}"
                values = ", ".join(format_mean(mean, bound, task) for mean, bound in curve.values())
                within = f"{min(good):g} to {max(good):g} (within {NEAR[task] - 1:.0%})" if good else "-"
                seeds = len({row["seed"] for row in rows if row["task"] == task})
                lines.append([task, MODELS[task][kind], chosen, within, f"{unit}: {values}", str(seeds)])
    rates = RATES[size].replace(",", ", ")
    return format_table(["task", "model", "best lr", "good from", f"at lr {rates}", "seeds"], lines)


@contract
def draw(rows: list[Row]) -> Figure:
    """Draw the curves, a panel a task. A hollow mark is a bound: a run did not reach the accuracy."""
    rows = select_largest(rows)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axis, (task, unit) in zip(figure.subplots(1, len(UNITS)), UNITS.items(), strict=True):
        for kind, colour in (("dense", "tab:gray"), ("ternary", "tab:blue")):
            if curve := compute_curve(rows, kind, task):
                axis.plot(list(curve), [mean for mean, _ in curve.values()], "-", color=colour, label=MODELS[task][kind])
                for rate, (mean, bound) in curve.items():
                    axis.plot(rate, mean, "^" if bound else "o", color=colour, fillstyle="none" if bound else "full")
        axis.set(title=task, xscale="log", xlabel="lr", ylabel=unit)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    Study(HERE, list_arms, {"quick": 0, "full": 0}, make_table, draw).main()
