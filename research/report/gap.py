"""What quantized weights cost: networks with BitLinears against their full-precision twins, tuned with equal budgets.

The report of a sweep has this section where the sweep varies `model` over both kinds. Each key that it varies is one of four:

- network: `model`, and the keys below `model.linear.` but `warmup`: ternary and 2-bit weights are two networks;
- size: other keys below `model.` whose values are all whole numbers, as `model.dim` and `model.depth`;
- seed: `seed`, or the key that the sweep repeats over. Gaps are paired by it;
- tuned: all other keys. Each network at each size is compared at its own best setting, by the mean over seeds.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure  # not pyplot: no global state, no window

from research.cli import format_count
from research.contracts import contract
from research.metrics import confidence_interval
from research.options.trigger import higher_is_better
from research.report.results import Setting, Sweep, compute_mean, parse_number, parse_value
from research.run_dir import replace_file

COMPARED_METRICS = ("val/bpb", "val/loss", "val/acc")  # the first of the two losses that there is, and accuracy
GROUP_KEYS = {"model", "linear"}  # options that name a network
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
    failed_settings: list[Setting]  # of trials that failed or were pruned
    runs: dict[Setting, dict[str, Mapping[str, float | None]]] = field(default_factory=dict)  # tuned setting -> seed -> metrics
    directions: Mapping[str, bool] = field(default_factory=dict)  # of the study's objectives: whether more is better

    @property
    def name(self) -> str:
        return " ".join([self.network, *(f"{key.removeprefix('model.')}={value}" for key, value in self.size)])

    @property
    def budget(self) -> tuple[int, int]:
        """The number of settings that were tried, and of runs."""
        return len({*self.runs, *self.failed_settings}), sum(map(len, self.runs.values())) + len(self.failed_settings)

    @cached_property
    def best(self) -> Setting:
        """The setting whose mean over seeds is best, of those with the most seeds."""
        most = max(map(len, self.runs.values()))
        values = {setting: select_values(runs, self.monitor).values() for setting, runs in self.runs.items()}
        means = {setting: compute_mean(by_seed) for setting, by_seed in values.items() if len(by_seed) == most}
        return (max if higher_is_better(self.monitor, self.directions) else min)(means, key=means.__getitem__)

    @contract
    def get_values(self, metric: str, setting: Setting | None = None) -> dict[str, float]:
        """Return a metric by seed, at a setting or else at the best one."""
        return select_values(self.runs[self.best if setting is None else setting], metric)

    def format_best(self) -> str:
        """Return the best setting as text. A star marks the smallest and the largest of several numbers that were tried."""
        texts = []
        for key, value in self.best:
            tried = {text for setting in (*self.runs, *self.failed_settings) for name, text in setting if name == key}
            numbers = {number for text in tried if (number := parse_number(text)) is not None}
            is_at_edge = len(numbers) > 1 and parse_number(value) in (min(numbers), max(numbers))
            texts.append(f"{key}={value}{'*' * is_at_edge}")
        return " ".join(texts)


def select_values(runs: Mapping[str, Mapping[str, float | None]], metric: str) -> dict[str, float]:
    """Return a metric by seed, of the runs that have it."""
    return {seed: value for seed, run in runs.items() if (value := run.get(metric)) is not None}


def split_keys(sweep: Sweep) -> tuple[list[str], list[str], list[str]]:
    """Return the swept keys in three parts: of the network, of the size, and those that were tuned."""
    keys = [key for key in sweep.space if key != sweep.spec.repeat_key]
    network = [key for key in keys if key in GROUP_KEYS or (key.startswith(LINEAR_PREFIX) and key != WARMUP_KEY)]
    below = [key for key in keys if key.startswith("model.") and not key.startswith(LINEAR_PREFIX)]
    values = {key: {parse_number(row.params[key]) for row in sweep.complete if key in row.params} for key in below}
    size = [key for key in below if all(value is not None and float(value).is_integer() for value in values[key])]
    return network, size, [key for key in keys if key not in (*network, *size)]


@contract
def collect_arms(sweep: Sweep) -> list[Arm]:
    """Return the networks of a sweep, each at each size; an empty list where there is no pair to compare."""
    if GROUP_KEYS.isdisjoint(sweep.space) or len(sweep.directions) != 1:
        return []
    network_keys, size_keys, tuned_keys = split_keys(sweep)
    arms: dict[tuple[str, Size, bool], Arm] = {}
    directions = {name: way == "maximize" for name, way in zip(sweep.objectives, sweep.directions, strict=True)}
    failed: defaultdict[tuple[str, Size], list[Setting]] = defaultdict(list)
    for row in sweep.rows:
        parts = row.select_params(network_keys)
        network = " ".join(value if key == "model" else f"{key.removeprefix(LINEAR_PREFIX)}={value}" for key, value in parts)
        size = tuple((key, int(parse_value(text))) for key, text in row.select_params(size_keys))
        setting = row.select_params(tuned_keys)
        if row.state in ("FAIL", "PRUNED"):
            failed[network, size].append(setting)
        for index, run in enumerate(row.runs.values() if row.state == "COMPLETE" else ()):
            if run.best.get(sweep.monitor) is not None:
                arm_key = network, size, run.quantized_params > 0
                arm = arms.setdefault(arm_key, Arm(*arm_key, sweep.monitor, failed[network, size], directions=directions))
                arm.runs.setdefault(setting, {})[f"{row.params.get(sweep.spec.repeat_key, '')} {index}"] = run.best
    return list(arms.values()) if any(iter_pairs([*arms.values()])) else []


def iter_pairs(arms: Sequence[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    """Yield each full-precision network with the quantized ones of its size, and with those of twice its width."""
    for full in (arm for arm in arms if not arm.is_quantized):
        wider = tuple((key, 2 * value if key in WIDTH_KEYS else value) for key, value in full.size)
        comparison = {wider: "twice the width", full.size: "equal width"}  # one entry where no width is swept
        yield from ((comparison[arm.size], full, arm) for arm in arms if arm.is_quantized and arm.size in comparison)


def compute_gap(metric: str, full: Arm, quantized: Arm) -> tuple[float, float, float, float, int] | None:
    """Return what the quantized network loses, a higher loss or a lower accuracy, over the seeds that both networks have.

    Return both means, the mean loss as a share of full precision's mean, half the width of its 95 % t interval, and the
    number of seeds. Return None without a common seed, or where the metric of full precision is 0.
    """
    full_values, quantized_values = full.get_values(metric), quantized.get_values(metric)
    pairs = [(value, quantized_values[seed]) for seed, value in full_values.items() if seed in quantized_values]
    if not any(value for value, _ in pairs):
        return None
    sign = -1 if higher_is_better(metric, full.directions) else 1
    lost, half_width = confidence_interval([sign * (quantized_value - value) for value, quantized_value in pairs])
    full_mean, quantized_mean = map(compute_mean, zip(*pairs, strict=True))
    return full_mean, quantized_mean, lost / full_mean, half_width / full_mean, len(pairs)


def list_common_metrics(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics that every arm has, the monitor among them. Bits per byte replace the loss."""
    candidates = dict.fromkeys((*COMPARED_METRICS, arms[0].monitor))
    common = [metric for metric in candidates if all(arm.get_values(metric) for arm in arms)]
    return [metric for metric in common if not (metric == "val/loss" and "val/bpb" in common)]


