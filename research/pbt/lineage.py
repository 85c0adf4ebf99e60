"""Report who descends from whom: a table, a picture, the schedule of the best member's parameters, tags in MLflow."""

import logging
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from research.contracts import contract
from research.pbt.evolve import Member, rank_members
from research.pbt.plan import Plan
from research.report.results import render_csv
from research.run_dir import replace_file, replace_text
from research.sweep.plan import format_row
from research.tracking import fields, links, mlflow_store

log = logging.getLogger(__name__)
COLUMNS = ("generation", "member", "parent", "value", "best", "steps", "folder", "error")
REPORT_FILES = ("population.csv", "optimization_results.yaml", "lineage.png")


@contract
def report(plan: Plan, members: Sequence[Member], last: int) -> Member:
    """Write REPORT_FILES and return the best member of the generation `last`.

    If that member took no step, the ancestor that took the last one is returned: its parameters trained the weights.
    """
    keys, folder = list(plan.space.parameters), plan.folder
    winner = rank_members([m for m in members if m.generation == last], plan.maximize)[0]
    line = select_trained(trace_ancestry(members, winner))
    best = line[-1]
    rows = [[m.generation, m.number, m.parent, m.value, m.best, m.steps, m.name, m.error] for m in members]
    params = [[m.params[key] for key in keys] for m in members]
    lines = [[*COLUMNS, *keys], *(row + values for row, values in zip(rows, params, strict=True))]
    replace_text(folder / "population.csv", render_csv(lines))
    solution = {"name": "pbt", "best_params": best.params, "best_value": best.value, "folder": str(folder / best.name)}
    starts = [0, *(member.steps for member in line)]
    schedule = [{"from": a, "until": m.steps, "run": m.name, "params": m.params} for a, m in zip(starts, line, strict=False)]
    replace_text(folder / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create(solution | {"schedule": schedule})))
    with replace_file(folder / "lineage.png") as draft:
        draw_lineage(members, line, keys, plan.monitor, plan.maximize).savefig(draft, dpi=120, format="png")
    return best


@contract
def trace_ancestry(members: Sequence[Member], last: Member) -> list[Member]:
    """Return a member and those whose state it continues, from the first generation on."""
    known = {(member.generation, member.number): member for member in members}
    line = [last]
    while line[0].parent is not None:
        line.insert(0, known[line[0].generation - 1, line[0].parent])
    return line


@contract
def select_trained(ancestry: Sequence[Member]) -> list[Member]:
    """Return the members that have taken a step."""
    starts = [0, *(member.steps for member in ancestry)]
    return [member for start, member in zip(starts, ancestry, strict=False) if member.steps > start]


def draw_lineage(
    members: Sequence[Member], ancestry: Sequence[Member], keys: Sequence[str], monitor: str, maximize: bool
) -> Any:
    """Return a figure: generations from left to right, members one above the other, yellow for better values.

    Below it stands each parameter that changed on the way to the best member.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    changed = [key for key in keys if any(m.params[key] != ancestry[0].params[key] for m in ancestry)]
    heights = [max(2.0, 0.3 * len({member.number for member in members})), *(1.2 for _ in changed)]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    tree, *axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for m in members:
        if m.parent is not None:
            colour = "tab:red" if m in ancestry else "black" if m.parent != m.number else "lightgray"
            tree.plot((m.generation - 1, m.generation), (m.parent, m.number), color=colour, zorder=1 + (m in ancestry))
    alive, failed = [m for m in members if m.value is not None], [m for m in members if m.value is None]
    values = [m.value for m in alive if m.value is not None]
    late = [m.value for m in alive if m.value is not None and 2 * m.generation >= ancestry[-1].generation]
    dots = tree.scatter([m.generation for m in alive], [m.number for m in alive], c=values, s=40, zorder=3)
    dots.set_cmap("viridis" if maximize else "viridis_r")
    dots.set_clim(min(late), max(late))  # the first generations are far from these values
    tree.scatter([m.generation for m in failed], [m.number for m in failed], color="black", marker="x", zorder=3)
    figure.colorbar(dots, ax=tree, label=f"{monitor} (yellow: better)", extend="both")
    tree.set(xlabel="generation", ylabel="member", title="black: copies; red: the way to the best one; x: failed")
    for axis in (tree.xaxis, tree.yaxis):
        axis.get_major_locator().set_params(integer=True)
    for axis, key in zip(axes, changed, strict=True):
        plot_parameter(axis, [0, *(m.steps for m in ancestry)], [m.params[key] for m in ancestry])
        axis.set(ylabel=key.rpartition(".")[2], xlabel="step" if key == changed[-1] else "")
    return figure


def plot_parameter(axis: Any, steps: Sequence[int], values: Sequence[Any]) -> None:
    """Plot a parameter against the step; what is not a number is plotted by its text."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    heights = list(values) if numbers else [str(value) for value in values]
    axis.step(steps, [*heights, heights[-1]], where="post", color="tab:red")
    axis.grid(alpha=0.3)
    if numbers and min(values) > 0 and max(values) > 5 * min(values):
        axis.set_yscale("log")


def find_own_uri(plan: Plan) -> str:
    """Return the URI of the store of the population's runs. Raise ValueError for a server that only their folders name."""
    return mlflow_store.find_store_uri(plan.folder, OmegaConf.select(plan.config, "tracker.uri"))


@contract
def tag_runs(plan: Plan, members: Sequence[Member], before: Sequence[Member]) -> None:
    """Tag each run in MLflow with its generation and parent; log a warning if MLflow cannot be reached."""
    parents, logged = {member.number: member for member in before}, [member for member in members if member.run_id]
    if not logged:
        return
    try:
        with mlflow_store.connect_briefly(find_own_uri(plan)) as client:
            for member in logged:
                tags: dict[str, Any] = {"pbt.generation": member.generation, "pbt.member": member.number}
                if member.parent is not None:
                    parent = parents[member.parent]
                    tags |= {"pbt.parent": parent.name, "pbt.parent_run": parent.run_id}
                for key, value in tags.items():
                    client.set_tag(member.run_id, key, value)
    except Exception as error:  # each store raises its own: the training must not end for it
        log.warning("MLflow does not know the lineage of %s: %s", ", ".join(m.name for m in members), error)


@contract
def conclude(plan: Plan, members: Sequence[Member], best: Member, status: str) -> None:
    """End the sweep's run in MLflow, if there is one, with the files, the best values and its status."""
    if not (plan.folder / mlflow_store.RUN_ID_FILE).exists():
        return
    history = dict[int, float]()  # generation -> its best value
    for member in reversed(rank_members(members, plan.maximize)):
        if member.value is not None:
            history[member.generation] = member.value
    failed = sum(m.value is None for m in members)
    metrics = {"best_value": history, "trials/complete": {0: float(len(members) - failed)}, "trials/failed": {0: float(failed)}}
    metrics[fields.format_best(plan.monitor)] = {0: best.value} if best.value is not None else {}
    tags = {f"best.{key}": str(value) for key, value in best.params.items()} | {"best_member": best.name}
    files = [(plan.folder / name, None) for name in REPORT_FILES]
    try:
        with mlflow_store.connect_briefly(find_own_uri(plan)) as client:
            parent = mlflow_store.read_run_id(client, plan.folder)
            mlflow_store.conclude(client, parent, files, metrics, tags, status)
            link = links.share_sweep(client, parent, find_own_uri(plan), plan.monitor, plan.maximize)
            print(format_row("MLflow", link), flush=True)
    except Exception as error:  # as above: the files are in the folder
        log.warning("MLflow does not have the lineage of %s: %s", plan.folder, error)
