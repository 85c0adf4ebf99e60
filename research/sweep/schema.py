"""A sweeper's settings: one dataclass lists them, Hydra's config node and the checks are made from it.

Hydra imports this file at every start, so nothing heavy may be imported here. The node has no types: a wrong value reaches
`convert`, which names the fix more clearly than OmegaConf does.
"""

from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from research.ranges import ValueType

Settings = TypeVar("Settings")


def register(group: str, name: str, node: Mapping[str, Any]) -> None:
    """Add an option to one of Hydra's groups, unless it is there: a launcher may hand its processes all that was registered."""
    options: Any = ConfigStore.instance().repo
    for part in group.split("/"):
        options = options.get(part, {})
    if f"{name}.yaml" not in options:
        ConfigStore.instance().store(group=group, name=name, node=dict(node), provider="grokbit")


def make_node(settings_class: type[Any]) -> dict[str, Any]:
    """Return the config node of a sweeper: its class as `_target_` and its defaults.

    Empty mappings and lists become null, which an override can replace: a config refuses new keys in a mapping.
    """
    defaults = {key: None if value in ({}, []) else value for key, value in vars(settings_class()).items()}
    # A sampler is instantiated for each trial, from its own seed, so Hydra must not do it.
    return {"_target_": f"{settings_class.__module__}.{settings_class.__name__}", "_recursive_": False} | defaults


def convert(settings_class: type[Settings], raw_settings: Mapping[str, Any], examples: Mapping[str, str]) -> Settings:
    """Return the settings as plain values of the annotated types. Raises ValueError with the setting, its value and the fix.

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
    """Return the value as a type has it. Raises TypeError for one that it does not take."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any or (kind is dict and isinstance(value, dict)):
        return value
    if kind is list and isinstance(value, list | tuple):
        return [convert_value(arguments[0], item) for item in value]
    if kind in (Union, UnionType):  # a type or null
        return None if value is None else convert_value(arguments[0], value)
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


def describe(annotation: Any) -> str:
    """Return what a type takes, in words."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is dict:
        return "keys and values"
    if kind in (Union, UnionType):
        return f"{describe(arguments[0])} or null"
    return f"a list, each item {describe(arguments[0])}" if kind is list else str(to_value_type(annotation))