@contract
def table_rows(arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table, its head first."""
    yield "full precision", "at", "quantized", "at", "", "metric", "full", "quantized", "lost", "seeds"
    for comparison, full, quantized in iter_pairs(arms):
        for metric in list_common_metrics(arms):
            cells = ("", "", "", "")
            if gap := compute_gap(metric, full, quantized):
                full_mean, quantized_mean, lost, half_width, seeds = gap
                interval = f" ± {half_width:.1%}" if seeds > 1 else ""
                cells = f"{full_mean:.4f}", f"{quantized_mean:.4f}", f"{lost:+.1%}{interval}", str(seeds)
            yield full.name, full.format_best(), quantized.name, quantized.format_best(), comparison, metric, *cells


@contract
def describe_budget(arms: Sequence[Arm]) -> str:
    """Return a sentence on the tuning budgets, equal or not, and on the settings that gave no result."""
    budgets = {}
    for arm in arms:
        settings, runs = arm.budget
        budgets[arm.name] = f"{format_count(settings, 'setting')} in {format_count(runs, 'run')}"
    failed = [f"{len(arm.failed_settings)} of {arm.name}" for arm in arms if arm.failed_settings]
    note = f" Of these failed or were pruned: {', '.join(failed)}." if failed else ""
    if len({*budgets.values()}) == 1:
        return f"Each network at each size was tuned over {budgets[arms[0].name]}.{note}"
    return f"Tuning was not equal: {'; '.join(f'{name} had {budget}' for name, budget in budgets.items())}.{note}"


@contract
def plot(arms: Sequence[Arm]) -> Figure:
    """Return each metric by size, with the 95 % t interval of each network."""
    metrics, sizes = list_common_metrics(arms), sorted({arm.size for arm in arms})
    figure = Figure(figsize=(4.5 * len(metrics), 3.2), layout="constrained")
    labels = ["\n".join(f"{key.removeprefix('model.')} {value}" for key, value in size) for size in sizes]
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for network in dict.fromkeys(arm.network for arm in arms):
            own = sorted((arm for arm in arms if arm.network == network), key=lambda arm: arm.size)
            means, half_widths = zip(*(confidence_interval([*arm.get_values(metric).values()]) for arm in own), strict=True)
            axis.errorbar([sizes.index(arm.size) for arm in own], means, half_widths, marker="o", capsize=3, label=network)
        axis.set(ylabel=metric, xlim=(-0.5, len(sizes) - 0.5))
        axis.set_xticks(range(len(sizes)), labels)
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


@contract
def draw(arms: Sequence[Arm], folder: Path) -> None:
    """Write gap.png."""
    figure = plot(arms)
    with replace_file(folder / "gap.png") as draft:
        figure.savefig(draft, dpi=120, format="png")
