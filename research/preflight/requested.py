"""One run as the command line asks for it, each key held against what its component takes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.preflight.compose import MISSING, ComposedConfig, Compositions, iter_leaves
from research.preflight.help import list_groups, read_defaults
from research.preflight.overrides import format_mistake
from research.preflight.renames import get_new_name
from research.preflight.signature import Parameter, Signature, TargetError, read_signature
from research.preflight.suggest import suggest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

TRAINER_KEYS = ("steps", "batch_size", "eval_every", "precision")  # keys at the top that only some trainers read
HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # Hydra's own keys of a node


@dataclass
class RequestedConfig(ComposedConfig):
    """One run as the command line asks for it, and what is wrong with it."""

    typed_overrides: dict[str, str] = field(default_factory=dict)  # key -> the override as it was typed
    mistakes: dict[str, str] = field(default_factory=dict)  # key -> its first mistake

    @classmethod
    def from_overrides(cls, overrides: list["Override"], compositions: Compositions) -> "RequestedConfig":
        """What the options compose, with every key set. Raises HydraException where they do not compose."""
        asked, chosen = cls(compositions.compose(overrides)), compositions.select_group_overrides(overrides)
        for override in overrides:
            asked.typed_overrides[override.key_or_group] = str(override.input_line)
            if override not in chosen:
                asked.apply_override(override)
        return asked

    def get_signature(self, key: str) -> Signature | None:
        """That of a node's target."""
        try:
            target = self.get(f"{key}._target_")
            return None if target is MISSING else read_signature(str(target))
        except TargetError:
            return None

    def apply_override(self, override: "Override") -> None:
        """Set, add or delete; note what cannot be."""
        line, key = str(override.input_line), override.key_or_group
        adds = override.is_add() or override.is_force_add()
        whole = key.startswith("hydra.") and not isinstance(self.get(key), dict)  # a setting that may hold anything
        for leaf, value in (
            [(key, None)]
            if override.is_delete()
            else [(key, override.value())]
            if whole
            else iter_leaves(key, override.value())
        ):
            old, (parent, _, _) = self.get(leaf), leaf.rpartition(".")
            self.typed_overrides[leaf] = line
            new = old is MISSING and (not adds or isinstance(self.get(parent), list))
            if new or leaf.split(".")[0] not in self.cfg:
                self.add_unknown_key(leaf, line)
            elif old is not MISSING and override.is_add():
                self.add_mistake(leaf, f"'{leaf}' is there already: leave out the +")
            elif isinstance(old, dict) and not isinstance(value, dict) and not override.is_delete():
                self.add_mistake(leaf, f"'{leaf}' holds keys of its own: set one of them, or leave all out with ~{leaf}")
            else:
                self.set(leaf, MISSING if override.is_delete() else value)

    def add_mistake(self, key: str, *lines: str, head: str = "") -> None:
        """The first mistake of a key counts."""
        self.mistakes.setdefault(
            key, format_mistake(head or self.typed_overrides.get(key) or f"{key}={repr_value(self.get(key))}", *lines)
        )

    def add_unknown_key(self, key: str, line: str) -> None:
        """Which key was meant, or what there is."""
        hydra = key.startswith("hydra.")
        own = [leaf for root, node in self.cfg.items() if (root == "hydra") == hydra for leaf, _ in iter_leaves(root, node)]
        sign, tail = "~" if line.startswith("~") else "", line[line.index("=") :] if "=" in line else ""
        chosen = [group for group, options in list_groups().items() if tail[1:] in options]
        near = [f"{sign}{name}{tail}" for name in suggest(key, own + chosen) if key.endswith("_") or not name.endswith("_")]
        parent, _, last = key.rpartition(".")
        around = self.get(parent) if parent else None
        if renamed := get_new_name(self.get(f"{parent}._target_"), last):
            self.add_mistake(key, f"'{key}' has another name since 0.2", f"did you mean: {sign}{parent}.{renamed}{tail} ?")
            return
        keys = ", ".join(k for k in around if k not in HYDRA_KEYS) if isinstance(around, dict) else ""
        there = f"'{parent}' has: {keys or 'none here'}" if isinstance(around, dict) else ""
        self.add_mistake(key, f"there is no key '{key}'", f"did you mean: {' or '.join(near)} ?" if near else there)

    def check_groups(self) -> None:
        """Every group that has a default is there, and what was set at the top is read by something."""
        for group, option in read_defaults().items():
            if option != "null" and group != "local" and not isinstance(self.get(group), dict):
                told = f"a run needs {group}; options: {', '.join(list_groups()[group])}"
                self.add_mistake(group, told, head=self.typed_overrides.get(group) or f"~{group}")
        texts = [value for root, node in self.cfg.items() for _, value in iter_leaves(root, node) if isinstance(value, str)]
        for key in self.typed_overrides:
            read = any(f"${{{key}}}" in text for text in texts)
            if key in TRAINER_KEYS and key in self.cfg and not read and f"trainer.{key}" not in self.typed_overrides:
                fix = f"give trainer.{key}, which trainer={self.get_choice('trainer')} sets itself"
                self.add_mistake(key, f"nothing reads '{key}' here", fix)
            elif "." not in key and key not in self.cfg and read:
                self.add_mistake(key, f"the run reads '{key}'", f"give it a value, as {key}=null where that is one")

    def check_node(self, key: str, node: dict[str, Any]) -> None:
        """Its target exists and takes each of its keys: + gets past Hydra's own checks."""
        target = str(node["_target_"])
        try:
            takes = read_signature(target)
        except TargetError as error:
            self.add_mistake(f"{key}._target_", *str(error).splitlines())
            return
        if takes is None:
            return
        names = [parameter.name for parameter in takes.parameters]
        if strange := [name for name in node if name not in (*HYDRA_KEYS, *names)]:
            mine = [f"{key}.{name}" for name in (*strange, "_target_") if f"{key}.{name}" in self.typed_overrides]
            renamed = [get_new_name(target, word) for word in strange]
            near = [f"{key}.{name}" for name in filter(None, renamed)]
            near = near or [f"{key}.{name}" for word in strange for name in suggest(word, names)]
            hint = f"did you mean: {' or '.join(near)} ?" if near else f"it has: {', '.join(names) or 'none'}"
            head = " ".join(dict.fromkeys(self.typed_overrides[name] for name in mine))
            self.add_mistake(f"{key}.{strange[0]}", f"{target} has no parameter {', '.join(strange)}", hint, head=head)
        self.check_values(f"{key}.", takes, node)

    def check_values(self, prefix: str, signature: Signature | None, node: dict[str, Any]) -> None:
        for parameter in signature.parameters if signature else ():
            if parameter.name in node:
                self.check_value(f"{prefix}{parameter.name}", parameter)

    def check_value(self, key: str, parameter: Parameter) -> None:
        """Type, range, choices, and for paths whether they lead somewhere."""
        value, source = self.get_resolved(key)
        if value == "???":
            self.add_mistake(source, f"{source} needs a value")
        elif isinstance(value, dict) or value is MISSING or (isinstance(value, str) and "${" in value):
            return
        elif not parameter.accepts(value):
            takes = " or ".join(map(str, parameter.value_types))
            self.add_mistake(source, f"{key} takes {takes}; got {'nothing' if value == '' else repr_value(value)}")
        elif isinstance(value, str) and any(kind.name == "path" for kind in parameter.value_types):
            path = Path(value).expanduser().resolve()
            if not path.exists():
                near = next(parent for parent in path.parents if parent.exists())
                self.add_mistake(source, f"there is no file or folder {path}", f"looked from {Path.cwd()}; there is {near}")

    def add_conflict(self, keys: tuple[str, ...], *lines: str) -> None:
        """Note what does not go together, unless one of the keys is wrong by itself."""
        sources = [key if key in list_groups() else self.get_resolved(key)[1] for key in keys]
        if not any(source in self.mistakes for source in sources):
            head = [self.typed_overrides[source] for source in sources if source in self.typed_overrides]
            self.add_mistake(" ".join(sources), *lines, head=" ".join(dict.fromkeys(head)) or " and ".join(sources))


def repr_value(value: Any) -> str:
    """A value as one types it."""
    return json.dumps(value, default=str, ensure_ascii=False)
