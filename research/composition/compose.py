"""The configuration that Hydra composes, as plain values: read by dotted keys, changed key by key."""

import copy
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import hydra
import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf import _utils as omegaconf_utils

from research.composition.overrides import get_key, iter_variants, parse, to_override
from research.contracts import contract
from research.options.condition import Condition
from research.options.conf import FOLDERS, list_groups
from research.options.files import describe_yaml_error

MISSING = object()
REFERENCE = r"\$\{(?:oc\.select:)?(?P<key>[\w.]+)(?:,(?P<default>[^{}]*))?\}"  # ${KEY}, or ${oc.select:KEY,DEFAULT}
MAX_INTERPOLATIONS = 8  # that are followed from one key


@contract
def compose(overrides: list[Override]) -> dict[str, Any]:
    """Return what the chosen options compose, as a copy that the caller may change; single keys are not set.

    Raise HydraException where the options do not compose.
    """
    lines = [str(override.input_line) for override in overrides if chooses_option(override)]
    if len(FOLDERS) > 1:  # one list of all of them, the typed ones included
        lines = [line for line in lines if not line.startswith("hydra.searchpath")]
        lines.append(f"hydra.searchpath={to_override([f'file://{folder}' for folder in FOLDERS[1:]])}")
    return copy.deepcopy(_compose_lines(tuple(lines)))


@cache  # composing takes most of the preflight's time
def _compose_lines(lines: tuple[str, ...]) -> dict[str, Any]:
    use_fast_yaml()
    try:
        composed = hydra.compose("config", list(lines), return_hydra_config=True)
    except yaml.YAMLError as error:
        raise HydraException(describe_yaml_error(error)) from None
    except (ValueError, OSError) as error:  # a yaml whose bytes are no text, or whose defaults are no list
        raise HydraException(str(error)) from None
    return cast(dict[str, Any], OmegaConf.to_container(composed))


@cache
def use_fast_yaml() -> None:
    """Let OmegaConf, and so Hydra, parse YAML with libyaml where it is there: a tenth of a mistake's answer.

    What reads the parsed nodes stays OmegaConf's own, whose private name this is; tests/composition/test_compose.py pins it.
    """
    if not yaml.__with_libyaml__ or issubclass(omegaconf_utils.get_yaml_loader(), yaml.cyaml.CParser):
        return
    parser, reader = yaml.cyaml.CParser, omegaconf_utils.get_yaml_loader()

    class Loader(parser, reader):  # type: ignore[misc, valid-type]
        def __init__(self, stream: Any) -> None:
            parser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    omegaconf_utils.get_yaml_loader = lambda: Loader


def count_composed() -> int:
    """Return how many choices of options were composed up to now."""
    return _compose_lines.cache_info().misses


@contract
def chooses_option(override: Override) -> bool:
    """Return whether an override chooses an option of a group; any other sets a single key."""
    return override.key_or_group in list_groups() or override.key_or_group.startswith(("hydra/", "hydra.searchpath"))


@contract
def read_study(overrides: list[Override]) -> tuple[list[Override], dict[str, Condition]]:
    """Return the sweeps in a sweeper's `params` over keys that are not typed themselves, and its conditions.

    Both may stand in a study's yaml or be typed. Of an interval the two ends count. What the sweeper will refuse is left out.
    """
    try:
        sweeper: dict[str, Any] = compose(next(iter_variants(overrides)))["hydra"]["sweeper"]
    except HydraException:
        return [], {}  # the first run reports it
    for override in overrides:
        node, _, setting = override.key_or_group.rpartition(".")
        if node == "hydra.sweeper" and isinstance(value := override.value(), dict):
            before = sweeper.get(setting)
            sweeper[setting] = (before if isinstance(before, dict) else {}) | value  # Hydra merges mappings
    params = (sweeper.get("search_space") or {}) | (sweeper.get("params") or {})  # the first is its old name
    lines, typed = [], {get_key(override) for override in overrides}
    for key, value in params.items():
        if isinstance(value, dict):
            value = value.get("choices") or [value[end] for end in ("low", "high") if end in value]
        if isinstance(value, list):
            value = f"choice({','.join(map(to_override, value))})"
        lines += [] if key in typed else [f"{key}={value if isinstance(value, str) else to_override(value)}"]
    conditions = dict[str, Condition]()
    with suppress(ValueError, AttributeError):
        conditions = {name: Condition(text, f"hydra.sweeper.when.{name}") for name, text in (sweeper.get("when") or {}).items()}
    return parse(lines)[0], conditions


