"""What quantized weights cost: networks with BitLinears against their full-precision twins, tuned with equal budgets.

The report of a sweep has this section where the sweep varies `model` over both kinds. Each key that it varies is one of four:

- network: `model`, and the keys below `model.linear.` but `warmup`: ternary and 2-bit weights are two networks;
- size: other keys below `model.` whose values are all whole numbers, as `model.dim` and `model.depth`;
- seed: `seed`, or the key that the sweep repeats over. Gaps are paired by it;
- tuned: all other keys. Each network at each size is compared at its own best setting, by the mean over seeds.
"""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from research.metrics import confidence_interval
from research.report.results import Setting, Sweep, parse_value
from research.trigger import higher_is_better

COMPARED_METRICS = ("val/bpb", "val/loss", "val/acc")  # the first of the two losses that there is, and accuracy
NO_RESULT_STATES = ("FAIL", "PRUNED")
GROUP_KEYS = ("model", "linear")  # options that name a network
WIDTH_KEYS = ("model.dim", "model.fields.hidden_size")
LINEAR_PREFIX, WARMUP_KEY = "model.linear.", "model.linear.warmup"
METHOD_NOTE = """Each network is compared at the setting whose mean over seeds is best. A star marks the smallest or the \
largest number that was tried: a better one may lie beyond. Settings were chosen with the same seeds and the same held-back \
data that the gaps are measured on. Lost is the mean difference of pairs of one seed, over the mean of full precision, with \
its 95 % t interval."""
Size = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Arm:
    """One network at one size, with all its runs that were evaluated."""

    network: str
    size: Size
    is_quantized: bool
    monitor: str
    runs: dict[tuple[Setting, str], dict[str, float]] = field(default_factory=dict)  # tuned setting and seed -> metrics
    failed_settings: list[Setting] = field(default_factory=list)  # of trials that failed or were pruned

    @property
    def name(self) -> str:
        return " ".join([self.network, *(f"{key.removeprefix('model.')}={value}" for key, value in self.size)])

    @property
    def budget(self) -> tuple[int, int]:
        """The number of settings that were tried, and of runs."""
        return len({*self.settings, *self.failed_settings}), len(self.runs) + len(self.failed_settings)

    @cached_property
    def settings(self) -> Counter[Setting]:
        """The number of complete runs of each tuned setting."""
        return Counter(setting for setting, _ in self.runs)

    @cached_property
    def best(self) -> Setting:
        """The setting whose mean over seeds is best, of those with the most seeds."""
        sign, most_seeds = -1 if higher_is_better(self.monitor) else 1, max(self.settings.values())
        candidates = [setting for setting, seeds in self.settings.items() if seeds == most_seeds]
        return min(candidates, key=lambda setting: sign * statistics.fmean(self.get_values(self.monitor, setting).values()))

    def get_values(self, metric: str, setting: Setting | None = None) -> dict[str, float]:
        """Return a metric by seed, at a setting or else at the best one."""
        wanted = self.best if setting is None else setting
        return {seed: run[metric] for (tuned, seed), run in self.runs.items() if tuned == wanted and metric in run}

    def format_best(self) -> str:
        """Return the best setting as text, with its stars."""
        return " ".join(f"{key}={value}{'*' * self._is_at_edge(key, value)}" for key, value in self.best)

    def _is_at_edge(self, key: str, value: str) -> bool:
        """Return whether a value is the smallest or the largest of several numbers that were tried."""
        settings = (*self.settings, *self.failed_settings)
        tried = {parse_number(text) for setting in settings for tuned_key, text in setting if tuned_key == key}
        numbers = [number for number in tried if number is not None]
        return len(numbers) > 1 and parse_number(value) in (min(numbers), max(numbers))


def parse_number(text: str) -> float | None:
    """Return an override's value as a number; None for words, null and booleans."""
    value = parse_value(text)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_whole_number(text: str) -> bool:
    value = parse_number(text)
    return value is not None and value.is_integer()


def split_keys(sweep: Sweep) -> tuple[list[str], list[str], list[str]]:
    """Return the swept keys in three parts: of the network, of the size, and those that were tuned."""
    keys = [key for key in sweep.space if key != sweep.repeat_key]
    network = [key for key in keys if key in GROUP_KEYS or (key.startswith(LINEAR_PREFIX) and key != WARMUP_KEY)]
    below = [key for key in keys if key.startswith("model.") and not key.startswith(LINEAR_PREFIX)]
    size = [key for key in below if all(is_whole_number(row.params[key]) for row in sweep.complete if key in row.params)]
    return network, size, [key for key in keys if key not in (*network, *size)]


