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

from research.metrics import confidence_interval
from research.report.results import Row, Sweep, parse_value
from research.trigger import higher_is_better

COMPARED_METRICS = ("val/bpb", "val/loss", "val/acc")  # the first that there is of the two losses, and accuracy
NO_RESULT_STATES = ("FAIL", "PRUNED")  # states of trials that gave no result
WIDTH_KEYS = ("model.dim", "model.fields.hidden_size")
LINEAR_PREFIX, WARMUP_KEY = "model.linear.", "model.linear.warmup"
METHOD_NOTE = """Each network is judged at the setting whose mean over seeds is best; a star marks the smallest or the largest \
number that was tried: a better one may lie beyond. Settings were chosen by the same seeds and the same held-back data that \
gaps are measured on. Lost is the mean difference of pairs of one seed, over the mean of full precision, with its 95 % t \
interval."""
SummaryLoader = Callable[[Row], list[dict[str, Any]]]  # summary.json of each run of a trial
Setting = tuple[tuple[str, str], ...]
Size = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Arm:
    """One network at one size: all that was run of it and judged."""

    network: str
    size: Size
    is_quantized: bool
    monitor: str
    runs: dict[tuple[Setting, str], dict[str, float]] = field(default_factory=dict)  # tuned setting and seed -> metrics
    failed_settings: list[Setting] = field(default_factory=list)  # of runs that failed or were pruned

    @property
    def name(self) -> str:
        return " ".join([self.network, *(f"{key.removeprefix('model.')}={value}" for key, value in self.size)])

    @property
    def budget(self) -> tuple[int, int]:
        """How many settings were tried, in how many runs."""
        return len({*self.settings, *self.failed_settings}), len(self.runs) + len(self.failed_settings)

    @cached_property
    def settings(self) -> Counter[Setting]:
        """How many runs each tuned setting had that came to their end."""
        return Counter(setting for setting, _ in self.runs)

    @cached_property
    def best(self) -> Setting:
        """The setting whose mean over seeds is best, of those that have the most seeds."""
        sign, most = -1 if higher_is_better(self.monitor) else 1, max(self.settings.values())
        full = [setting for setting, seeds in self.settings.items() if seeds == most]
        return min(full, key=lambda setting: sign * statistics.fmean(self.get_values(self.monitor, setting).values()))

    def get_values(self, metric: str, setting: Setting | None = None) -> dict[str, float]:
        """A metric by seed, at the best setting or another one."""
        wanted = self.best if setting is None else setting
        return {seed: run[metric] for (tuned, seed), run in self.runs.items() if tuned == wanted and metric in run}

    def format_best(self) -> str:
        """The best setting, with its stars."""
        return " ".join(f"{key}={value}{'*' * self._is_at_edge(key, value)}" for key, value in self.best)

    def _is_at_edge(self, key: str, value: str) -> bool:
        tried = {
            parse_number(text) for setting in (*self.settings, *self.failed_settings) for other, text in setting if other == key
        }
        numbers = [each for each in tried if each is not None]
        return len(numbers) > 1 and parse_number(value) in (min(numbers), max(numbers))


def parse_number(text: str) -> float | None:
    """What an override's value is as a number; of words, null and booleans none."""
    value = parse_value(text)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_whole_number(text: str) -> bool:
    value = parse_number(text)
    return value is not None and value.is_integer()


def split_keys(sweep: Sweep) -> tuple[list[str], list[str], list[str]]:
    """The swept keys that tell the network, the size, and what was tuned."""
    keys = [key for key in sweep.space if key != sweep.repeat_key]
    network = [key for key in keys if key == "model" or (key.startswith(LINEAR_PREFIX) and key != WARMUP_KEY)]
    below = [key for key in keys if key.startswith("model.") and not key.startswith(LINEAR_PREFIX)]
    size = [key for key in below if all(is_whole_number(row.params[key]) for row in sweep.complete if key in row.params)]
    return network, size, [key for key in keys if key not in (*network, *size)]


def collect_arms(sweep: Sweep, load_summaries: SummaryLoader) -> list[Arm]:
    """The networks of a sweep, each at each size; none where there is nothing to compare."""
    if "model" not in sweep.space or len(sweep.directions) != 1:
        return []
    networks, sizes, tuned = split_keys(sweep)
    found: dict[tuple[str, Size, bool], Arm] = {}
    lost: list[tuple[str, Size, Setting]] = []
    for row in sweep.rows:
        given = [(key, row.params[key]) for key in networks if key in row.params]
        network = " ".join(value if key == "model" else f"{key.removeprefix(LINEAR_PREFIX)}={value}" for key, value in given)
        size = tuple((key, int(parse_value(row.params[key]))) for key in sizes if key in row.params)
        setting = tuple((key, row.params[key]) for key in tuned if key in row.params)
        if row.state in NO_RESULT_STATES:
            lost.append((network, size, setting))
        for place, told in enumerate(load_summaries(row) if row.state == "COMPLETE" else ()):
            metrics = {name: value for name, value in (told.get("best") or {}).items() if value is not None}
            if sweep.monitor in metrics:
                which = network, size, bool(told.get("rounded"))
                arm = found.setdefault(which, Arm(*which, sweep.monitor))
                arm.runs[setting, f"{row.params.get(sweep.repeat_key, '')} {place}"] = metrics
    every = list(found.values())
    for arm in every:
        arm.failed_settings.extend(setting for *which, setting in lost if which == [arm.network, arm.size])
    return every if any(iter_pairs(every)) else []


