"""The composed config of one run, with every key validated against its component's signature."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.preflight.compose import MISSING, ComposedConfig, Compositions, iter_leaves
from research.preflight.help import list_groups, read_defaults
from research.preflight.overrides import format_mistake
from research.preflight.renames import get_new_name
from research.preflight.signature import Parameter, Signature, read_signature
from research.preflight.source import TargetError
from research.preflight.suggest import suggest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

TRAINER_KEYS = ("steps", "batch_size", "eval_every", "precision")  # keys at the top that only some trainers read
HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # Hydra's own keys of a node


@dataclass
class RequestedConfig(ComposedConfig):
    """The configuration of one run with its overrides applied, and the mistakes in it."""

    typed_overrides: dict[str, str] = field(default_factory=dict)  # key -> the override as it was typed
    sweep_lines: dict[str, str] = field(default_factory=dict)  # key -> the whole sweep over it, as it was typed
    mistakes: dict[str, str] = field(default_factory=dict)  # key -> its first mistake

    @classmethod
    def from_overrides(cls, overrides: list["Override"], compositions: Compositions) -> "RequestedConfig":
        """Compose the options and set every key. Raises HydraException where the options do not compose."""
        requested = cls(compositions.compose(overrides), sweep_lines=compositions.sweep_lines)
        groups = compositions.select_group_overrides(overrides)
        for override in overrides:
            requested.typed_overrides[override.key_or_group] = str(override.input_line)
            if override not in groups:
                requested.apply_override(override)
        return requested

    def get_signature(self, key: str) -> Signature | None:
        """Return the signature of a node's target; None where there is none or it cannot be read."""
        try:
            target = self.get(f"{key}._target_")
            return None if target is MISSING else read_signature(str(target))
        except TargetError:
            return None

    def apply_override(self, override: "Override") -> None:
        """Set, add or delete what an override says; record a mistake where that cannot be."""
        line, key = str(override.input_line), override.key_or_group
        adds = override.is_add() or override.is_force_add()
        is_leaf = key.startswith("hydra.") and not isinstance(self.get(key), dict)  # a setting that may hold any mapping
        if override.is_delete():
            leaves: Any = [(key, None)]
        else:
            leaves = [(key, override.value())] if is_leaf else iter_leaves(key, override.value())
        for leaf, value in leaves:
            old, (parent, _, _) = self.get(leaf), leaf.rpartition(".")
            self.typed_overrides[leaf] = line
            is_unknown = old is MISSING and (not adds or isinstance(self.get(parent), list))
            if is_unknown or leaf.split(".")[0] not in self.cfg:
                self.add_unknown_key(leaf, self.sweep_lines.get(key, line))
            elif old is not MISSING and override.is_add():
                self.add_mistake(leaf, f"'{leaf}' is there already: leave out the +")
            elif isinstance(old, dict) and not isinstance(value, dict) and not override.is_delete():
                self.add_mistake(leaf, f"'{leaf}' holds keys of its own: set one of them, or leave all out with ~{leaf}")
            else:
                self.set(leaf, MISSING if override.is_delete() else value)

    def add_mistake(self, key: str, *lines: str, head: str = "") -> None:
        """Record the mistake of a key, unless it has one already."""
        self.mistakes.setdefault(
            key, format_mistake(head or self.typed_overrides.get(key) or f"{key}={repr_value(self.get(key))}", *lines)
        )

    def add_unknown_key(self, key: str, line: str) -> None:
        """Record that a key does not exist, with its new name, the keys near it, or its neighbours."""
        sign, tail = "~" if line.startswith("~") else "", line[line.index("=") :] if "=" in line else ""
        parent, _, last = key.rpartition(".")
        if renamed := get_new_name(self.get(f"{parent}._target_"), last):
            tail = tail if line.lstrip("+~").startswith(f"{key}=") else ""  # a key inside a node has no value of its own here
            hint = f"did you mean: {sign}{parent}.{renamed}{tail} ?"
            self.add_mistake(key, f"'{key}' has another name since 0.2", hint, head=line)
            return
        is_hydra = key.startswith("hydra.")
        own = [leaf for root, node in self.cfg.items() if (root == "hydra") == is_hydra for leaf, _ in iter_leaves(root, node)]
        groups = [group for group, options in list_groups().items() if set(tail[1:].split(",")) <= set(options)]
        names = [name for name in suggest(key, own + groups) if key.endswith("_") or not name.endswith("_")]
        hint = f"did you mean: {' or '.join(f'{sign}{name}{tail}' for name in names)} ?" if names else ""
        around = self.get(parent) if parent else None
        if not names and isinstance(around, dict):
            hint = f"'{parent}' has: {', '.join(k for k in around if k not in HYDRA_KEYS) or 'no key'}"
        self.add_mistake(key, f"there is no key '{key}'", hint, head=line)

    def check_groups(self) -> None:
        """Check that every group with a default is there, and that something reads each key that is set at the top."""
        for group, option in read_defaults().items():
            if option != "null" and group != "local" and not isinstance(self.get(group), dict):
                message = f"a run needs {group}; options: {', '.join(list_groups()[group])}"
                self.add_mistake(group, message, head=self.typed_overrides.get(group) or f"~{group}")
        if "linear" in self.typed_overrides and self.typed_overrides["linear"].startswith("~"):
            options = " or ".join(f"linear={option}" for option in list_groups()["linear"])
            self.add_mistake(
                "linear", "a model needs its linear layers", f"give {options}", head=self.typed_overrides["linear"]
            )
        texts = [value for root, node in self.cfg.items() for _, value in iter_leaves(root, node) if isinstance(value, str)]
        for key in self.typed_overrides:
            is_read = any(f"${{{key}}}" in text for text in texts)
            if key in TRAINER_KEYS and key in self.cfg and not is_read and f"trainer.{key}" not in self.typed_overrides:
                fix = f"give trainer.{key}, which trainer={self.get_choice('trainer')} sets itself"
                self.add_mistake(key, f"nothing reads '{key}' here", fix)
            elif "." not in key and key not in self.cfg and is_read:
                self.add_mistake(key, f"the run reads '{key}'", f"give it a value, as {key}=null where that is one")

    def check_node(self, key: str, node: dict[str, Any]) -> None:
        """Check that a node's target exists and takes each of its keys; Hydra accepts any key that has a +."""
        target = str(node["_target_"])
        try:
            signature = read_signature(target)
        except TargetError as error:
            self.add_mistake(f"{key}._target_", *str(error).splitlines())
            return
        if signature is None:
            return
        names = [parameter.name for parameter in signature.parameters]
        if unknown := [name for name in node if name not in (*HYDRA_KEYS, *names)]:
            typed = [f"{key}.{name}" for name in (*unknown, "_target_") if f"{key}.{name}" in self.typed_overrides]
            near = [name for word in unknown if (name := get_new_name(target, word))]
            near = near or [name for word in unknown for name in suggest(word, names)]
            hint = f"it has: {', '.join(names) or 'none'}"
            if near:
                tail = self.typed_overrides.get(f"{key}.{unknown[0]}", "").partition("=")[2] if len(unknown) == 1 else ""
                value = f"={tail}" if tail else ""
                hint = f"did you mean: {' or '.join(f'{key}.{name}{value}' for name in near)} ?"
            head = " ".join(dict.fromkeys(self.typed_overrides[name] for name in typed))
            self.add_mistake(f"{key}.{unknown[0]}", f"{target} has no parameter {', '.join(unknown)}", hint, head=head)
        self.check_values(f"{key}.", signature, node)

    def check_values(self, prefix: str, signature: Signature | None, node: dict[str, Any]) -> None:
        """Check the values of a node that its signature knows."""
        for parameter in signature.parameters if signature else ():
            if parameter.name in node:
                self.check_value(f"{prefix}{parameter.name}", parameter)

    def check_value(self, key: str, parameter: Parameter) -> None:
        """Check a value's type, range and choices; of a path, that it exists."""
        value, source = self.get_resolved(key)
        if value == "???":
            self.add_mistake(source, f"{source} needs a value")
        elif isinstance(value, dict) or value is MISSING or (isinstance(value, str) and "${" in value):
            return
        elif not parameter.accepts(value):
            types = " or ".join(map(str, parameter.value_types))
            self.add_mistake(source, f"{key} takes {types}; got {'nothing' if value == '' else repr_value(value)}")
        elif isinstance(value, str) and any(alternative.name == "path" for alternative in parameter.value_types):
            path = Path(value).expanduser().resolve()
            if not path.exists():
                near = next(parent for parent in path.parents if parent.exists())
                self.add_mistake(source, f"there is no file or folder {path}", f"looked from {Path.cwd()}; there is {near}")

    def add_conflict(self, keys: tuple[str, ...], *lines: str) -> None:
        """Record keys that do not go together, unless one of them has a mistake of its own."""
        sources = [key if key in list_groups() else self.get_resolved(key)[1] for key in keys]
        if not any(source in self.mistakes for source in sources):
            typed = [self.typed_overrides[source] for source in sources if source in self.typed_overrides]
            self.add_mistake(" ".join(sources), *lines, head=" ".join(dict.fromkeys(typed)) or " and ".join(sources))


def repr_value(value: Any) -> str:
    """Return a value as one types it."""
    return json.dumps(value, default=str, ensure_ascii=False)
