"""What a sweep varies: overrides become parameters, and a parameter's value becomes an override again, word for word."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from zlib import crc32

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep, Transformer
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from research.preflight.condition import Condition
from research.preflight.overrides import to_override

MAX_VALUES = 100_000  # elements of one choice or range


@dataclass(frozen=True)
class Parameter:
    """One key of the space. `texts` are its values as Hydra writes them, in Hydra's order; an interval has none."""

    key: str
    distribution: BaseDistribution
    texts: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()  # as Optuna keeps them, in the order of texts
    when: Condition | None = None

    def suggest(self, trial: Trial) -> Any:
        """The trial's value, chosen by its sampler unless it has one."""
        match self.distribution:
            case FloatDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_float(self.key, low, high, step=step, log=log)
            case IntDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_int(self.key, low, high, step=step, log=log)
        return trial.suggest_categorical(self.key, self.values)

    def format_value(self, value: Any) -> str:
        """The value as an override gives it."""
        if not self.texts:
            return to_override(value)
        if isinstance(self.distribution, CategoricalDistribution):
            return self.texts[next(i for i, v in enumerate(self.values) if type(v) is type(value) and v == value)]
        return self.texts[min(range(len(self.values)), key=lambda i: abs(self.values[i] - value))]  # rounding aside

    def describe(self) -> str:
        """One line for people, and for a study that is compared with another."""
        said = sorted(self.distribution._asdict().items())
        shown = " ".join(f"{key}={value}" for key, value in said if value is not None and value is not False)
        if self.texts:
            rest = f", ... ({crc32(','.join(self.texts).encode()):08x})" if len(self.texts) > 8 else ""
            shown = f"{len(self.texts)} values: {', '.join(self.texts[:8])}{rest}"
        return f"{shown} when {self.when.source}" if self.when else shown


@dataclass
class Space:
    """The parameters of a sweep, and the overrides that all of its jobs have, in the order of the command line."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)  # key -> the whole override
    order: list[str] = field(default_factory=list)  # of all keys
    config_values: dict[str, Any] = field(default_factory=dict)  # what conditions ask of the configuration

    @property
    def is_discrete(self) -> bool:
        return all(parameter.texts for parameter in self.parameters.values())

    def to_overrides(self, params: Mapping[str, Any]) -> list[str]:
        """One job's overrides; parameters that only a function of the user's suggested come last."""
        told = {key: f"{key}={text}" for key, text in self.format_params(params).items()}
        lines = [(told | self.fixed)[key] for key in self.order if key in told or key in self.fixed]
        return lines + [f"{key}={to_override(value)}" for key, value in params.items() if key not in self.parameters]

    def format_params(self, params: Mapping[str, Any]) -> dict[str, str]:
        """The values of the space's own parameters as overrides give them."""
        return {key: each.format_value(params[key]) for key, each in self.parameters.items() if key in params}

    def add(self, override: Override) -> None:
        """Take in one override: the last one of a key counts."""
        key = str(override.get_key_element())
        for known in [known for known in self.order if known.lstrip("+") == key.lstrip("+")]:
            self.order.remove(known)
            self.parameters.pop(known, None)
            self.fixed.pop(known, None)
        self.order.append(key)
        if override.is_sweep_override():
            self.parameters[key] = parse_parameter(key, override)
        else:
            self.fixed[key] = str(override.input_line)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """All values of a trial, each after those that its condition asks for."""
        params: dict[str, Any] = {}
        for each in self.sort_parameters():
            if each.when is None or each.when.holds(self.get_condition_values(params)):
                params[each.key] = each.suggest(trial)
        return params

    def get_condition_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a condition can ask for: the values so far, and the fixed ones."""
        parsed = OverridesParser.create().parse_overrides(list(self.fixed.values()))
        fixed = {each.key_or_group: each.value() for each in parsed if not each.is_delete()}
        return self.config_values | fixed | {key.lstrip("+"): value for key, value in params.items()}

    def sort_parameters(self) -> list[Parameter]:
        """Parameters in an order in which each condition can be judged. Raises ValueError where two wait for each other."""
        waiting, done = list(self.parameters.values()), list[Parameter]()
        while waiting:
            left = {each.key.lstrip("+") for each in waiting}
            free = [each for each in waiting if each.when is None or not each.when.names & left]
            if not free:
                told = "; ".join(f"{each.key} when {each.when.source}" for each in waiting if each.when)
                raise ValueError(f"hydra.sweeper.when: these wait for each other: {told}")
            done += free[:1]
            waiting.remove(free[0])
        return done

    def iter_grid(self) -> Iterator[dict[str, Any]]:
        """Each combination once, in Hydra's order: the last key turns fastest."""
        seen = set[str]()
        for number in range(self.count_combinations()):
            params, rest = dict[str, Any](), number
            for each in reversed(self.parameters.values()):
                rest, index = divmod(rest, len(each.values))
                params[each.key] = each.values[index]
            params = {each.key: params[each.key] for each in self.parameters.values()}
            for each in self.sort_parameters():
                if each.when and not each.when.holds(
                    self.get_condition_values({k: v for k, v in params.items() if k != each.key})
                ):
                    del params[each.key]
            if (mark := json.dumps(self.to_overrides(params))) not in seen:
                seen.add(mark)
                yield params

    def count_combinations(self) -> int:
        """Combinations of a discrete space, those that a condition makes the same included."""
        return math.prod(len(parameter.values) for parameter in self.parameters.values())


