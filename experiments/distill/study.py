"""What a teacher brings a ternary language model, with three controls: README.md has the result."""

import random
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from experiments.base import NO_PLOTS, format_table
from experiments.results import compute_ratio
from experiments.seeds import Row, SeedStudy, format_mean, get_values
from research.contracts import contract

TEXT = ("data=text", "data.seq_len=128", "batch_size=16", "eval_every=500", "precision=fp32")
FULL = (*TEXT, "model=transformer", "lr=5e-3")
TERNARY = (*TEXT, "model=bitnet", "lr=1e-2")
STEPS = "steps=1500"
LONG = "steps=4000"  # of plain training in the CPU time of a teacher and its student: see README.md
WARMUP = "model.linear.warmup=250"  # a sixth of the steps
TAUGHT = ("objective=distill", "objective.weight=1")
FROM_FULL = (*TEXT, "model=bitnet", "lr=3e-3", STEPS, WARMUP, "resume.weights_only=true")
FULL_NAME, PLAIN, TWIN = "full", "plain", "full_taught"
ON_FULL = {TAUGHT[0]: "objective.teacher", "resume.weights_only=true": "resume.path"}  # what names the full-precision run


@contract
class Distill(SeedStudy):
    """Full precision, ternary without a teacher, and ternary with one, which is the full-precision run of the same seed.

    From new weights, and from those of that run. Controls: ternary without a teacher for as much work as teacher and student
    take, full precision with a teacher, and from the same weights without a teacher.
    """

    folder = Path(__file__).parent
    arms: Mapping[str, tuple[str, ...]] = {
        FULL_NAME: (*FULL, STEPS),
        PLAIN: (*TERNARY, STEPS),
        "taught": (*TERNARY, STEPS, WARMUP, *TAUGHT),
        "from_full": FROM_FULL,
        "from_full_taught": (*FROM_FULL, *TAUGHT),
        "plain_long": (*TERNARY, LONG),
        TWIN: (*FULL, STEPS, *TAUGHT),
    }

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        """Do the runs that need no other one first."""
        seeds, full = ",".join(map(str, range(self.seeds))), f"'{root}/{self.name}/{FULL_NAME}/${{seed}}'"
        needs = {name: [f"{key}={full}" for word, key in ON_FULL.items() if word in words] for name, words in self.arms.items()}
        for is_second in (False, True):
            with ThreadPoolExecutor(at_once) as pool:
                futures = [
                    pool.submit(self.sweep, name, [NO_PLOTS, *words, *needs[name], f"seed={seeds}", *more], root)
                    for name, words in self.arms.items()
                    if bool(needs[name]) == is_second
                ]
                for future in futures:
                    future.result()

    def make_table(self, rows: Mapping[str, list[Row]]) -> str:
        lines, full, plain = [], get_values(rows[FULL_NAME]), get_values(rows[PLAIN])
        for name, runs in rows.items():
            values = get_values(runs)
            over = "-" if name == FULL_NAME else format_interval(*compute_ratio(values, full, paired=True))
            left = "-" if name in (FULL_NAME, PLAIN) else format_interval(*compute_share(values, plain, full))
            lines.append([name, format_mean(runs), over, left, runs[0]["steps"]])
        return format_table(["run", "bits per byte", "over full", "loss left", "steps"], lines)

    def draw(self, rows: Mapping[str, list[Row]]) -> Figure:
        """Draw the bits per byte of each arm, a mark a seed."""
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axis = figure.subplots()
        for name, runs in rows.items():
            axis.plot([name.replace("_", "\n")] * len(runs), get_values(runs), "o", color="tab:blue", alpha=0.6)
        axis.set(ylabel="bits per byte")
        axis.grid(alpha=0.3, axis="y")
        return figure


def compute_share(
    student: Sequence[float], plain: Sequence[float], full: Sequence[float], draws: int = 10_000
) -> tuple[float, float, float]:
    """Return which share of the loss by rounding is left, (student - full) / (plain - full), of means over seeds.

    With both ends of its 95 % bootstrap interval over seeds. It is below 0 for a student that is better than full precision.
    """
    generator, seeds = random.Random(0), range(len(full))

    def compute(chosen: Sequence[int]) -> float:
        gaps = (statistics.fmean(side[seed] - full[seed] for seed in chosen) for side in (student, plain))
        return next(gaps) / next(gaps)

    shares = sorted(compute(generator.choices(seeds, k=len(seeds))) for _ in range(draws))
    return compute(seeds), shares[round(0.025 * draws)], shares[round(0.975 * draws) - 1]


def format_interval(middle: float, low: float, high: float) -> str:
    """Return a number with its interval."""
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    Distill().main()
