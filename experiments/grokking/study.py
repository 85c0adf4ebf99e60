"""When full precision and ternary weights generalise, with the filter and without: README.md has the result."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from experiments.base import NO_PLOTS, BaseStudy, Section, format_table, list_runs, read_csv, read_overrides, write_csv
from research.contracts import contract

COLUMNS = ("model", "optim", "seed", "step", "seconds", "val/acc")
COLOURS = {"adamw": "tab:gray", "grokfast": "tab:orange"}
GRID = ("model=transformer,bitnet", "optim=adamw,grokfast", "seed=0,1,2")
HEAD = ("model", "optim", "95 % at step", "99 % at step", "at the end", "s / 1,000 steps")
Curve = list[tuple[int, float, float]]  # step, seconds, validation accuracy
Arm = tuple[str, str]  # model, optim
Curves = dict[Arm, dict[int, Curve]]  # -> seed -> curve


@contract
class Grokking(BaseStudy):
    """Two models by two optimizers, three seeds each, without tuning; results.csv has all their curves."""

    folder = Path(__file__).parent
    sizes = ("quick",)

    def get_fixed_keys(self, size: str) -> tuple[str, ...]:
        return ("experiment", "model", "optim", "seed")

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        workers = f"hydra.sweeper.workers={at_once}"
        self.sweep("curves", ["experiment=grokking", NO_PLOTS, workers, *GRID, *more], root)

    def collect(self, size: str, root: Path) -> None:
        """Write one row for each evaluation of each run."""
        rows = []
        for folder in list_runs(root / self.name / "curves"):
            overrides = read_overrides(folder)
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                record = overrides | json.loads(line)
                if "val/acc" in record:
                    rows.append({column: record[column] for column in COLUMNS})
        if not rows:
            raise SystemExit(f"{root / self.name} holds no finished run: without --collect the study does them")
        write_csv(self.folder / "results.csv", COLUMNS, rows)

    def read_curves(self) -> Curves:
        curves: Curves = defaultdict(lambda: defaultdict(list))
        for row in read_csv(self.folder / "results.csv"):
            point = int(row["step"]), float(row["seconds"]), float(row["val/acc"])
            curves[row["model"], row["optim"]][int(row["seed"])].append(point)
        return curves

    def make_sections(self) -> list[Section]:
        return [Section("quick", make_table(self.read_curves()))]

    def make_figure(self) -> Figure:
        return draw(self.read_curves())


def find_step(curve: Curve, accuracy: float) -> int | None:
    """Return the first step with that accuracy; None: not within the run."""
    return next((step for step, _, value in curve if value >= accuracy), None)


def format_step(curve: Curve, accuracy: float) -> str:
    step = find_step(curve, accuracy)
    return f"{step:,}" if step else f"not in {curve[-1][0]:,}"


@contract
def make_table(arms: Curves) -> str:
    """Return steps to 95 and 99 % for each seed, the final accuracy, and seconds for a thousand steps."""
    lines = []
    for (model, optim), seeds in arms.items():
        curves = [seeds[seed] for seed in sorted(seeds)]
        steps = [", ".join(format_step(curve, accuracy) for curve in curves) for accuracy in (0.95, 0.99)]
        ends = ", ".join(f"{curve[-1][2]:.3f}" for curve in curves)
        pace = statistics.median(1000 * curve[-1][1] / curve[-1][0] for curve in curves)
        lines.append([model, optim, *steps, ends, f"{pace:.1f}"])
    return format_table(HEAD, lines)


@contract
def draw(arms: Curves) -> Figure:
    """Draw one panel a model, one line a seed."""
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
    return figure


if __name__ == "__main__":
    Grokking().main()