def parse_space(
    params: Mapping[str, Any], arguments: Sequence[str], when: Mapping[str, str], loader: Any, config: DictConfig | None = None
) -> Space:
    """The space that a config and a command line ask for; the command line wins. Raises ValueError, naming the key."""
    parser, space = OverridesParser.create(config_loader=loader), Space()
    for key, value in params.items():
        spelt = {"choices": value} if isinstance(value, list) else value
        typed = isinstance(spelt, Mapping)
        text = "choice(0)" if typed else value if isinstance(value, str) else to_override(value)
        space.add(parser.parse_override(f"{key}={text}"))
        if typed:
            space.parameters[key] = parse_mapping(key, spelt)
    for argument in arguments:
        space.add(parser.parse_override(argument))
    for key, source in when.items():
        if key not in space.parameters:
            raise ValueError(f"hydra.sweeper.when.{key}: the sweep has no parameter {key}, only: {', '.join(space.parameters)}")
        condition = Condition(source, f"hydra.sweeper.when.{key}")
        space.config_values |= {
            name: found for name in condition.names if (found := get_config_value(config, name)) is not None
        }
        known = {*space.get_condition_values({}), *(name.lstrip("+") for name in space.parameters)}
        if unknown := condition.names - known:
            raise ValueError(f"{condition.setting}={source}: {', '.join(sorted(unknown))} is neither swept nor given")
        old = space.parameters[key]
        space.parameters[key] = Parameter(key, old.distribution, old.texts, old.values, condition)
    space.sort_parameters()
    return space


def get_config_value(config: DictConfig | None, name: str) -> Any:
    """What the configuration has at a key; of a group, its option."""
    choices = OmegaConf.select(config, "hydra.runtime.choices") or {} if config is not None else {}
    return choices.get(name) or (OmegaConf.select(config, name) if config is not None else None)


def parse_parameter(key: str, override: Override) -> Parameter:
    """What one swept key may be."""
    value: Any = override.value()
    line = f"{key}={override.input_line.partition('=')[2] if override.input_line else value}"
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        return make_interval(key, line, value.start, value.end, "log" in value.tags)
    if isinstance(value, RangeSweep):
        return make_range(key, line, override, value)
    found = list(override.sweep_iterator(transformer=Transformer.identity))
    if not found:
        raise ValueError(f"{line}: nothing to choose from")
    found = [each.text if isinstance(each, QuotedString) else each for each in found]
    return make_choice(key, [to_override(each) for each in found], found)


def make_choice(key: str, texts: Sequence[str], choices: Sequence[Any]) -> Parameter:
    """A choice. Values that Optuna cannot keep, or would take for each other as 1 and True, it knows by their texts."""
    kept_so = all(isinstance(value, str | int | float | bool | None) for value in choices)
    kept_so = kept_so and len({(type(value), value) for value in choices}) == len(set(choices))
    values = tuple(choices) if kept_so else tuple(texts)
    kept = {(type(value), value): text for value, text in reversed(list(zip(values, texts, strict=True)))}
    order = list(dict.fromkeys((type(value), value) for value in values))  # each combination once
    values, texts = tuple(value for _, value in order), [kept[each] for each in order]
    return Parameter(key, CategoricalDistribution(values), tuple(texts), values)


