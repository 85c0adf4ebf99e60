"""What rounded weights cost: networks of BitLinears against their full-precision twins, all tuned with equal budgets.

A sweep has this section in its report where it varies `model` over both kinds. Each key that it varies has one of four parts:

- network: `model`, and what is below `model.linear.` but `warmup`: ternary and 2-bit weights are two networks;
- size: other keys below `model.` that are whole numbers throughout, as `model.dim` and `model.depth`;
- seed: `seed`, or what the sweep repeats over: gaps are paired by it;
- tuned: all else. Each network at each size is judged at its own best setting, by the mean over seeds.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from research.metrics import interval
from research.sweeps import Row, Sweep, read
from research.when import higher_is_better

JUDGED = ("val/bpb", "val/loss", "val/acc")  # the first that there is of the two losses, and accuracy
ENDED = ("FAIL", "PRUNED")  # states of trials that gave no result
WIDTHS = ("model.dim", "model.fields.hidden_size")
LINEAR, WARMUP = "model.linear.", "model.linear.warmup"
HOW = """Each network is judged at the setting whose mean over seeds is best; a star marks the smallest or the largest number \
that was tried: a better one may lie beyond. Settings were chosen by the same seeds and the same held-back data that gaps are \
measured on. Lost is the mean difference of pairs of one seed, over the mean of full precision, with its 95 % t interval."""
Outcomes = Callable[[Row], list[dict[str, Any]]]  # summary.json of each run of a trial
Setting = tuple[tuple[str, str], ...]
Size = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Arm:
    """One network at one size: all that was run of it and judged."""

    network: str
    size: Size
    rounded: bool
    monitor: str
    runs: dict[tuple[Setting, str], dict[str, float]] = field(default_factory=dict)  # tuned setting and seed -> metrics
    ended: list[Setting] = field(default_factory=list)  # of runs that failed or were pruned

    @property
    def name(self) -> str:
        return " ".join([self.network, *(f"{key.removeprefix('model.')}={value}" for key, value in self.size)])

    @property
    def budget(self) -> tuple[int, int]:
        """How many settings were tried, in how many runs."""
        return len({*self.settings, *self.ended}), len(self.runs) + len(self.ended)

    @cached_property
    def settings(self) -> Counter[Setting]:
        """How many runs each tuned setting had that came to their end."""
        return Counter(setting for setting, _ in self.runs)

    @cached_property
    def best(self) -> Setting:
        """The setting whose mean over seeds is best, of those that have the most seeds."""
        sign, most = -1 if higher_is_better(self.monitor) else 1, max(self.settings.values())
        full = [setting for setting, seeds in self.settings.items() if seeds == most]
        return min(full, key=lambda setting: sign * statistics.fmean(self.column(self.monitor, setting).values()))

    def column(self, metric: str, setting: Setting | None = None) -> dict[str, float]:
        """A metric by seed, at the best setting or another one."""
        wanted = self.best if setting is None else setting
        return {seed: run[metric] for (tuned, seed), run in self.runs.items() if tuned == wanted and metric in run}

    def chosen(self) -> str:
        """The best setting, with its stars."""
        return " ".join(f"{key}={value}{'*' * self._at_edge(key, value)}" for key, value in self.best)

    def _at_edge(self, key: str, value: str) -> bool:
        tried = {number(text) for setting in (*self.settings, *self.ended) for other, text in setting if other == key}
        numbers = [each for each in tried if each is not None]
        return len(numbers) > 1 and number(value) in (min(numbers), max(numbers))


def number(text: str) -> float | None:
    """What an override's value is as a number; of words, null and booleans none."""
    value = read(text)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole(text: str) -> bool:
    value = number(text)
    return value is not None and value.is_integer()


def parts(sweep: Sweep) -> tuple[list[str], list[str], list[str]]:
    """The swept keys that tell the network, the size, and what was tuned."""
    keys = [key for key in sweep.space if key != sweep.repeated]
    network = [key for key in keys if key == "model" or (key.startswith(LINEAR) and key != WARMUP)]
    below = [key for key in keys if key.startswith("model.") and not key.startswith(LINEAR)]
    size = [key for key in below if all(whole(row.params[key]) for row in sweep.complete if key in row.params)]
    return network, size, [key for key in keys if key not in (*network, *size)]