def iter_pairs(arms: Sequence[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    """Each full-precision network with the rounded ones of its size, and with those of twice its width."""
    for full in (arm for arm in arms if not arm.is_quantized):
        wider = tuple((key, 2 * value if key in WIDTH_KEYS else value) for key, value in full.size)
        how = {wider: "twice the width", full.size: "equal width"}  # one of them where no width is swept
        yield from ((how[arm.size], full, arm) for arm in arms if arm.is_quantized and arm.size in how)


@dataclass(frozen=True)
class Gap:
    """A metric of two networks over the seeds that both have: their means, and what is lost as shares of full precision's."""

    full: float
    quantized: float
    lost: float
    half_width: float  # the width of its 95 % t interval
    seeds: int

    def format_cells(self) -> tuple[str, ...]:
        width = f" ± {self.half_width:.1%}" if self.seeds > 1 else ""
        return f"{self.full:.4f}", f"{self.quantized:.4f}", f"{self.lost:+.1%}{width}", str(self.seeds)


def compute_gap(metric: str, full: Arm, quantized: Arm) -> Gap | None:
    """Of losses more is lost, of accuracies less is left. None without a common seed, or where there is nothing to lose."""
    theirs, mine = full.get_values(metric), quantized.get_values(metric)
    seeds = [seed for seed in theirs if seed in mine]
    if not any(theirs[seed] for seed in seeds):
        return None
    sign = -1 if higher_is_better(metric) else 1
    lost, half = confidence_interval([sign * (mine[seed] - theirs[seed]) for seed in seeds])
    before, after = (statistics.fmean(arm[seed] for seed in seeds) for arm in (theirs, mine))
    return Gap(before, after, lost / before, half / before, len(seeds))


def list_common_metrics(arms: Sequence[Arm]) -> list[str]:
    """The metrics that every arm has; the monitor is one."""
    common = [
        metric for metric in dict.fromkeys((*COMPARED_METRICS, arms[0].monitor)) if all(arm.get_values(metric) for arm in arms)
    ]
    return [metric for metric in common if not (metric == "val/loss" and "val/bpb" in common)]


def table_rows(arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """The table, its head first."""
    yield "full precision", "at", "rounded", "at", "", "metric", "full", "rounded", "lost", "seeds"
    for how, full, rounded in iter_pairs(arms):
        for metric in list_common_metrics(arms):
            lost = compute_gap(metric, full, rounded)
            cells = lost.format_cells() if lost else ("", "", "", "")
            yield full.name, full.format_best(), rounded.name, rounded.format_best(), how, metric, *cells


def describe_budget(arms: Sequence[Arm]) -> str:
    """Whether tuning was fair."""
    had = {arm.name: f"{pluralize(arm.budget[0], 'setting')} in {pluralize(arm.budget[1], 'run')}" for arm in arms}
    ended = [f"{len(arm.failed_settings)} of {arm.name}" for arm in arms if arm.failed_settings]
    rest = f" Of these failed or were pruned: {', '.join(ended)}." if ended else ""
    if len({*had.values()}) == 1:
        return f"Each network at each size was tuned over {had[arms[0].name]}.{rest}"
    return f"Tuning was not equal: {'; '.join(f'{name} had {told}' for name, told in had.items())}.{rest}"


def pluralize(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def draw(arms: Sequence[Arm], folder: Path) -> None:
    """gap.png: each metric by size, with the 95 % t intervals of each network."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    metrics = list_common_metrics(arms)
    figure = Figure(figsize=(4.5 * len(metrics), 3.2), layout="constrained")
    sizes = sorted({arm.size for arm in arms})
    labels = ["\n".join(f"{key.removeprefix('model.')} {value}" for key, value in size) for size in sizes]
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for network in dict.fromkeys(arm.network for arm in arms):
            mine = sorted((arm for arm in arms if arm.network == network), key=lambda arm: arm.size)
            means, halves = zip(*(confidence_interval([*arm.get_values(metric).values()]) for arm in mine), strict=True)
            axis.errorbar([sizes.index(arm.size) for arm in mine], means, halves, marker="o", capsize=3, label=network)
        axis.set(ylabel=metric, xlim=(-0.5, len(sizes) - 0.5))
        axis.set_xticks(range(len(sizes)), labels)
        axis.grid(alpha=0.3)
        axis.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "gap.png", dpi=120)
