"""Parse what a sweep varies: overrides become parameters, and their values become overrides again, word for word."""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import Any
from zlib import crc32

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep, Transformer
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from research.composition.overrides import MAX_VALUES, check_numbers, to_override
from research.contracts import contract
from research.options.condition import Condition
from research.sweep.optuna_private import list_settings


@contract
@dataclass(frozen=True)
class Parameter:
    """One key of the space. `texts` are its values as Hydra writes them, in Hydra's order; an interval has none."""

    key: str
    distribution: BaseDistribution
    texts: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()  # as Optuna stores them, in the order of texts
    when: Condition | None = None

    def suggest(self, trial: Trial) -> Any:
        """Return the trial's value; its sampler chooses unless the trial has one."""
        methods = {FloatDistribution: trial.suggest_float, IntDistribution: trial.suggest_int}
        suggest: Callable[..., Any] = methods.get(type(self.distribution), trial.suggest_categorical)
        return suggest(self.key, **list_settings(self.distribution))

    def format_value(self, value: Any) -> str:
        """Return the value as an override gives it."""
        if not self.texts:
            return to_override(value)
        if isinstance(self.distribution, CategoricalDistribution):
            return self.texts[next(i for i, v in enumerate(self.values) if type(v) is type(value) and v == value)]
        # Optuna may return a grid value with a rounding error.
        return self.texts[min(range(len(self.values)), key=lambda i: abs(self.values[i] - value))]

    @property
    def stores_texts(self) -> bool:
        """True if Optuna's values are overrides already: written as overrides once more they would be other values."""
        return self.values == self.texts and any(to_override(value) != value for value in self.values)

    def describe(self) -> str:
        """Return one line for people, and for the comparison with another study."""
        settings = sorted(list_settings(self.distribution).items())
        text = " ".join(f"{key}={value}" for key, value in settings if value is not None and value is not False)
        if self.texts:
            rest = f", ... ({crc32(','.join(self.texts).encode()):08x})" if len(self.texts) > 8 else ""
            text = f"{len(self.texts)} values: {', '.join(self.texts[:8])}{rest}"
        return f"{text} when {self.when.source}" if self.when else text