def make_range(key: str, line: str, override: Override, value: RangeSweep) -> Parameter:
    """What Hydra's range gives: its stop is not part of it; shuffled or sorted it keeps Hydra's order in a grid."""
    if value.step == 0:
        raise ValueError(f"{line}: the step must not be 0")
    values: tuple[Any, ...] = tuple(islice(override.sweep_iterator(transformer=Transformer.identity), MAX_VALUES + 1))
    if not 0 < len(values) <= MAX_VALUES:
        raise ValueError(f"{line}: {'too many values are' if values else 'nothing is'} between start and stop")
    texts = tuple(map(to_override, values))
    low, high, step = min(values), max(values), abs(value.step)
    log = "log" in value.tags
    if log and (low <= 0 or step != 1 or not all(isinstance(v, int) for v in values)):
        raise ValueError(f"{line}: log needs whole numbers above 0 in steps of 1; tag(log,interval({low},{high})) takes any")
    if all(isinstance(v, int) for v in values):
        whole = int(step) if len(values) > 1 else 1
        return Parameter(key, IntDistribution(int(low), int(high), log=log, step=whole), texts, values)
    return Parameter(key, FloatDistribution(low, high, step=float(step)), texts, values)


def make_interval(key: str, line: str, low: float, high: float, log: bool) -> Parameter:
    """From low to high, both included; whole numbers where both ends are."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{line}: both ends of an interval are finite numbers")
    if low > high:
        raise ValueError(f"{line}: the interval is empty; the lower end comes first")
    if log and low <= 0:
        raise ValueError(f"{line}: the logarithm needs a lower end above 0")
    if isinstance(low, int) and isinstance(high, int):
        return Parameter(key, IntDistribution(low, high, log=log))
    return Parameter(key, FloatDistribution(float(low), float(high), log=log))


def parse_mapping(key: str, node: Mapping[str, Any]) -> Parameter:
    """A parameter as yaml spells it out: type (float, int, categorical), low, high, log, step, or choices."""
    setting = f"hydra.sweeper.params.{key}"
    kind = str(getattr(node.get("type"), "name", node.get("type", "categorical" if "choices" in node else "float")))
    if unknown := set(node) - {"type", "low", "high", "log", "step", "choices"}:
        raise ValueError(f"{setting}: {', '.join(sorted(unknown))} is none of type, low, high, log, step and choices")
    if kind == "categorical":
        if not (found := list(node.get("choices") or ())):
            raise ValueError(f"{setting}: give choices")
        return make_choice(key, [to_override(value) for value in found], found)
    low, high, step, log = node.get("low"), node.get("high"), node.get("step"), bool(node.get("log"))
    if kind not in ("int", "float") or low is None or high is None:
        raise ValueError(f"{setting}: give type (float, int or categorical), low and high, or choices")
    number = int if kind == "int" else float
    numbers = [low, high] if step is None else [low, high, step]
    if any(isinstance(n, str | bool) or (kind == "int" and n != int(n)) for n in numbers):
        raise ValueError(f"{setting}={dict(node)}: low, high and step take {'whole ' * (kind == 'int')}numbers")
    if step is not None and step <= 0:
        raise ValueError(f"{setting}.step={step}: give a step above 0")
    plain = make_interval(key, f"{setting}={dict(node)}", number(low), number(high), log)
    if step is None:
        return plain
    if log:
        raise ValueError(f"{setting}: log and step exclude each other")
    if kind == "int":
        values = tuple(range(int(low), int(high) + 1, int(step)))
        return Parameter(key, IntDistribution(int(low), int(high), step=int(step)), tuple(map(str, values)), values)
    count = int((high - low) / step + 1e-9) + 1
    points = tuple(float(low) + i * float(step) for i in range(min(count, MAX_VALUES)))
    return Parameter(key, FloatDistribution(low, points[-1], step=step), tuple(map(to_override, points)), points)
