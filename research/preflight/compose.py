"""What Hydra makes of the chosen options, as plain values: asked in dotted keys, changed key by key."""

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


class Compositions:
    """What Hydra makes of chosen options, each choice composed once: it takes most of the time that we have."""

    def __init__(self) -> None:
        self.cache: dict[tuple[str, ...], dict[str, Any]] = {}

    @staticmethod
    def select_group_overrides(overrides: list["Override"]) -> list["Override"]:
        return [
            o for o in overrides if o.key_or_group in list_groups() or o.key_or_group.startswith(("hydra/", "hydra.searchpath"))
        ]

    def compose(self, overrides: list["Override"]) -> dict[str, Any]:
        """The configuration, plain and ours to change; single keys are not set yet. Raises HydraException."""
        from hydra import compose
        from omegaconf import OmegaConf

        lines = tuple(str(override.input_line) for override in self.select_group_overrides(overrides))
        if lines not in self.cache:
            composed = compose("config", list(lines), return_hydra_config=True)
            self.cache[lines] = cast(dict[str, Any], OmegaConf.to_container(composed))
        return copy.deepcopy(self.cache[lines])

    def get_study_overrides(self, overrides: list["Override"]) -> list["Override"]:
        """The keys that a study's yaml sweeps, but for those that the command line sets."""
        from hydra.errors import HydraException

        try:
            params = self.compose(next(iter_variants(overrides)))["hydra"]["sweeper"].get("params") or {}
        except HydraException:
            return []  # it will be reported with the first run
        given = {get_key(override) for override in overrides}
        flat = [
            (key, value)
            for name, node in params.items()
            for key, value in ([(name, node)] if is_parameter_spec(node) else iter_leaves(name, node))
        ]
        return parse([f"{key}={to_sweep_override(value)}" for key, value in flat if key not in given])[0]

    def parse_conditions(self, overrides: list["Override"]) -> dict[str, Condition]:
        """When a sweep has a parameter; a condition that cannot be read is the sweeper's to refuse."""
        from hydra.errors import HydraException

        given = [override.value() for override in overrides if override.key_or_group == "hydra.sweeper.when"]
        try:
            when: Any = given[-1] if given else self.compose(next(iter_variants(overrides)))["hydra"]["sweeper"].get("when")
            return {name: Condition(source, "when") for name, source in (when or {}).items()}
        except (HydraException, ValueError, AttributeError):
            return {}

    def drop_inactive(self, variant: list["Override"], conditions: dict[str, Condition]) -> list["Override"]:
        """One run of a sweep without the parameters that it does not have."""
        for _ in conditions:  # one may ask for another
            known = {o.key_or_group: o.value() for o in variant if not o.is_delete()}
            absent = {
                name
                for name, condition in conditions.items()
                if not condition.holds(self.resolve_names(condition, known, variant))
            }
            variant = [o for o in variant if get_key(o) not in absent]
        return variant

    def resolve_names(self, condition: Condition, values: dict[str, Any], variant: list["Override"]) -> dict[str, Any]:
        """What a condition asks for: as given, or as composed."""
        from hydra.errors import HydraException

        if condition.names <= values.keys():
            return values
        try:
            composed = ComposedConfig(self.compose(variant))
        except HydraException:
            return values
        asked = {name: composed.get_resolved(name)[0] for name in condition.names}
        chosen = {name: composed.get_choice(name) for name in condition.names if name in list_groups()}
        return {name: value for name, value in asked.items() if value is not MISSING} | chosen | values


def is_parameter_spec(node: Any) -> bool:
    """Whether a parameter is spelled out: type, low and high, or choices."""
    return isinstance(node, list) or (isinstance(node, dict) and bool({"low", "choices"} & node.keys()))


def to_sweep_override(value: Any) -> str:
    """A parameter as the command line has it; one that is spelled out by its ends or choices."""
    if isinstance(value, dict):
        value = value.get("choices") or [value.get("low"), value.get("high")]
    return (
        f"choice({','.join(map(to_override, value))})"
        if isinstance(value, list)
        else value
        if isinstance(value, str)
        else to_override(value)
    )


def iter_leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The dotted keys below a key, with their values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from iter_leaves(f"{key}.{name}", inner)
    else:
        yield key, value


@dataclass
class ComposedConfig:
    """A configuration as plain values. Interpolations stand as written: so a value is known by the key that one sets."""

    cfg: dict[str, Any]

    def get(self, key: str) -> Any:
        """What stands at a key, or MISSING."""
        node: Any = self.cfg
        for part in key.split(".") if key else []:
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict) and part in node:
                node = node[part]
            else:
                return MISSING
        return node

    def get_resolved(self, key: str, depth: int = 8) -> tuple[Any, str]:
        """The value of a key, interpolations followed, and the key that the user can set for it."""
        value = self.get(key)
        other = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        return self.get_resolved(other[1], depth - 1) if other and depth else (value, key)

    def get_choice(self, group: str) -> str:
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
        """All nodes with a target, Hydra's own aside."""
        left = [(key, node) for key, node in self.cfg.items() if key != "hydra"]
        while left:
            key, node = left.pop(0)
            if isinstance(node, dict):
                left += [(f"{key}.{name}", inner) for name, inner in node.items()]
                if "_target_" in node:
                    yield key, node
