"""Steps to 95 % over the filter's two numbers: README.md has the result."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.base import format_table
from experiments.results import Row, get_value, is_bound, select_largest
from experiments.study import FIRST_HIT, Arm, Study
from research.contracts import contract

HERE = Path(__file__).parent
ADAM = ("optim.base._target_=torch.optim.Adam", "optim.weight_decay=0.005", "lr=1e-3")
BASES = {"Adam, L2 0.005, lr 1e-3 (the paper's)": ("adam", ADAM), "AdamW, weight decay 1, lr 3e-3": ("adamw", ("lr=3e-3",))}
TASK = {
    "quick": ("data.p=47", "model.dim=64", "model.depth=1", "steps=2500"),
    "full": ("data.p=97", "steps=3000"),
}
GRID = {
    "quick": ("optim.alpha=0.8,0.9,0.98,0.99", "optim.lamb=0.0,0.5,2.0,5.0"),
    "full": ("optim.alpha=0.8,0.9,0.95,0.98,0.99", "optim.lamb=0.0,0.5,1.0,2.0,5.0"),
}


@contract
def list_arms(size: str) -> list[Arm]:
    base = ("experiment=grokfast_modular", *TASK[size], "optim=grokfast", "optim.no_decay=[]")
    seeds = {"quick": "0", "full": "0,1,2"}[size]
    return [
        Arm(name, "modular", (*base, *settings), GRID[size], search_seeds=seeds, search=FIRST_HIT)
        for name, settings in BASES.values()
    ]


def group_cells(rows: list[Row], arm: str) -> dict[tuple[float, float], list[Row]]:
    """Return the runs of an arm by (alpha, lamb)."""
    cells: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        if row["arm"] == arm and row["phase"] == "search":
            settings = dict(word.split("=") for word in row["settings"].split())
            cells.setdefault((float(settings["optim.alpha"]), float(settings["optim.lamb"])), []).append(row)
    return cells


@contract
def format_steps(runs: list[Row]) -> str:
    """Return the median of the steps as text; a + if a run did not reach the accuracy."""
    middle = f"{statistics.median(map(get_value, runs)):,.0f}"
    return f"not in {middle}" if all(map(is_bound, runs)) else middle + "+" * any(map(is_bound, runs))


@contract
def make_table(rows: list[Row], size: str) -> str:
    parts = []
    for name, (arm, _) in BASES.items():
        cells = group_cells(rows, arm)
        lambs, alphas = (sorted({key[position] for key in cells}) for position in (1, 0))
        lines = [[f"alpha {alpha:g}", *(format_steps(cells[alpha, lamb]) for lamb in lambs)] for alpha in alphas]
        parts.append(f"{name}:\n\n" + format_table(["", *(f"lamb {lamb:g}" for lamb in lambs)], lines))
    return "\n\n".join(parts)


@contract
def draw(rows: list[Row]) -> Figure:
    """Draw a map for each base: steps to 95 %, as colour and as text."""
    rows = select_largest(rows)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, (name, (arm, _)) in zip(figure.subplots(1, len(BASES)), BASES.items(), strict=True):
        cells = group_cells(rows, arm)
        lambs, alphas = (sorted({key[position] for key in cells}) for position in (1, 0))
        values = [[statistics.median(map(get_value, cells[alpha, lamb])) for lamb in lambs] for alpha in alphas]
        shades = axis.imshow(values, cmap="viridis_r", aspect="auto", norm="log")
        for row, alpha in enumerate(alphas):
            for column, lamb in enumerate(lambs):
                light = shades.norm(values[row][column]) < 0.5
                style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": "black" if light else "white"}
                axis.text(column, row, format_steps(cells[alpha, lamb]), **style)
        axis.set_xticks(range(len(lambs)), [f"{lamb:g}" for lamb in lambs])
        axis.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set(xlabel="lamb", ylabel="alpha", title=name)
    return figure


if __name__ == "__main__":
    Study(HERE, list_arms, {"quick": 0, "full": 0}, make_table, draw).main()