def arms(sweep: Sweep, outcomes: Outcomes) -> list[Arm]:
    """The networks of a sweep, each at each size; none where there is nothing to compare."""
    if "model" not in sweep.space or len(sweep.ways) != 1:
        return []
    networks, sizes, tuned = parts(sweep)
    found: dict[tuple[str, Size, bool], Arm] = {}
    lost: list[tuple[str, Size, Setting]] = []
    for row in sweep.rows:
        given = [(key, row.params[key]) for key in networks if key in row.params]
        network = " ".join(value if key == "model" else f"{key.removeprefix(LINEAR)}={value}" for key, value in given)
        size = tuple((key, int(read(row.params[key]))) for key in sizes if key in row.params)
        setting = tuple((key, row.params[key]) for key in tuned if key in row.params)
        if row.state in ENDED:
            lost.append((network, size, setting))
        for place, told in enumerate(outcomes(row) if row.state == "COMPLETE" else ()):
            metrics = {name: value for name, value in (told.get("best") or {}).items() if value is not None}
            if sweep.monitor in metrics:
                which = network, size, bool(told.get("rounded"))
                arm = found.setdefault(which, Arm(*which, sweep.monitor))
                arm.runs[setting, f"{row.params.get(sweep.repeated, '')} {place}"] = metrics
    every = list(found.values())
    for arm in every:
        arm.ended.extend(setting for *which, setting in lost if which == [arm.network, arm.size])
    return every if any(pairs(every)) else []


def pairs(found: Sequence[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    """Each full-precision network with the rounded ones of its size, and with those of twice its width."""
    for full in (arm for arm in found if not arm.rounded):
        wider = tuple((key, 2 * value if key in WIDTHS else value) for key, value in full.size)
        how = {wider: "twice the width", full.size: "equal width"}  # one of them where no width is swept
        yield from ((how[arm.size], full, arm) for arm in found if arm.rounded and arm.size in how)


@dataclass(frozen=True)
class Gap:
    """A metric of two networks over the seeds that both have: their means, and what is lost as shares of full precision's."""

    full: float
    rounded: float
    lost: float
    half: float  # the width of its 95 % t interval
    seeds: int

    def cells(self) -> tuple[str, ...]:
        width = f" ± {self.half:.1%}" if self.seeds > 1 else ""
        return f"{self.full:.4f}", f"{self.rounded:.4f}", f"{self.lost:+.1%}{width}", str(self.seeds)


def gap(metric: str, full: Arm, rounded: Arm) -> Gap | None:
    """Of losses more is lost, of accuracies less is left. None without a common seed, or where there is nothing to lose."""
    theirs, mine = full.column(metric), rounded.column(metric)
    seeds = [seed for seed in theirs if seed in mine]
    if not any(theirs[seed] for seed in seeds):
        return None
    sign = -1 if higher_is_better(metric) else 1
    lost, half = interval([sign * (mine[seed] - theirs[seed]) for seed in seeds])
    before, after = (statistics.fmean(arm[seed] for seed in seeds) for arm in (theirs, mine))
    return Gap(before, after, lost / before, half / before, len(seeds))


def judged(found: Sequence[Arm]) -> list[str]:
    """The metrics that every arm has; the monitor is one."""
    common = [metric for metric in dict.fromkeys((*JUDGED, found[0].monitor)) if all(arm.column(metric) for arm in found)]
    return [metric for metric in common if not (metric == "val/loss" and "val/bpb" in common)]


def lines(found: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """The table, its head first."""
    yield "full precision", "at", "rounded", "at", "", "metric", "full", "rounded", "lost", "seeds"
    for how, full, rounded in pairs(found):
        for metric in judged(found):
            lost = gap(metric, full, rounded)
            cells = lost.cells() if lost else ("", "", "", "")
            yield full.name, full.chosen(), rounded.name, rounded.chosen(), how, metric, *cells


def budget(found: Sequence[Arm]) -> str:
    """Whether tuning was fair."""
    had = {arm.name: f"{count(arm.budget[0], 'setting')} in {count(arm.budget[1], 'run')}" for arm in found}
    ended = [f"{len(arm.ended)} of {arm.name}" for arm in found if arm.ended]
    rest = f" Of these failed or were pruned: {', '.join(ended)}." if ended else ""
    if len({*had.values()}) == 1:
        return f"Each network at each size was tuned over {had[found[0].name]}.{rest}"
    return f"Tuning was not equal: {'; '.join(f'{name} had {told}' for name, told in had.items())}.{rest}"


def count(many: int, word: str) -> str:
    return f"{many} {word}{'s' * (many != 1)}"


def draw(found: Sequence[Arm], folder: Path) -> None:
    """gap.png: each metric by size, with the 95 % t intervals of each network."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    metrics = judged(found)
    figure = Figure(figsize=(4.5 * len(metrics), 3.2), layout="constrained")
    sizes = sorted({arm.size for arm in found})
    labels = ["\n".join(f"{key.removeprefix('model.')} {value}" for key, value in size) for size in sizes]
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for network in dict.fromkeys(arm.network for arm in found):
            mine = sorted((arm for arm in found if arm.network == network), key=lambda arm: arm.size)
            means, halves = zip(*(interval([*arm.column(metric).values()]) for arm in mine), strict=True)
            axis.errorbar([sizes.index(arm.size) for arm in mine], means, halves, marker="o", capsize=3, label=network)
        axis.set(ylabel=metric, xlim=(-0.5, len(sizes) - 0.5))
        axis.set_xticks(range(len(sizes)), labels)
        axis.grid(alpha=0.3)
        axis.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "gap.png", dpi=120)
