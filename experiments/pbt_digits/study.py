"""Population-based training against random search for the same steps: README.md has the result."""

import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.base import NO_PLOTS, BaseStudy, Section, format_table, get_key, read_csv, write_csv
from research.contracts import contract
from research.run_dir import read_json

STEPS, INTERVAL = 500, 50  # of a run, of a generation
NUMBERS = [f"{name} {number}" for name in ("best", "last") for number in ("val/loss", "test/loss", "test/acc")]
LINEAGE = ["copies", "lr ratio"]  # of a population's best at the end: copies among its ancestors, its lr over its founder's
COLUMNS = ["schedule", "method", "seed", "steps", *NUMBERS, *LINEAGE]
COLOURS = {"pbt": "tab:orange", "random": "tab:gray"}
T = 2.776  # the 97.5 % point of Student's t with four degrees of freedom: five seeds
TASK = ("data=digits", "data._target_=experiments.pbt_digits.data.search_digits", "data.train_fraction=0.4", "model=bitmlp",
        "model.dim=64", "monitor=val/loss", f"steps={STEPS}", "~callbacks.curve", "lr=tag(log,interval(1e-4,1e-1))",
        "optim.weight_decay=tag(log,interval(1e-2,10))", "optim.lamb=interval(0,5)")  # fmt: skip
METHODS = {
    "pbt": ("hydra/sweeper=pbt", "hydra.sweeper.population=8", f"hydra.sweeper.interval={INTERVAL}"),
    "random": ("hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=8", NO_PLOTS),
}
SEED_KEYS = {"pbt": "hydra.sweeper.seed", "random": "hydra.sweeper.sampler.seed"}
Searches = dict[str, dict[str, dict[int, dict[str, float]]]]  # schedule -> method -> seed -> number


@contract
class PbtDigits(BaseStudy):
    """Both searches under two schedules, with five seeds each."""

    folder = Path(__file__).parent
    sizes = ("quick",)

    def get_fixed_keys(self, size: str) -> set[str]:
        words = (*TASK, *METHODS["pbt"], *METHODS["random"])
        return {"schedule", "seed", *SEED_KEYS.values(), *map(get_key, words)}

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        for schedule in ("cosine", "constant"):
            for seed in range(5):
                for method, settings in METHODS.items():
                    own = [f"schedule={schedule}", f"seed={seed}", f"{SEED_KEYS[method]}={seed}"]
                    self.sweep(f"{method}_{schedule}_{seed}", [*settings, *TASK, *own, *more], root)

    def collect(self, size: str, root: Path) -> None:
        """Write one row for each search, with the losses of its choice on digits that it never saw."""
        searches = sorted(path for path in (root / self.name).glob("*") if path.name.count("_") == 2)
        if not searches:
            raise SystemExit(f"{root / self.name} holds no search: without --collect the study does them")
        write_csv(self.folder / "results.csv", COLUMNS, map(read_search, searches))

    def read_searches(self) -> Searches:
        searches: Searches = defaultdict(lambda: defaultdict(dict))
        for row in read_csv(self.folder / "results.csv"):
            numbers = {key: float(row[key]) for key in COLUMNS[3:] if row[key]}
            searches[row["schedule"]][row["method"]][int(row["seed"])] = numbers
        return searches

    def make_sections(self) -> list[Section]:
        searches = self.read_searches()
        return [Section("quick", make_table(searches), describe_selection(searches))]

    def make_figure(self) -> Figure:
        return draw(self.read_searches())