@contract
@dataclass
class Space:
    """The parameters of a sweep, and the overrides that all of its jobs have, in the order of the command line."""

    entries: dict[str, Parameter | str] = field(default_factory=dict)  # key -> a parameter, or the complete override
    values: dict[str, Any] = field(default_factory=dict)  # of the overrides, and of the configuration as conditions need it

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What varies."""
        return {key: entry for key, entry in self.entries.items() if isinstance(entry, Parameter)}

    @property
    def fixed(self) -> dict[str, str]:
        """The complete overrides of what does not vary."""
        return {key: entry for key, entry in self.entries.items() if isinstance(entry, str)}

    def describe(self) -> dict[str, str]:
        """Return a line for each parameter."""
        return {key: parameter.describe() for key, parameter in self.parameters.items()}

    def to_overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return one job's overrides; parameters of the user's own function come last."""
        texts = self.fixed | {key: f"{key}={text}" for key, text in self.format_params(params).items()}
        own = [f"{key}={to_override(value)}" for key, value in params.items() if key not in self.entries]
        return [texts[key] for key in self.entries if key in texts] + own

    def format_params(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Return the values of the space's own parameters as overrides give them."""
        return {key: p.format_value(params[key]) for key, p in self.parameters.items() if key in params}

    def add(self, key: str, entry: Parameter | str) -> None:
        """Add what a key is set to; it replaces an earlier entry of the key."""
        for known in [known for known in self.entries if known.lstrip("+") == key.lstrip("+")]:
            del self.entries[known]
        self.entries[key] = entry

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return all values of a trial, each suggested after those that its condition needs."""
        params: dict[str, Any] = {}
        for parameter in self.sort_parameters():
            if parameter.when is None or parameter.when.holds(self.get_condition_values(params)):
                params[parameter.key] = parameter.suggest(trial)
        return params

    def get_condition_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a condition can refer to: the values that are fixed, and those of `params`."""
        return self.values | {key.lstrip("+"): value for key, value in params.items()}

    def sort_parameters(self) -> list[Parameter]:
        """Return the parameters, each after those that its condition needs. Raise ValueError for a circle."""
        waiting, done = list(self.parameters.values()), list[Parameter]()
        while waiting:
            left = {parameter.key.lstrip("+") for parameter in waiting}
            ready = next((p for p in waiting if p.when is None or not p.when.names & left), None)
            if ready is None:
                circle = "; ".join(f"{p.key} when {p.when.source}" for p in waiting if p.when)
                raise ValueError(f"hydra.sweeper.when: these wait for each other: {circle}")
            done.append(ready)
            waiting.remove(ready)
        return done

    def iter_grid(self) -> Iterator[dict[str, Any]]:
        """Yield each combination once, in Hydra's order: the last key varies fastest."""
        seen, conditional = set[str](), [parameter for parameter in self.sort_parameters() if parameter.when]
        for values in product(*(parameter.values for parameter in self.parameters.values())):
            params = dict(zip(self.parameters, values, strict=True))
            for parameter in conditional:
                value = params.pop(parameter.key)
                if parameter.when and parameter.when.holds(self.get_condition_values(params)):
                    params[parameter.key] = value
            if (combination := json.dumps(self.to_overrides(params))) not in seen:
                seen.add(combination)
                yield params


@contract
def parse_space(
    params: Mapping[str, Any], arguments: Sequence[str], when: Mapping[str, str], loader: Any, config: DictConfig | None = None
) -> Space:
    """Return the space of a config and a command line; the command line wins. Raise ValueError, naming the key."""
    parser, space = OverridesParser.create(config_loader=loader), Space()

    def add_line(line: str) -> None:
        (override,) = parser.parse_overrides([line])  # parse_override would not know the options that a glob matches
        key = str(override.get_key_element())
        space.add(key, parse_parameter(key, override) if override.is_sweep_override() else line)

    for key, value in params.items():
        if isinstance(value, Mapping | list):
            parser.parse_override(f"{key}=null")  # the key is one
            space.add(key, parse_mapping(key, value if isinstance(value, Mapping) else {"choices": value}))
        else:
            add_line(f"{key}={value if isinstance(value, str) else to_override(value)}")
    for argument in arguments:
        add_line(argument)
    fixed = parser.parse_overrides(list(space.fixed.values()))
    space.values = {override.key_or_group: override.value() for override in fixed if not override.is_delete()}
    for key, source in when.items():
        add_condition(space, key, source, config)
    space.sort_parameters()
    return space


def add_condition(space: Space, key: str, source: str, config: DictConfig | None) -> None:
    """Give a parameter its condition. Raise ValueError where the condition refers to a key that is nowhere."""
    parameter = space.entries.get(key)
    if not isinstance(parameter, Parameter):
        raise ValueError(f"hydra.sweeper.when.{key}: the sweep has no parameter {key}, only: {', '.join(space.parameters)}")
    condition = Condition(source, f"hydra.sweeper.when.{key}")
    config = config or OmegaConf.create()
    choices = OmegaConf.select(config, "hydra.runtime.choices") or {}  # of groups
    configured = {name: choices.get(name) or OmegaConf.select(config, name) for name in condition.names}
    space.values = {name: value for name, value in configured.items() if value is not None} | space.values
    if unknown := ", ".join(sorted(condition.names - space.get_condition_values(space.parameters).keys())):
        raise ValueError(f"{condition.setting}={source}: {unknown} is neither swept nor in the configuration")
    space.entries[key] = replace(parameter, when=condition)


def parse_parameter(key: str, override: Override) -> Parameter:
    """Return the parameter of a swept override. Raise ValueError for one without a value."""
    check_numbers(override)
    value: Any = override.value()
    line = str(override.input_line)
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        return make_interval(key, line, value.start, value.end, "log" in value.tags)
    if isinstance(value, RangeSweep):
        return make_range(key, line, override, value)
    choices = list_values(override)
    if not choices:
        raise ValueError(f"{line}: nothing to choose from; give values, as {key}=1,2")
    return make_choice(key, [choice.text if isinstance(choice, QuotedString) else choice for choice in choices])


@contract
def list_values(override: Override) -> list[Any]:
    """Return the values of a sweep, at most MAX_VALUES + 1. A shuffled one has an order that depends on its text alone."""
    state = random.getstate()
    random.seed(crc32(str(override.input_line).encode()))  # Hydra shuffles by Python's own generator, in each process anew
    try:
        return list(islice(override.sweep_iterator(transformer=Transformer.identity), MAX_VALUES + 1))
    finally:
        random.setstate(state)


def make_choice(key: str, choices: Sequence[Any]) -> Parameter:
    """Return a choice; Optuna gets texts where it cannot store the values, or would mix them up as 1 and True."""
    texts = [to_override(value) for value in choices]
    # NaN is no choice of Optuna's: it differs from itself, and so from the study's own when that is resumed.
    has_plain_values = all(isinstance(value, str | int | float | bool | None) and value == value for value in choices)
    has_plain_values = has_plain_values and len({(type(value), value) for value in choices}) == len(set(choices))
    pairs = zip(choices if has_plain_values else texts, texts, strict=True)
    text_of = {(type(value), value): text for value, text in pairs}  # each value once
    values = tuple(value for _, value in text_of)
    return Parameter(key, CategoricalDistribution(values), tuple(text_of.values()), values)


def make_range(key: str, line: str, override: Override, value: RangeSweep) -> Parameter:
    """Return the values of Hydra's range, without its stop; in a grid a shuffled or sorted one has Hydra's order."""
    values = tuple(list_values(override))
    parameter = make_steps(key, values, abs(value.step))
    if "log" not in value.tags:
        return parameter
    low, high = min(values), max(values)
    if low <= 0 or abs(value.step) != 1 or not isinstance(parameter.distribution, IntDistribution):
        raise ValueError(f"{line}: log needs whole numbers above 0 in steps of 1; tag(log,interval({low},{high})) takes any")
    return replace(parameter, distribution=IntDistribution(low, high, log=True))


def make_steps(key: str, values: tuple[Any, ...], step: float) -> Parameter:
    """Return numbers that are `step` apart."""
    texts, low, high = tuple(map(to_override, values)), min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return Parameter(key, IntDistribution(low, high, step=int(step) if len(values) > 1 else 1), texts, values)
    return Parameter(key, FloatDistribution(low, high, step=float(step)), texts, values)


def make_interval(key: str, line: str, low: float, high: float, log: bool) -> Parameter:
    """Return all numbers from low to high, both included; whole numbers where both ends are."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{line}: both ends of an interval must be finite numbers")
    if low > high:
        raise ValueError(f"{line}: the interval is empty; the lower end comes first")
    if log and low <= 0:
        raise ValueError(f"{line}: the logarithm needs a lower end above 0")
    if isinstance(low, int) and isinstance(high, int):
        return Parameter(key, IntDistribution(low, high, log=log))
    return Parameter(key, FloatDistribution(float(low), float(high), log=log))


def parse_mapping(key: str, node: Mapping[str, Any]) -> Parameter:
    """Return a parameter that yaml has as a mapping: type (float, int, categorical), low, high, log, step, or choices."""
    setting = f"hydra.sweeper.params.{key}"
    kind = str(getattr(node.get("type"), "name", node.get("type", "categorical" if "choices" in node else "float")))
    if unknown := set(node) - {"type", "low", "high", "log", "step", "choices"}:
        raise ValueError(f"{setting}: {', '.join(sorted(unknown))} is none of type, low, high, log, step and choices")
    if kind == "categorical":
        if not node.get("choices"):
            raise ValueError(f"{setting}: give choices")
        return make_choice(key, list(node["choices"]))
    low, high, step, log = node.get("low"), node.get("high"), node.get("step"), bool(node.get("log"))
    if kind not in ("int", "float") or low is None or high is None:
        raise ValueError(f"{setting}: give type (float, int or categorical), low and high, or choices")
    number = int if kind == "int" else float
    numbers = [n for n in (low, high, step) if n is not None]
    if any(isinstance(n, str | bool) or (kind == "int" and int(n) != n) for n in numbers):
        raise ValueError(f"{setting}={dict(node)}: low, high and step take {'whole ' * (kind == 'int')}numbers")
    low, high = number(low), number(high)
    interval = make_interval(key, f"{setting}={dict(node)}", low, high, log)
    if step is None:
        return interval
    if step <= 0:
        raise ValueError(f"{setting}.step={step}: give a step above 0")
    if log:
        raise ValueError(f"{setting}: log and step exclude each other")
    if kind == "int":
        return make_steps(key, tuple(range(int(low), int(high) + 1, int(step))), step)
    count = min(int((high - low) / step + 1e-9) + 1, MAX_VALUES)
    return make_steps(key, tuple(low + index * float(step) for index in range(count)), step)
