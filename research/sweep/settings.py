"""The settings of a sweep, and how raw values become settings. Hydra imports this file at every start: nothing heavy here.

Hydra's config node of a sweeper has no types: a wrong value reaches `convert`, which names the fix more clearly than
OmegaConf does.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from omegaconf import OmegaConf

from research.contracts import contract
from research.ranges import NonNegativeInt, PositiveFloat, PositiveInt, ValueType

Settings = TypeVar("Settings")
Reduction = Literal["mean", "median", "min", "max"]
BOUND = re.compile(r"\s*(<=|>=|<|>)\s*([-+.\w]+)\s*")
ONE_RUN = {"n": 1, "over": "seed", "reduce": "mean"}  # no repeats
EXAMPLES = {
    "params": "{lr: 'interval(0,1)'}",
    "when": "{optim.lamb: \"optim == 'grokfast'\"}",
    "constraints": "{params: '<= 2e6'}",
    "repeats": "{n: 3, over: seed}",
    "enqueue": "[{lr: 1e-3}]",
}


@dataclass
class CommonSettings:
    """Settings that both sweepers have."""

    params: dict[str, Any] = field(default_factory=dict)  # key: choice(..) | range(..) | interval(..) | {type, low, high, ..}
    direction: Any = None  # minimize | maximize, or a list of them; null: as `monitor` is better, or else minimize
    n_jobs: PositiveInt | None = None  # jobs that the launcher gets at once; null: 1 with the basic one, else 2 or all members
    study_name: str | None = None  # its folder in home; null: a new one, unless the same command has left one unfinished
    home: str | None = None  # the folder of the sweeps; null: out/name where the configuration has these
    dry_run: bool = False  # print what would be run


@dataclass
class SweepSettings(CommonSettings):
    """hydra/sweeper=grokbit, each as `hydra.sweeper.KEY`. What a sampler or a pruner leaves null has Optuna's default."""

    sampler: Any = None  # group hydra/sweeper/sampler; null: a grid where all is choices and ranges, or else TPE
    pruner: Any = None  # group hydra/sweeper/pruner; null: every trial runs to its end
    metrics: list[str] = field(default_factory=list)  # names in summary.json or in what a job returns; none: its number
    storage: Any = None  # a URL (journal:// sqlite:// postgresql:// redis:// grpc://) or a _target_; null: a journal file
    n_trials: PositiveInt | None = None  # of the study in all; null: the complete grid, or else 20
    workers: PositiveInt = 1  # processes of this machine that run trials, none waiting for another
    devices: list[NonNegativeInt] = field(default_factory=list)  # a GPU for each worker, in turn; none: as the machine is set
    max_failure_rate: Annotated[float, "[0, 1]"] = 0.5  # of n_trials; more failed trials end the sweep
    max_retries: NonNegativeInt = 2  # times that a trial whose process died is resumed
    lease: PositiveFloat = 60.0  # seconds without a sign of life after which a trial on another machine counts as dead
    search_space: dict[str, Any] = field(default_factory=dict)  # the old name of params
    custom_search_space: str | None = None  # module.function(cfg, trial) that suggests more
    when: dict[str, Any] = field(default_factory=dict)  # key: condition on other keys, without which it has no value
    constraints: dict[str, Any] = field(default_factory=dict)  # metric: "<= 2e6"
    enqueue: list[dict[str, Any]] = field(default_factory=list)  # configurations to begin with
    dedup: Literal["reuse", "resample", "allow"] = "reuse"  # what to do with a configuration that was run before
    repeats: dict[str, Any] = field(default_factory=ONE_RUN.copy)  # n runs of each configuration; `over` counts up, then reduce
    timeout: PositiveFloat | None = None  # seconds after which no trial begins
    patience: PositiveInt | None = None  # trials in a row that are no better than the best
    target_value: float | None = None  # end once a trial has reached it
    terminator: Any = None  # an optuna.terminator.Terminator as _target_
    plots: bool = True  # pictures in the report

    @property
    def is_multi_objective(self) -> bool:
        """True with more than one objective."""
        return len(self.metrics) > 1 or (isinstance(self.direction, list) and len(self.direction) > 1)

    @property
    def has_pruner(self) -> bool:
        """True if a trial may be stopped early."""
        return self.pruner is not None and not str(self.pruner["_target_"]).endswith("NopPruner")


@contract
def parse_settings(raw_settings: Mapping[str, Any]) -> SweepSettings:
    """Return the settings, checked. Raise ValueError with the setting, its value and the fix."""
    metrics = raw_settings.get("metrics")
    one_metric = {"metrics": [metrics]} if isinstance(metrics, str) else {}
    settings = convert(SweepSettings, {**raw_settings, **one_metric}, EXAMPLES)
    settings.params = settings.params or settings.search_space
    settings.repeats = ONE_RUN | settings.repeats
    for mistake in chain(find_wrong_values(settings), find_conflicts(settings)):
        raise ValueError(f"hydra.sweeper.{mistake}")
    return settings


