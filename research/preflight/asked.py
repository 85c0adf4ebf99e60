"""One run as the command line asks for it, each key held against what its component takes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.preflight.composed import MISSING, Composed, Compositions, leaves
from research.preflight.help import defaults, groups
from research.preflight.meant import meant
from research.preflight.overrides import mistake
from research.preflight.signature import Parameter, Signature, TargetError, signature

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

KNOBS = ("steps", "batch_size", "eval_every", "precision")  # keys at the top that only some trainers read
INNER = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # Hydra's own keys of a node


@dataclass
class Asked(Composed):
    """One run as the command line asks for it, and what is wrong with it."""

    given: dict[str, str] = field(default_factory=dict)  # key -> the override as it was typed
    wrong: dict[str, str] = field(default_factory=dict)  # key -> its first mistake

    @classmethod
    def of(cls, overrides: list["Override"], runs: Compositions) -> "Asked":
        """What the options compose, with every key set. Raises HydraException where they do not compose."""
        asked, chosen = cls(runs.of(overrides)), runs.chosen(overrides)
        for override in overrides:
            asked.given[override.key_or_group] = str(override.input_line)
            if override not in chosen:
                asked.take(override)
        return asked

    def signature(self, key: str) -> Signature | None:
        """That of a node's target."""
        try:
            target = self.walk(f"{key}._target_")
            return None if target is MISSING else signature(str(target))
        except TargetError:
            return None

    def take(self, override: "Override") -> None:
        """Set, add or delete; note what cannot be."""
        line, key = str(override.input_line), override.key_or_group
        adds = override.is_add() or override.is_force_add()
        whole = key.startswith("hydra.") and not isinstance(self.walk(key), dict)  # a setting that may hold anything
        for leaf, value in (
            [(key, None)] if override.is_delete() else [(key, override.value())] if whole else leaves(key, override.value())
        ):
            old, (parent, _, _) = self.walk(leaf), leaf.rpartition(".")
            self.given[leaf] = line
            new = old is MISSING and (not adds or isinstance(self.walk(parent), list))
            if new or leaf.split(".")[0] not in self.cfg:
                self.unknown(leaf, line)
            elif old is not MISSING and override.is_add():
                self.note(leaf, f"'{leaf}' is there already: leave out the +")
            elif isinstance(old, dict) and not isinstance(value, dict) and not override.is_delete():
                self.note(leaf, f"'{leaf}' holds keys of its own: set one of them, or leave all out with ~{leaf}")
            else:
                self.put(leaf, MISSING if override.is_delete() else value)

    def note(self, key: str, *lines: str, head: str = "") -> None:
        """The first mistake of a key counts."""
        self.wrong.setdefault(key, mistake(head or self.given.get(key) or f"{key}={spelt(self.walk(key))}", *lines))

    def unknown(self, key: str, line: str) -> None:
        """Which key was meant, or what there is."""
        hydra = key.startswith("hydra.")
        own = [leaf for root, node in self.cfg.items() if (root == "hydra") == hydra for leaf, _ in leaves(root, node)]
        sign, tail = "~" if line.startswith("~") else "", line[line.index("=") :] if "=" in line else ""
        chosen = [group for group, options in groups().items() if tail[1:] in options]
        near = [f"{sign}{name}{tail}" for name in meant(key, own + chosen) if key.endswith("_") or not name.endswith("_")]
        parent = key.rpartition(".")[0]
        around = self.walk(parent) if parent else None
        keys = ", ".join(k for k in around if k not in INNER) if isinstance(around, dict) else ""
        there = f"'{parent}' has: {keys or 'none here'}" if isinstance(around, dict) else ""
        self.note(key, f"there is no key '{key}'", f"did you mean: {' or '.join(near)} ?" if near else there)

    def check_parts(self) -> None:
        """Every group that has a default is there, and what was set at the top is read by something."""
        for group, option in defaults().items():
            if option != "null" and group != "local" and not isinstance(self.walk(group), dict):
                told = f"a run needs {group}; options: {', '.join(groups()[group])}"
                self.note(group, told, head=self.given.get(group) or f"~{group}")
        texts = [value for root, node in self.cfg.items() for _, value in leaves(root, node) if isinstance(value, str)]
        for key in self.given:
            read = any(f"${{{key}}}" in text for text in texts)
            if key in KNOBS and key in self.cfg and not read and f"trainer.{key}" not in self.given:
                fix = f"give trainer.{key}, which trainer={self.choice('trainer')} sets itself"
                self.note(key, f"nothing reads '{key}' here", fix)
            elif "." not in key and key not in self.cfg and read:
                self.note(key, f"the run reads '{key}'", f"give it a value, as {key}=null where that is one")

    def check_node(self, key: str, node: dict[str, Any]) -> None:
        """Its target exists and takes each of its keys: + gets past Hydra's own checks."""
        target = str(node["_target_"])
        try:
            takes = signature(target)
        except TargetError as error:
            self.note(f"{key}._target_", *str(error).splitlines())
            return
        if takes is None:
            return
        names = [parameter.name for parameter in takes.parameters]
        if strange := [name for name in node if name not in (*INNER, *names)]:
            mine = [f"{key}.{name}" for name in (*strange, "_target_") if f"{key}.{name}" in self.given]
            near = [f"{key}.{name}" for word in strange for name in meant(word, names)]
            hint = f"did you mean: {' or '.join(near)} ?" if near else f"it has: {', '.join(names) or 'none'}"
            head = " ".join(dict.fromkeys(self.given[name] for name in mine))
            self.note(f"{key}.{strange[0]}", f"{target} has no parameter {', '.join(strange)}", hint, head=head)
        self.check_values(f"{key}.", takes, node)

    def check_values(self, prefix: str, takes: Signature | None, node: dict[str, Any]) -> None:
        for parameter in takes.parameters if takes else ():
            if parameter.name in node:
                self.check_value(f"{prefix}{parameter.name}", parameter)

    def check_value(self, key: str, parameter: Parameter) -> None:
        """Type, range, choices, and for paths whether they lead somewhere."""
        value, source = self.at(key)
        if value == "???":
            self.note(source, f"{source} needs a value")
        elif isinstance(value, dict) or value is MISSING or (isinstance(value, str) and "${" in value):
            return
        elif not parameter.accepts(value):
            takes = " or ".join(map(str, parameter.kinds))
            self.note(source, f"{key} takes {takes}; got {'nothing' if value == '' else spelt(value)}")
        elif isinstance(value, str) and any(kind.name == "path" for kind in parameter.kinds):
            path = Path(value).expanduser().resolve()
            if not path.exists():
                near = next(parent for parent in path.parents if parent.exists())
                self.note(source, f"there is no file or folder {path}", f"looked from {Path.cwd()}; there is {near}")

    def relate(self, keys: tuple[str, ...], *lines: str) -> None:
        """Note what does not go together, unless one of the keys is wrong by itself."""
        sources = [key if key in groups() else self.at(key)[1] for key in keys]
        if not any(source in self.wrong for source in sources):
            head = [self.given[source] for source in sources if source in self.given]
            self.note(" ".join(sources), *lines, head=" ".join(dict.fromkeys(head)) or " and ".join(sources))


def spelt(value: Any) -> str:
    """A value as one types it."""
    return json.dumps(value, default=str, ensure_ascii=False)
