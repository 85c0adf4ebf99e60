"""What Hydra makes of the chosen options, as plain values: asked in dotted keys, changed key by key."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from research.preflight.condition import Condition
from research.preflight.help import groups
from research.preflight.overrides import key, parse, variants, written

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MISSING = object()


class Compositions:
    """What Hydra makes of chosen options, each choice composed once: it takes most of the time that we have."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, ...], dict[str, Any]] = {}

    @staticmethod
    def chosen(overrides: list["Override"]) -> list["Override"]:
        return [o for o in overrides if o.key_or_group in groups() or o.key_or_group.startswith(("hydra/", "hydra.searchpath"))]

    def of(self, overrides: list["Override"]) -> dict[str, Any]:
        """The configuration, plain and ours to change; single keys are not set yet. Raises HydraException."""
        from hydra import compose
        from omegaconf import OmegaConf

        lines = tuple(str(override.input_line) for override in self.chosen(overrides))
        if lines not in self.known:
            composed = compose("config", list(lines), return_hydra_config=True)
            self.known[lines] = cast(dict[str, Any], OmegaConf.to_container(composed))
        return copy.deepcopy(self.known[lines])

    def study(self, overrides: list["Override"]) -> list["Override"]:
        """The keys that a study's yaml sweeps, but for those that the command line sets."""
        from hydra.errors import HydraException

        try:
            params = self.of(next(variants(overrides)))["hydra"]["sweeper"].get("params") or {}
        except HydraException:
            return []  # it will be reported with the first run
        given = {key(override) for override in overrides}
        flat = [
            (key, value)
            for name, node in params.items()
            for key, value in ([(name, node)] if spelt(node) else leaves(name, node))
        ]
        return parse([f"{key}={swept(value)}" for key, value in flat if key not in given])[0]

    def conditions(self, overrides: list["Override"]) -> dict[str, Condition]:
        """When a sweep has a parameter; a condition that cannot be read is the sweeper's to refuse."""
        from hydra.errors import HydraException

        given = [override.value() for override in overrides if override.key_or_group == "hydra.sweeper.when"]
        try:
            when: Any = given[-1] if given else self.of(next(variants(overrides)))["hydra"]["sweeper"].get("when")
            return {name: Condition(source, "when") for name, source in (when or {}).items()}
        except (HydraException, ValueError, AttributeError):
            return {}

    def kept(self, variant: list["Override"], conditions: dict[str, Condition]) -> list["Override"]:
        """One run of a sweep without the parameters that it does not have."""
        for _ in conditions:  # one may ask for another
            known = {o.key_or_group: o.value() for o in variant if not o.is_delete()}
            absent = {
                name for name, condition in conditions.items() if not condition.holds(self.asked_for(condition, known, variant))
            }
            variant = [o for o in variant if key(o) not in absent]
        return variant

    def asked_for(self, condition: Condition, given: dict[str, Any], variant: list["Override"]) -> dict[str, Any]:
        """What a condition asks for: as given, or as composed."""
        from hydra.errors import HydraException

        if condition.names <= given.keys():
            return given
        try:
            composed = Composed(self.of(variant))
        except HydraException:
            return given
        asked = {name: composed.at(name)[0] for name in condition.names}
        chosen = {name: composed.choice(name) for name in condition.names if name in groups()}
        return {name: value for name, value in asked.items() if value is not MISSING} | chosen | given


def spelt(node: Any) -> bool:
    """Whether a parameter is spelled out: type, low and high, or choices."""
    return isinstance(node, list) or (isinstance(node, dict) and bool({"low", "choices"} & node.keys()))


def swept(value: Any) -> str:
    """A parameter as the command line has it; one that is spelled out by its ends or choices."""
    if isinstance(value, dict):
        value = value.get("choices") or [value.get("low"), value.get("high")]
    return (
        f"choice({','.join(map(written, value))})"
        if isinstance(value, list)
        else value
        if isinstance(value, str)
        else written(value)
    )


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The dotted keys below a key, with their values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield key, value


@dataclass
class Composed:
    """A configuration as plain values. Interpolations stand as written: so a value is known by the key that one sets."""

    cfg: dict[str, Any]

    def walk(self, key: str) -> Any:
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

    def at(self, key: str, depth: int = 8) -> tuple[Any, str]:
        """The value of a key, interpolations followed, and the key that the user can set for it."""
        value = self.walk(key)
        other = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        return self.at(other[1], depth - 1) if other and depth else (value, key)

    def choice(self, group: str) -> str:
        return str(self.cfg["hydra"]["runtime"]["choices"].get(group))

    def put(self, key: str, value: Any) -> None:
        """Set a key, with the parents that it lacks; MISSING deletes it."""
        parent, _, last = key.rpartition(".")
        node = self.walk(parent)
        if isinstance(node, list):
            node[int(last)] = value
        elif not isinstance(node, dict):
            self.put(parent, {last: value})
        elif value is MISSING:
            del node[last]
        else:
            node[last] = value

    def nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All nodes with a target, Hydra's own aside."""
        left = [(key, node) for key, node in self.cfg.items() if key != "hydra"]
        while left:
            key, node = left.pop(0)
            if isinstance(node, dict):
                left += [(f"{key}.{name}", inner) for name, inner in node.items()]
                if "_target_" in node:
                    yield key, node
