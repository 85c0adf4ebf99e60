"""The configuration that Hydra composes, as plain values: read by dotted keys, changed key by key."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from research.preflight.condition import Condition
from research.preflight.help import list_groups
from research.preflight.overrides import get_key, iter_variants, parse, to_override

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MISSING = object()
MAX_INTERPOLATIONS = 8  # that are followed from one key


class Compositions:
    """Composes configurations, once for each choice of options: composing takes most of the preflight's time."""

    def __init__(self) -> None:
        self.cache: dict[tuple[str, ...], dict[str, Any]] = {}
        self.sweep_lines: dict[str, str] = {}  # key -> the whole sweep over it, as it was typed

    @staticmethod
    def select_group_overrides(overrides: list["Override"]) -> list["Override"]:
        """Return the overrides that choose options; the others set single keys."""
        return [
            o for o in overrides if o.key_or_group in list_groups() or o.key_or_group.startswith(("hydra/", "hydra.searchpath"))
        ]

    def compose(self, overrides: list["Override"]) -> dict[str, Any]:
        """Return what the chosen options compose, as a copy that the caller may change; single keys are not set.

        Raises HydraException where the options do not compose.
        """
        from hydra import compose
        from omegaconf import OmegaConf

        lines = tuple(str(override.input_line) for override in self.select_group_overrides(overrides))
        if lines not in self.cache:
            composed = compose("config", list(lines), return_hydra_config=True)
            self.cache[lines] = cast(dict[str, Any], OmegaConf.to_container(composed))
        return copy.deepcopy(self.cache[lines])

    def get_study_overrides(self, overrides: list["Override"]) -> list["Override"]:
        """Return the sweeps in hydra.sweeper.params, of a study's yaml or typed, without keys that are typed themselves."""
        from hydra.errors import HydraException

        try:
            params = self.compose(next(iter_variants(overrides)))["hydra"]["sweeper"]
            params = (params.get("search_space") or {}) | (params.get("params") or {})  # the first is its old name
        except HydraException:
            return []  # the first run reports it
        for override in overrides:
            if override.key_or_group in ("hydra.sweeper.params", "hydra.sweeper.search_space") and isinstance(
                value := override.value(), dict
            ):
                params |= value  # Hydra merges mappings
        typed = {get_key(override) for override in overrides}
        flat = [
            (key, value)
            for name, node in params.items()
            for key, value in ([(name, node)] if is_parameter_spec(node) else iter_leaves(name, node))
        ]
        return parse([f"{key}={to_sweep_override(value)}" for key, value in flat if key not in typed])[0]

    def parse_conditions(self, overrides: list["Override"]) -> dict[str, Condition]:
        """Return the condition under which a sweep has a parameter; none where the sweeper will refuse one."""
        from hydra.errors import HydraException

        typed = [override.value() for override in overrides if override.key_or_group == "hydra.sweeper.when"]
        try:
            when: Any = typed[-1] if typed else self.compose(next(iter_variants(overrides)))["hydra"]["sweeper"].get("when")
            return {name: Condition(source, "when") for name, source in (when or {}).items()}
        except (HydraException, ValueError, AttributeError):
            return {}

    def drop_inactive(self, variant: list["Override"], conditions: dict[str, Condition]) -> list["Override"]:
        """Return a run of a sweep without the parameters whose condition does not hold."""
        for _ in conditions:  # a condition may depend on a parameter that another one drops
            known = {o.key_or_group: o.value() for o in variant if not o.is_delete()}
            absent = {
                name
                for name, condition in conditions.items()
                if not condition.holds(self.resolve_names(condition, known, variant))
            }
            variant = [o for o in variant if get_key(o) not in absent]
        return variant

    def resolve_names(self, condition: Condition, values: dict[str, Any], variant: list["Override"]) -> dict[str, Any]:
        """Return the values that a condition needs: those of overrides, else the composed ones."""
        from hydra.errors import HydraException

        if condition.names <= values.keys():
            return values
        try:
            composed = ComposedConfig(self.compose(variant))
        except HydraException:
            return values
        resolved = {name: composed.get_resolved(name)[0] for name in condition.names}
        choices = {name: composed.get_choice(name) for name in condition.names if name in list_groups()}
        return {name: value for name, value in resolved.items() if value is not MISSING} | choices | values


def is_parameter_spec(node: Any) -> bool:
    """Return whether a node describes one parameter: a list, or a mapping with low and high, or with choices."""
    return isinstance(node, list) or (isinstance(node, dict) and bool({"low", "choices"} & node.keys()))


def to_sweep_override(value: Any) -> str:
    """Return a parameter of a study as an override's value; of an interval its ends."""
    if isinstance(value, dict):
        value = value.get("choices") or [value.get("low"), value.get("high")]
    if isinstance(value, list):
        return f"choice({','.join(map(to_override, value))})"
    return value if isinstance(value, str) else to_override(value)


def iter_leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys below a key, with their values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from iter_leaves(f"{key}.{name}", inner)
    else:
        yield key, value


@dataclass
class ComposedConfig:
    """A configuration as plain values. Interpolations stay as text, so a value is known by the key that a user can set."""

    cfg: dict[str, Any]

    def get(self, key: str) -> Any:
        """Return the value at a dotted key, or MISSING."""
        node: Any = self.cfg
        for part in key.split(".") if key else []:
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict) and part in node:
                node = node[part]
            else:
                return MISSING
        return node

    def get_resolved(self, key: str) -> tuple[Any, str]:
        """Follow interpolations; return the value of a key, and the key that a user sets for it."""
        for _ in range(MAX_INTERPOLATIONS):
            value = self.get(key)
            other = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            if not other:
                return value, key
            key = other[1]
        return self.get(key), key

    def get_choice(self, group: str) -> str:
        """Return the option of a group."""
        return str(self.cfg["hydra"]["runtime"]["choices"].get(group))

    def set(self, key: str, value: Any) -> None:
        """Set a key, with the parents that it lacks; MISSING deletes it."""
        parent, _, last = key.rpartition(".")
        node = self.get(parent)
        if isinstance(node, list):
            node[int(last)] = value
        elif not isinstance(node, dict):
            self.set(parent, {last: value})
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