def read_search(search: Path) -> dict[str, Any]:
    """Return the row of a search.

    `best` is the checkpoint of the lowest val/loss that any run had at any evaluation, `last` the one of the lowest val/loss
    after the last step.
    """
    method, schedule, seed = search.name.split("_")
    runs = {path.parent: read_json(path) for path in sorted(search.glob("*/summary.json"))}
    row: dict[str, Any] = {"schedule": schedule, "method": method, "seed": seed}
    row["steps"] = sum(summary["steps"] - get_first_step(folder.name) for folder, summary in runs.items())
    candidates = {"best": [(run["best"]["val/loss"], folder, int(run["best"]["step"])) for folder, run in runs.items()]}
    candidates["last"] = [(run["metrics"]["val/loss"], folder, STEPS) for folder, run in runs.items()]
    for name, entries in candidates.items():
        checkpoints = [(value, folder / "checkpoints" / f"step-{step:08d}") for value, folder, step in entries]
        value, checkpoint = min(entry for entry in checkpoints if entry[1].exists())
        row[f"{name} val/loss"] = value
        row[f"{name} test/loss"], row[f"{name} test/acc"] = evaluate_checkpoint(checkpoint)
    return row | dict(zip(LINEAGE, trace_lineage(search), strict=True)) if method == "pbt" else row


def trace_lineage(search: Path) -> tuple[int, float]:
    """Return the copies among the ancestors of the last generation's best member, and its lr over that of its founder."""
    with (search / "population.csv").open() as file:
        rows = {row["folder"]: row for row in csv.DictReader(file)}
    last = [row for row in rows.values() if int(row["steps"]) == STEPS and row["value"]]
    line = [min(last, key=lambda row: float(row["value"]))]
    while line[0]["parent"]:
        line.insert(0, rows[f"g{int(line[0]['generation']) - 1}m{line[0]['parent']}"])
    copies = sum(row["parent"] not in ("", row["member"]) for row in line)
    return copies, float(line[-1]["lr"]) / float(line[0]["lr"])


def get_first_step(run: str) -> int:
    """Return the step at which a run starts: a member of generation n continues one of the generation before."""
    return int(run[1:].partition("m")[0]) * INTERVAL if run.startswith("g") else 0


def evaluate_checkpoint(checkpoint: Path) -> tuple[float, float]:
    """Return loss and accuracy on the held-out half of the digits."""
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    from experiments.pbt_digits.data import load_held_out
    from research.load import instantiate
    from research.losses import classification
    from research.training.evaluate import evaluate

    config = OmegaConf.load(checkpoint.parents[1] / "config.yaml")
    model = instantiate(config.model, instantiate(config.data).shape)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    metrics = evaluate(model, load_held_out(config.data.split_seed), classification, batch_size=512)
    return metrics["val/loss"], metrics["val/acc"]


@contract
def format_mean(values: list[float], digits: int = 3, sign: str = "") -> str:
    """Return the mean and its 95 % interval (t)."""
    half = T * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):{sign}.{digits}f} ± {half:.{digits}f}"


@contract
def make_table(searches: Searches) -> str:
    """Return mean and interval for each method, and for the difference of both at the same seed."""
    lines = []
    for schedule, methods in searches.items():
        for method, seeds in methods.items():
            cells = [format_mean([row[number] for row in seeds.values()]) for number in NUMBERS]
            lines.append([schedule, method, *cells])
        pairs = [(methods["pbt"][seed], methods["random"][seed]) for seed in methods["pbt"]]
        cells = [format_mean([one[number] - other[number] for one, other in pairs], sign="+") for number in NUMBERS]
        lines.append(["", "pbt - random", *cells])
    return format_table(["schedule", "", *NUMBERS], lines)


def describe_selection(searches: Searches) -> str:
    """Return a sentence on the lineages: copies among ancestors, and the final lr over the first one."""
    best = [row for methods in searches.values() for row in methods["pbt"].values()]
    copies, ratio = ([row[key] for row in best] for key in LINEAGE)
    mean = f"{statistics.fmean(copies):.1f} ({min(copies):.0f} to {max(copies):.0f})"
    return f"copies among the ancestors of the best: {mean}; its lr over its founder's: {min(ratio):.2f} to {max(ratio):.2f}"


@contract
def draw(searches: Searches) -> Figure:
    """Draw each search as a point; a line joins those of one seed."""
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
    return figure


if __name__ == "__main__":
    PbtDigits().main()
