"""What ternary weights cost: each ternary model of a sweep against its full-precision twin, both tuned with equal budgets.

A sweep has this section in its report where it varies `model` over both kinds. What it varies below `model.` is the size;
`seed` is repeated; every other key is tuned: each model at each size is judged at its own best setting, by the mean over
seeds. Gaps are paired by seed.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from research.metrics import higher_is_better, interval
from research.sweeps import Row, Sweep, read

JUDGED = ("val/bpb", "val/loss", "val/acc")  # the first that there is of the two losses, and accuracy
WIDTH = "model.dim"
Outcomes = Callable[[Row], list[dict[str, Any]]]  # summary.json of each run of a trial
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Arm:
    """One model at one size: all that was run of it."""

    model: str
    size: Pairs
    ternary: bool
    results: Mapping[Pairs, Mapping[str, Mapping[str, float]]]  # tuned setting -> seed -> metric -> value
    monitor: str

    @cached_property
    def best(self) -> Pairs:
        """The setting whose mean over seeds is best, of those that have the most seeds."""
        seeds = max(map(len, self.results.values()))
        sign = -1 if higher_is_better(self.monitor) else 1
        full = [setting for setting, by_seed in self.results.items() if len(by_seed) == seeds]
        return min(full, key=lambda setting: sign * statistics.fmean(self.column(self.monitor, setting).values()))

    def column(self, metric: str, setting: Pairs | None = None) -> dict[str, float]:
        """A metric by seed."""
        by_seed = self.results[self.best if setting is None else setting]
        return {seed: numbers[metric] for seed, numbers in by_seed.items() if metric in numbers}

    def name(self) -> str:
        return " ".join([self.model, *(f"{key.removeprefix('model.')}={value}" for key, value in self.size)])

    def chosen(self) -> str:
        """The tuned setting; a star where a number is the smallest or the largest that was tried: more may be beyond."""
        return " ".join(f"{key}={value}{'*' * self._at_edge(key, value)}" for key, value in self.best)

    def _at_edge(self, key: str, value: str) -> bool:
        tried = [read(dict(setting)[key]) for setting in self.results if key in dict(setting)]  # others may lack a key
        numbers = sorted({number for number in tried if isinstance(number, int | float) and not isinstance(number, bool)})
        return len(numbers) > 1 and read(value) in (numbers[0], numbers[-1])


def arms(sweep: Sweep, outcomes: Outcomes) -> list[Arm]:
    """The models of a sweep, each at each size; none where it does not vary `model` over both kinds."""
    if "model" not in sweep.space or len(sweep.ways) != 1:
        return []
    found: dict[tuple[str, Pairs], dict[Pairs, dict[str, dict[str, float]]]] = {}
    kinds: dict[str, bool] = {}
    for row in sweep.complete:
        aside = ("model", sweep.repeated)
        size = tuple((k, v) for k, v in row.params.items() if k.startswith("model.") and not k.startswith("model.linear."))
        tuned = tuple((k, v) for k, v in row.params.items() if k not in aside and (k, v) not in size)
        by_seed = found.setdefault((row.params["model"], size), {}).setdefault(tuned, {})
        for place, told in enumerate(outcomes(row)):
            kinds[row.params["model"]] = bool(told.get("ternary"))
            by_seed[f"{row.params.get(sweep.repeated, '')} {place}"] = told.get("best") or {}
    kept = {key: {t: seeds for t, seeds in results.items() if seeds} for key, results in found.items()}
    models = [Arm(m, size, kinds[m], results, sweep.monitor) for (m, size), results in kept.items() if results]
    return models if len({arm.ternary for arm in models}) == 2 else []


def pairs(found: Sequence[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    """Each full-precision model with the ternary one of its size, and with that of twice its width."""
    ternary = {arm.size: arm for arm in found if arm.ternary}
    for full in (arm for arm in found if not arm.ternary):
        if same := ternary.get(full.size):
            yield "equal width", full, same
        width = dict(full.size).get(WIDTH)
        wider = tuple((key, str(2 * int(value)) if key == WIDTH else value) for key, value in full.size)
        if width and (twice := ternary.get(wider)):
            yield "twice the width", full, twice


def gap(metric: str, full: Arm, ternary: Arm) -> tuple[list[float], list[float], tuple[float, float]]:
    """Both metrics over the seeds that both have, and what is lost, as a share of full precision's: mean and half the width
    of its 95 % t interval. Of losses more is lost, of accuracies less is left.
    """
    mine, theirs = ternary.column(metric), full.column(metric)
    seeds = [seed for seed in theirs if seed in mine]
    sign = -1 if higher_is_better(metric) else 1
    lost = [sign * (mine[seed] / theirs[seed] - 1) for seed in seeds if theirs[seed]]
    return [theirs[seed] for seed in seeds], [mine[seed] for seed in seeds], interval(lost) if lost else (0.0, 0.0)


def judged(found: Sequence[Arm]) -> list[str]:
    """The metrics that every arm has."""
    common = [metric for metric in JUDGED if all(arm.column(metric) for arm in found)]
    return [metric for metric in common if not (metric == "val/loss" and "val/bpb" in common)]


def lines(found: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """The table, its head first."""
    yield "full precision", "at", "ternary", "at", "", "metric", "full", "ternary", "lost", "seeds"
    for how, full, ternary in pairs(found):
        for metric in judged(found):
            theirs, mine, (mean, half) = gap(metric, full, ternary)
            values = (f"{statistics.fmean(theirs):.4f}", f"{statistics.fmean(mine):.4f}") if theirs else ("", "")
            lost = f"{mean:+.1%} ± {half:.1%}"
            yield full.name(), full.chosen(), ternary.name(), ternary.chosen(), how, metric, *values, lost, str(len(theirs))


def budget(found: Sequence[Arm]) -> str:
    """Whether tuning was fair."""
    counts = {arm.name(): len(arm.results) for arm in found}
    if len(set(counts.values())) == 1:
        count = next(iter(counts.values()))
        return f"Each model at each size was tuned over {count} setting{'s' * (count != 1)}."
    return "Tuning was not equal: " + ", ".join(f"{name} had {count}" for name, count in counts.items()) + " settings."


def draw(found: Sequence[Arm], folder: Path) -> None:
    """gap.png: each metric by width, or by size, with the 95 % t intervals of both kinds."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    metrics = judged(found)
    figure = Figure(figsize=(4.5 * len(metrics), 3.2), layout="constrained")
    sizes = list(dict.fromkeys(arm.size for arm in found))
    labels = ["\n".join(f"{key.removeprefix('model.')} {value}" for key, value in size) for size in sizes]
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for kind, color in ((False, "tab:gray"), (True, "tab:blue")):
            points = [
                (sizes.index(arm.size), *interval(list(arm.column(metric).values()))) for arm in found if arm.ternary == kind
            ]
            places, means, halves = zip(*sorted(points), strict=True)
            axis.errorbar(
                places, means, halves, color=color, marker="o", capsize=3, label="ternary" if kind else "full precision"
            )
        axis.set(ylabel=metric, xlim=(-0.5, len(sizes) - 0.5))
        axis.set_xticks(range(len(sizes)), labels)
        axis.grid(alpha=0.3)
        axis.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "gap.png", dpi=120)
