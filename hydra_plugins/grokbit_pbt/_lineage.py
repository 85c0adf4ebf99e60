"""Who descends from whom: as tags in MLflow, as a table, as a picture, and as the schedule that the best one has had."""

import csv
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hydra_plugins.grokbit_pbt._evolve import Member, ranked
from research.folder import replace_text

log = logging.getLogger(__name__)
COLUMNS = ("generation", "member", "parent", "value", "best", "steps", "folder", "error")
FILES = ("population.csv", "optimization_results.yaml", "lineage.png")


def report(folder: Path, members: Sequence[Member], keys: Sequence[str], monitor: str, maximize: bool) -> Member:
    """Write FILES and return the best of the last generation."""
    best = ranked([m for m in members if m.generation == members[-1].generation], maximize)[0]
    line = ancestry(members, best)
    with (folder / "population.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *keys])
        for m in members:
            params = [m.params[key] for key in keys]
            table.writerow([m.generation, m.number, m.parent, m.value, m.best, m.steps, m.name, m.error, *params])
    found = {"name": "pbt", "best_params": best.params, "best_value": best.value, "folder": str(folder / best.name)}
    starts = [0, *(member.steps for member in line)]
    schedule = [{"from": a, "until": m.steps, "run": m.name, "params": m.params} for a, m in zip(starts, line, strict=False)]
    replace_text(folder / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create(found | {"schedule": schedule})))
    draw(folder / "lineage.png", members, line, keys, monitor)
    return best


def ancestry(members: Sequence[Member], last: Member) -> list[Member]:
    """From the first generation to this member."""
    known = {(member.generation, member.number): member for member in members}
    line = [last]
    while line[0].parent is not None:
        line.insert(0, known[line[0].generation - 1, line[0].parent])
    return line


def draw(path: Path, members: Sequence[Member], line: Sequence[Member], keys: Sequence[str], monitor: str) -> None:
    """Generations from left to right, members one above the other; below it each parameter on the way to the best one."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    heights = [max(2.0, 0.3 * len({member.number for member in members})), *(1.2 for _ in keys)]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    tree, *axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for m in members:
        if m.parent is not None:
            colour = "tab:red" if m in line else "black" if m.parent != m.number else "lightgray"
            tree.plot((m.generation - 1, m.generation), (m.parent, m.number), color=colour, zorder=1 + (m in line))
    alive, failed = [m for m in members if m.value is not None], [m for m in members if m.value is None]
    late = [m.value for m in alive if m.value is not None and 2 * m.generation >= line[-1].generation]
    dots = tree.scatter(
        *zip(*((m.generation, m.number) for m in alive), strict=True), c=[m.value for m in alive], s=40, zorder=3
    )
    dots.set_clim(min(late), max(late))  # in the first generations all are far from there
    tree.scatter([m.generation for m in failed], [m.number for m in failed], color="black", marker="x", zorder=3)
    figure.colorbar(dots, ax=tree, label=monitor, extend="both")
    tree.set(xlabel="generation", ylabel="member", title="black: copies; red: the way to the best one; x: failed")
    for axis in (tree.xaxis, tree.yaxis):
        axis.get_major_locator().set_params(integer=True)
    for axis, key in zip(axes, keys, strict=True):
        course(axis, [0, *(m.steps for m in line)], [m.params[key] for m in line])
        axis.set(ylabel=key.rpartition(".")[2], xlabel="step" if key == keys[-1] else "")
    figure.savefig(path, dpi=120)


def course(axis: Any, steps: Sequence[int], values: Sequence[Any]) -> None:
    """A parameter against the step; what is not a number by its text."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    shown = list(values) if numbers else [str(value) for value in values]
    axis.step(steps, [*shown, shown[-1]], where="post", color="tab:red")
    axis.grid(alpha=0.3)
    if numbers and min(values) > 0 and max(values) > 5 * min(values):
        axis.set_yscale("log")


def tag(uri: str | None, members: Sequence[Member], before: Sequence[Member]) -> None:
    """Tell each run in MLflow where it stands; without MLflow, or while it cannot be reached, population.csv alone has it."""
    if not any(member.run_id for member in members):
        return
    ids = {member.number: member for member in before}
    try:
        with store(uri) as client:
            for member in members:
                tags: dict[str, Any] = {"pbt.generation": member.generation, "pbt.member": member.number}
                if member.parent is not None:
                    parent = ids[member.parent]
                    tags |= {"pbt.parent": parent.name, "pbt.parent_run": parent.run_id}
                for key, value in tags.items() if member.run_id else ():
                    client.set_tag(member.run_id, key, value)
    except Exception as error:  # whatever a store raises: the training must not end for it
        log.warning("MLflow does not know the lineage of %s: %s", ", ".join(m.name for m in members), error)


def attach(uri: str | None, folder: Path) -> None:
    """The files beside the sweep's run in MLflow, where its runs have made one."""
    note = folder / "mlflow_run_id"
    if not note.exists():
        return
    try:
        with store(uri) as client:
            for name in FILES:
                client.log_artifact(note.read_text().strip(), str(folder / name))
    except Exception as error:  # as above: the files are there
        log.warning("MLflow does not have the lineage of %s: %s", folder, error)


@contextmanager
def store(uri: str | None) -> Iterator[Any]:
    """A client of the store that the runs' tracker uses."""
    from research.store import brief
    from research.tracking import MLflow, opened

    with brief():
        yield opened(MLflow(uri).uri, made=True)
