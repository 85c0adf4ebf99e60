"""What ternary weights lose against full precision, each at its best learning rate: README.md has the result."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.base import NO_PLOTS, BaseStudy, Section, format_table, list_runs, read_csv, read_overrides, write_csv
from research.contracts import contract
from research.metrics import confidence_interval
from research.report import gap
from research.report.results import Row, Sweep
from research.run_dir import Summary, read_json
from research.tracking.study_spec import StudySpec

KEYS = {"model": "model", "model.dim": "width", "model.depth": "depth", "lr": "lr", "seed": "seed"}  # key -> column
METRICS = ("val/bpb", "val/acc")
COLUMNS = ("data", *KEYS.values(), *METRICS)
FILES = {"quick": "quick.csv", "full": "results.csv"}
TERNARY_MODELS = ("bitnet", "bitmlp")
COLOURS = {False: "tab:gray", True: "tab:blue"}
DIGITS, TEXT = "experiment=bitnet_gap_digits", "experiment=bitnet_gap"
QUICK = ("model.dim=32,64,128", "model.depth=1", "lr=3e-3,1e-2,3e-2", "seed=0,1", "steps=500")
Rows = list[dict[str, str]]


@contract
class BitnetGap(BaseStudy):
    """Digits: every learning rate with every seed. Text: rates by seed 0, then the best one with four more seeds."""

    folder = Path(__file__).parent

    def get_fixed_keys(self, size: str) -> tuple[str, ...]:
        return ("experiment", *KEYS, "steps")

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        def sweep(name: str, *overrides: str) -> None:
            self.sweep(name, [NO_PLOTS, f"hydra.sweeper.workers={at_once}", *overrides, *more], root)

        if size == "quick":
            sweep("quick", DIGITS, *QUICK)
            return
        sweep("digits", DIGITS)
        sweep("lr", TEXT, "seed=0")
        sweep("lr_low", TEXT, "seed=0", "model.dim=256", "lr=1.25e-3")
        runs = [run for name in ("lr", "lr_low") for run in list_runs(root / self.name / name)]
        for arm in build_arms([format_row(read_run(run)) for run in runs]):
            dim, lr = dict(arm.size)["model.dim"], dict(arm.best)["lr"]
            overrides = (f"model={arm.network}", f"model.dim={dim}", f"lr={lr}", "seed=1,2,3,4")
            sweep(f"best_{arm.network}_{dim}", TEXT, *overrides)

    def collect(self, size: str, root: Path) -> None:
        """Write one row for each run: its best evaluation by its monitor."""
        sweeps = [path for path in (root / self.name).glob("*") if path.is_dir()]
        if not (runs := [run for sweep in sweeps for run in list_runs(sweep)]):
            raise SystemExit(f"{root / self.name} holds no finished run: without --collect the study does them")
        write_csv(self.folder / FILES[size], COLUMNS, map(format_row, sorted(map(read_run, runs))))

    def read_arms(self, file: str) -> dict[str, list[gap.Arm]]:
        """Return the arms of each task in a file of results."""
        rows_by_task: dict[str, Rows] = {}
        for row in read_csv(self.folder / file):
            rows_by_task.setdefault(row["data"], []).append(row)
        return {task: build_arms(rows) for task, rows in rows_by_task.items()}

    def make_sections(self) -> list[Section]:
        marked = [("quick", arms) for arms in self.read_arms(FILES["quick"]).values()]
        marked += self.read_arms(FILES["full"]).items()
        return [make_section(mark, arms) for mark, arms in marked]

    def make_figure(self) -> Figure:
        return draw(self.read_arms(FILES["full"]))


@contract
def read_run(folder: Path) -> list[Any]:
    """Return the cells of a run in the order of COLUMNS, numbers as numbers."""
    overrides, best = read_overrides(folder), read_json(folder / "summary.json")["best"]
    overrides.setdefault("model.depth", "2")  # of text, throughout
    model, *numbers = (overrides[key] for key in KEYS)
    task = "text" if "val/bpb" in best else "digits"
    return [task, model, *map(float, numbers), *(best.get(metric, "") for metric in METRICS)]


@contract
def format_row(cells: list[Any]) -> dict[str, str]:
    """Return a row of a file of results."""
    texts = (cell if isinstance(cell, str) else f"{cell:.8g}" for cell in cells)
    return dict(zip(COLUMNS, texts, strict=True))


def build_arms(rows: Rows) -> list[gap.Arm]:
    """Return the arms of which the section of a sweep's report would be made."""
    if not rows:
        return []
    monitor = next(metric for metric in METRICS if rows[0][metric])
    direction = "maximize" if monitor == "val/acc" else "minimize"
    spec = StudySpec(directions=[direction], space=dict.fromkeys(KEYS, ""))
    trials = []
    for number, row in enumerate(rows):
        params = {key: row[column] for key, column in KEYS.items()}
        best: dict[str, float | None] = {metric: float(row[metric]) for metric in METRICS if row[metric]}
        run = Summary("FINISHED", best=best, quantized_params=int(row["model"] in TERNARY_MODELS))
        trials.append(Row(number, "COMPLETE", (float(row[monitor]),), params, runs={Path(): run}))
    return gap.collect_arms(Sweep("gap", spec, [monitor], monitor, "", trials))


def make_section(mark: str, arms: list[gap.Arm]) -> Section:
    """Return the table of a task, with a note on the tuning budgets."""
    head, *lines = gap.table_rows(arms)
    return Section(mark, format_table(head, lines), gap.describe_budget(arms))


@contract
def draw(data: dict[str, list[gap.Arm]]) -> Figure:
    """Draw a panel a task: the best setting by width, with 95 % t intervals, a line for each kind and depth."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, (task, arms) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items(), strict=True):
        for quantized in (False, True):
            for depth in sorted({dict(arm.size)["model.depth"] for arm in arms}):
                line = [arm for arm in arms if (arm.is_quantized, dict(arm.size)["model.depth"]) == (quantized, depth)]
                line.sort(key=lambda arm: arm.size)
                means, halves = zip(
                    *(confidence_interval([*arm.get_values(arm.monitor).values()]) for arm in line), strict=True
                )
                axis.errorbar(
                    [dict(arm.size)["model.dim"] for arm in line], means, halves, marker="o", capsize=3,
                    color=COLOURS[quantized], linestyle="--" if depth == 1 else "-",
                    label=f"{'ternary' if quantized else 'full precision'}, {depth} block{'s' * (depth > 1)}",
                )  # fmt: skip
        widths = sorted({dict(arm.size)["model.dim"] for arm in arms})
        axis.set_xscale("log", base=2)
        axis.set(title=task, xlabel="width", ylabel=arms[0].monitor)
        axis.set_xticks(widths, widths)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    BitnetGap().main()