def collect_arms(sweep: Sweep) -> list[Arm]:
    """Return the networks of a sweep, each at each size; an empty list where there is no pair to compare."""
    if not sweep.space.keys() & {*GROUP_KEYS} or len(sweep.directions) != 1:
        return []
    network_keys, size_keys, tuned_keys = split_keys(sweep)
    arms: dict[tuple[str, Size, bool], Arm] = {}
    failed: list[tuple[str, Size, Setting]] = []
    for row in sweep.rows:
        parts = [(key, row.params[key]) for key in network_keys if key in row.params]
        network = " ".join(value if key == "model" else f"{key.removeprefix(LINEAR_PREFIX)}={value}" for key, value in parts)
        size = tuple((key, int(parse_value(row.params[key]))) for key in size_keys if key in row.params)
        setting = tuple((key, row.params[key]) for key in tuned_keys if key in row.params)
        if row.state in NO_RESULT_STATES:
            failed.append((network, size, setting))
        for position, run in enumerate(row.runs if row.state == "COMPLETE" else ()):
            if sweep.monitor in run.best:
                arm_key = network, size, run.is_quantized
                arm = arms.setdefault(arm_key, Arm(*arm_key, sweep.monitor))
                arm.runs[setting, f"{row.params.get(sweep.repeat_key, '')} {position}"] = dict(run.best)
    for arm in arms.values():
        arm.failed_settings.extend(
            setting for *network_and_size, setting in failed if network_and_size == [arm.network, arm.size]
        )
    return list(arms.values()) if any(iter_pairs([*arms.values()])) else []


def iter_pairs(arms: Sequence[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    """Yield each full-precision network with the quantized ones of its size, and with those of twice its width."""
    for full in (arm for arm in arms if not arm.is_quantized):
        wider = tuple((key, 2 * value if key in WIDTH_KEYS else value) for key, value in full.size)
        comparison = {wider: "twice the width", full.size: "equal width"}  # one entry where no width is swept
        yield from ((comparison[arm.size], full, arm) for arm in arms if arm.is_quantized and arm.size in comparison)


@dataclass(frozen=True)
class Gap:
    """A metric of two networks over the seeds that both have: the means, and the loss as a share of full precision's."""

    full: float
    quantized: float
    lost: float
    half_width: float  # of the 95 % t interval of `lost`
    seeds: int

    def format_cells(self) -> tuple[str, ...]:
        interval = f" ± {self.half_width:.1%}" if self.seeds > 1 else ""
        return f"{self.full:.4f}", f"{self.quantized:.4f}", f"{self.lost:+.1%}{interval}", str(self.seeds)


def compute_gap(metric: str, full: Arm, quantized: Arm) -> Gap | None:
    """Return what the quantized network loses: a higher loss, or a lower accuracy.

    Return None without a common seed, or where the metric of full precision is 0.
    """
    full_values, quantized_values = full.get_values(metric), quantized.get_values(metric)
    seeds = [seed for seed in full_values if seed in quantized_values]
    if not any(full_values[seed] for seed in seeds):
        return None
    sign = -1 if higher_is_better(metric) else 1
    lost, half_width = confidence_interval([sign * (quantized_values[seed] - full_values[seed]) for seed in seeds])
    full_mean, quantized_mean = (statistics.fmean(arm[seed] for seed in seeds) for arm in (full_values, quantized_values))
    return Gap(full_mean, quantized_mean, lost / full_mean, half_width / full_mean, len(seeds))


def list_common_metrics(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics that every arm has, the monitor among them. Bits per byte replace the loss."""
    candidates = dict.fromkeys((*COMPARED_METRICS, arms[0].monitor))
    common = [metric for metric in candidates if all(arm.get_values(metric) for arm in arms)]
    return [metric for metric in common if not (metric == "val/loss" and "val/bpb" in common)]


def table_rows(arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table, its head first."""
    yield "full precision", "at", "quantized", "at", "", "metric", "full", "quantized", "lost", "seeds"
    for comparison, full, quantized in iter_pairs(arms):
        for metric in list_common_metrics(arms):
            gap = compute_gap(metric, full, quantized)
            cells = gap.format_cells() if gap else ("", "", "", "")
            yield full.name, full.format_best(), quantized.name, quantized.format_best(), comparison, metric, *cells


def describe_budget(arms: Sequence[Arm]) -> str:
    """Return a sentence on the tuning budgets, equal or not, and on the settings that gave no result."""
    budgets = {arm.name: f"{pluralize(arm.budget[0], 'setting')} in {pluralize(arm.budget[1], 'run')}" for arm in arms}
    failed = [f"{len(arm.failed_settings)} of {arm.name}" for arm in arms if arm.failed_settings]
    note = f" Of these failed or were pruned: {', '.join(failed)}." if failed else ""
    if len({*budgets.values()}) == 1:
        return f"Each network at each size was tuned over {budgets[arms[0].name]}.{note}"
    return f"Tuning was not equal: {'; '.join(f'{name} had {budget}' for name, budget in budgets.items())}.{note}"


def pluralize(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def draw(arms: Sequence[Arm], folder: Path) -> None:
    """Write gap.png: each metric by size, with the 95 % t interval of each network."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    metrics = list_common_metrics(arms)
    figure = Figure(figsize=(4.5 * len(metrics), 3.2), layout="constrained")
    sizes = sorted({arm.size for arm in arms})
    labels = ["\n".join(f"{key.removeprefix('model.')} {value}" for key, value in size) for size in sizes]
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for network in dict.fromkeys(arm.network for arm in arms):
            own = sorted((arm for arm in arms if arm.network == network), key=lambda arm: arm.size)
            means, half_widths = zip(*(confidence_interval([*arm.get_values(metric).values()]) for arm in own), strict=True)
            positions = [sizes.index(arm.size) for arm in own]
            axis.errorbar(positions, means, half_widths, marker="o", capsize=3, label=network)
        axis.set(ylabel=metric, xlim=(-0.5, len(sizes) - 0.5))
        axis.set_xticks(range(len(sizes)), labels)
        axis.grid(alpha=0.3)
        axis.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "gap.png", dpi=120)