@contract
def drop_inactive(variant: list[Override], conditions: dict[str, Condition]) -> list[Override]:
    """Return a run of a sweep without the parameters whose condition does not hold.

    Raise ValueError for a condition whose values cannot be compared.
    """
    for _ in conditions:  # a condition may depend on a parameter that another one drops
        active = {name: condition.holds(get_values(condition, variant)) for name, condition in conditions.items()}
        variant = [override for override in variant if active.get(get_key(override), True)]
    return variant


@contract
def get_values(condition: Condition, variant: list[Override]) -> dict[str, Any]:
    """Return the values that a condition needs: those of overrides, else the composed ones."""
    typed = {override.key_or_group: override.value() for override in variant if not override.is_delete()}
    try:
        composed = ComposedConfig(compose(variant))
    except HydraException:
        return typed
    values = {name: composed.get_resolved(name)[0] for name in condition.names}
    values |= {name: composed.get_choice(name) for name in condition.names if name in list_groups()}
    return {name: value for name, value in values.items() if value is not MISSING} | typed


@contract
def iter_leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys below a key, with their values."""
    left = [(key, value)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict) and value:
            left += [(f"{key}.{name}" if key else str(name), inner) for name, inner in reversed(value.items())]
        else:
            yield key, value


@contract
def iter_targets(key: str, node: Any, names: tuple[str, ...] = ("_target_",)) -> Iterator[tuple[str, str]]:
    """Yield each `_target_` at any depth of plain dicts and lists, with its key; or the values of other `names`."""
    left = [(key, node)]
    while left:
        key, node = left.pop()
        if isinstance(node, dict):
            left += [(f"{key}.{name}".lstrip("."), inner) for name, inner in node.items()]
            yield from ((f"{key}.{name}".lstrip("."), str(node[name])) for name in names if name in node)
        elif isinstance(node, list):
            left += [(f"{key}.{index}", inner) for index, inner in enumerate(node)]


def is_interpolated(value: Any) -> bool:
    """Return whether a text or a list holds a reference to another key, whose value is not known here."""
    return isinstance(value, str | list) and "${" in str(value)


@contract
@dataclass
class ComposedConfig:
    """A configuration as plain values. Interpolations stay as text, so a value is known by the key that a user can set."""

    cfg: dict[str, Any]

    def get(self, key: str) -> Any:
        """Return the value at a dotted key, or MISSING."""
        node: Any = self.cfg
        for part in key.split(".") if key else []:
            if isinstance(node, list):
                node = dict(zip(map(str, range(len(node))), node, strict=True))
            node = node.get(part, MISSING) if isinstance(node, dict) else MISSING
        return node

    def get_resolved(self, key: str) -> tuple[Any, str]:
        """Follow interpolations; return the value of a key, and the key that a user sets for it."""
        value, defaults = self.get(key), list[tuple[str, str | None]]()
        for _ in range(MAX_INTERPOLATIONS):
            other = re.fullmatch(REFERENCE, value) if isinstance(value, str) else None
            if other is None:
                break
            defaults.append((key, other["default"]))
            key = other["key"]
            value = self.get(key)
        for user_key, default in reversed(defaults):  # that of the last key which has one
            if default is not None and value in (MISSING, None):
                value, key = yaml.safe_load(default), user_key
        return value, key

    def get_choice(self, group: str) -> str:
        """Return the option of a group."""
        return str(self.cfg["hydra"]["runtime"]["choices"].get(group))

    def set(self, key: str, value: Any) -> None:
        """Set a key, with the parents that it lacks; MISSING deletes it."""
        parent, _, last = key.rpartition(".")
        for _ in range(key.count(".")):
            if isinstance(node := self.get(parent), dict | list):
                break
            value, (parent, _, last) = {last: value}, parent.rpartition(".")
        node = self.get(parent)
        if isinstance(node, list):
            node[int(last)] = value
        elif value is MISSING:
            del node[last]
        else:
            node[last] = value

    def iter_nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield every node with a `_target_`, without Hydra's own."""
        left = [(key, node) for key, node in self.cfg.items() if key != "hydra"]
        while left:
            key, node = left.pop(0)
            if isinstance(node, dict):
                left += [(f"{key}.{name}", inner) for name, inner in node.items()]
                if "_target_" in node:
                    yield key, node