def find_wrong_values(s: SweepSettings) -> Iterator[str]:
    """Yield what is wrong with single settings beyond their types, each with its fix."""
    for key, node in (("sampler", s.sampler), ("pruner", s.pruner)):
        if node is not None and not (isinstance(node, Mapping) and "_target_" in node):
            yield f"{key}={node}: choose an option, as hydra/sweeper/{key}={node}"
    if unknown := s.repeats.keys() - ONE_RUN:
        yield f"repeats: {', '.join(sorted(unknown))} is none of {', '.join(ONE_RUN)}"
    if s.repeats["reduce"] not in get_args(Reduction):
        yield f"repeats.reduce={s.repeats['reduce']}: give {', '.join(get_args(Reduction))}"
    if type(s.repeats["n"]) is not int or s.repeats["n"] < 1:
        yield f"repeats.n={s.repeats['n']}: give a whole number, 1 or more"
    yield from (f"constraints.{k}={v}: give a bound, as '<= 2e6'" for k, v in s.constraints.items() if parse_bound(v) is None)


@contract
def find_conflicts(s: SweepSettings) -> Iterator[str]:
    """Yield settings that exclude each other, each with its fix."""
    if s.is_multi_objective and s.has_pruner:
        yield "pruner: a study with several objectives cannot prune; give one objective, or hydra/sweeper/pruner=none"
    if s.is_multi_objective and (s.target_value is not None or s.patience is not None or s.terminator is not None):
        yield "target_value, patience and terminator are for one objective; with several give timeout or n_trials"
    if s.is_multi_objective and s.repeats["n"] > 1:
        yield f"repeats.n={s.repeats['n']}: with several objectives give repeats.n=1"
    if len(s.devices) > s.workers:
        yield f"devices={s.devices}: more devices than workers; give hydra.sweeper.workers={len(s.devices)}"
    if s.workers > 1 and ("InMemory" in str(s.storage) or str(s.storage) in ("sqlite://", "sqlite:///:memory:")):
        yield f"storage={s.storage}: workers cannot share one process's memory; leave it out for a journal"


@contract
def parse_bound(text: object) -> tuple[str, float] | None:
    """Return the sign and the number of a constraint as "<= 2e6"; None if it is no bound."""
    match = BOUND.fullmatch(str(text))
    try:
        return (match[1], float(match[2])) if match else None
    except ValueError:
        return None


@contract
def convert(settings_class: type[Settings], raw_settings: Mapping[str, Any], examples: Mapping[str, str]) -> Settings:
    """Return the settings as plain values of the annotated types. Raise ValueError with the setting, its value and the fix.

    `examples` are values of those settings that take mappings or lists of them.
    """
    values: dict[str, Any] = {}
    for setting in fields(settings_class):  # type: ignore[arg-type]
        if setting.name not in raw_settings:
            continue
        raw = raw_settings[setting.name]
        plain = OmegaConf.to_container(raw, resolve=True) if OmegaConf.is_config(raw) else raw
        if plain is None and get_origin(setting.type) in (dict, list):
            continue
        try:
            values[setting.name] = convert_value(setting.type, plain)
        except TypeError:
            example = f", as {examples[setting.name]}" if setting.name in examples else ""
            text = "null" if plain is None else plain
            message = f"hydra.sweeper.{setting.name}={text}: give {describe(setting.type)}{example}"
            raise ValueError(message) from None
    return settings_class(**values)


def convert_value(annotation: Any, value: Any) -> Any:
    """Return the value as a type has it. Raise TypeError for one that it does not take."""
    plain = strip_null(annotation)
    if value is None and plain is not annotation:
        return None
    if get_origin(plain) is list and isinstance(value, list | tuple):
        return [convert_item(get_args(plain)[0], item) for item in value]
    return convert_item(plain, value)


def strip_null(annotation: Any) -> Any:
    """Return the type of an annotation that takes null too."""
    return get_args(annotation)[0] if get_origin(annotation) in (Union, UnionType) else annotation


def convert_item(annotation: Any, value: Any) -> Any:
    """Return a value, or an item of a list, as a type has it. Raise TypeError for one that it does not take."""
    kind = get_origin(annotation)
    if annotation is Any or (kind is dict and isinstance(value, dict)):
        return value
    if annotation is str and type(value) in (int, float):
        return str(value)  # a name of digits
    if kind in (dict, list) or not (value_type := to_value_type(annotation)).accepts(value):
        raise TypeError
    return float(value) if value_type.name == "float" else value


def to_value_type(annotation: Any) -> ValueType:
    """Return the checkable form of a plain type, of one with an interval, or of a Literal."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return ValueType("choice", choices=arguments)
    if kind is Annotated:
        return ValueType(arguments[0].__name__, arguments[1])
    return ValueType(annotation.__name__)


@contract
def describe(annotation: Any) -> str:
    """Return what a type takes, in words."""
    plain = strip_null(annotation)
    words = f"a list, each item {describe_item(get_args(plain)[0])}" if get_origin(plain) is list else describe_item(plain)
    return f"{words} or null" if plain is not annotation else words


def describe_item(annotation: Any) -> str:
    """Return what a type takes that is no list."""
    return "keys and values" if get_origin(annotation) is dict else str(to_value_type(annotation))
