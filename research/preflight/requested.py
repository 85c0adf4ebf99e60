"""The composed config of one run, with every key validated against its component's signature."""

import ast
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from research.options.conf import CONF, list_groups, read_defaults
from research.options.files import COMPONENTS, GROUP_KEYS, describe_missing_keys, describe_missing_node, locate_key
from research.options.habits import iter_respelt, respell_sweep, suggest
from research.preflight.compose import MISSING, chooses_option, compose, iter_leaves
from research.preflight.known_keys import KnownKeys, suggest_keys
from research.preflight.overrides import cast_interval, create_parser, format_mistake, quote_word, to_override
from research.preflight.renames import describe_rename
from research.preflight.signature import Signature, list_plain_settings, read_signature
from research.preflight.source import TargetError, UnresolvedError, find_definition
from research.ranges import describe_mistake, repr_value
from research.rules import HYDRA_KEYS, PRESET_GROUPS, check_target, iter_targets, list_components, locate_target
from research.run_dir import expand_path

TRAINER_KEYS = ("steps", "batch_size", "eval_every", "precision")  # keys at the top that only some trainers read
WHOLE_INTERVAL = re.compile(r"(?<!int\()interval\([^()]*\)")  # one that is not cast
LOGGING_CLASS = r"(logging|logging\.handlers|colorlog|rich\.logging)\.[A-Z]\w*"  # what Hydra's logging may call


def describe_missing_path(source: str, typed: str, path: Path) -> list[str]:
    """Return the lines of a path that is not there: what is there of it, and what is called nearly so."""
    near = next(parent for parent in path.parents if parent.exists())
    wanted, *rest = path.relative_to(near).parts
    names = [item.name for item in near.iterdir()] if near.is_dir() and os.access(near, os.R_OK) else []
    others = [near / name for name in suggest(wanted, names) if near.joinpath(name, *rest).exists()]
    shown = [
        other.joinpath(*rest) if Path(typed).is_absolute() else Path(os.path.relpath(other.joinpath(*rest))) for other in others
    ]
    words = " or ".join(quote_word(f"{source}={to_override(str(other))}") for other in shown)
    lines = [f"there is no file or folder {path}", f"looked from {Path.cwd()}; there is {near}"]
    return [*lines, f"did you mean: {words} ?"] if words else lines


def to_whole_interval(match: re.Match[str]) -> str:
    """Return an interval as one of whole numbers; as it is where it has none."""
    interval: Any = create_parser().parse_override(f"x={match[0]}").value()
    return cast_interval(interval) or match[0]


@dataclass
class RequestedConfig(KnownKeys):
    """The configuration of one run with its overrides applied, and the mistakes in it."""

    typed_overrides: dict[str, str] = field(default_factory=dict)  # key -> the override as it was typed
    sweep_lines: dict[str, str] = field(default_factory=dict)  # key -> the whole sweep over it, as it was typed
    mistakes: dict[str, str] = field(default_factory=dict)  # key -> its first mistake

    @classmethod
    def from_overrides(cls, overrides: list[Override], sweep_lines: dict[str, str]) -> "RequestedConfig":
        """Compose the options and set every key. Raise HydraException where the options do not compose."""
        requested = cls(compose(overrides), sweep_lines=sweep_lines)
        for override in overrides:
            requested.typed_overrides[override.key_or_group] = str(override.input_line)
            if not chooses_option(override):
                requested.apply_override(override)
        loss = requested.get("loss")
        for name in list_plain_settings(loss) if isinstance(loss, dict) else ():
            del loss[name]
        return requested

    def apply_override(self, override: Override) -> None:
        """Set, add or delete what an override says; record a mistake where that cannot be."""
        line, key = str(override.input_line), override.key_or_group
        adds, deletes = override.is_add() or override.is_force_add(), override.is_delete()
        is_leaf = key.startswith("hydra.") and not isinstance(self.get(key), dict)  # a setting that may hold any mapping
        leaves = [(key, override.value())] if is_leaf or deletes else iter_leaves(key, override.value())
        for leaf, value in leaves:
            old, (parent, _, _) = self.get(leaf), leaf.rpartition(".")
            self.typed_overrides[leaf] = line
            is_unknown = old is MISSING and (not adds or isinstance(self.get(parent), list))
            if is_unknown or leaf.split(".")[0] not in self.cfg:
                self.add_unknown_key(leaf, self.sweep_lines.get(key, line))
            elif old is not MISSING and override.is_add():
                typed = self.sweep_lines.get(key, line)
                fix = f"leave out the +: {quote_word(typed.lstrip('+'))}"
                self.add_mistake(leaf, f"'{leaf}' is there already", fix, head=typed)
            elif isinstance(old, dict) and not isinstance(value, dict) and not deletes:
                group = leaf.rpartition(".")[2]  # as linear for model.linear
                is_option = str(value) in list_groups().get(group, ())
                fix = f"did you mean: {group}={value} ?" if is_option else f"give ~{leaf} to leave all out"
                self.add_mistake(leaf, f"'{leaf}' holds keys of its own: set one of them, or leave all out", fix)
            else:
                self.set(leaf, MISSING if deletes else value)

    def add_mistake(self, key: str, *lines: str, head: str = "") -> None:
        """Record the mistake of a key, unless it has one already."""
        group = key.rpartition(".")[2]  # as tokenizer for data.tokenizer
        head = head or self.typed_overrides.get(key) or self.typed_overrides.get(group if group in list_groups() else key, "")
        if not head and (found := self.find_preset(key)):
            (preset, place), group = found, key.partition(".")[0]
            typed = [self.typed_overrides.get(preset.partition("=")[0], preset), self.typed_overrides.get(group, "")]
            head = " ".join(filter(None, typed))
            if typed[1]:
                lines = (f"{preset} sets {key}: {lines[0]}", f"leave out {' or '.join(typed)}")
            else:  # its own mistake, to be mended there
                fixes = [re.sub(r"did you mean: (.*) \?", r"write \1", line).replace("=", ": ") for line in lines[1:]]
                lines = (f"{place}: {'' if key in lines[0] else f'{key}: '}{lines[0]}", *fixes)
        self.mistakes.setdefault(key, format_mistake(head or f"{key}={repr_value(self.get(key))}", *lines))

    def find_preset(self, key: str) -> tuple[str, str] | None:
        """Return the preset that sets a key, as experiment=grokking, with file:line; None where none does."""
        for group in PRESET_GROUPS:
            if place := locate_key(group, option := self.get_choice(group), key):
                return f"{group}={option}", place
        return None

    def add_unknown_key(self, key: str, line: str) -> None:
        """Record that a key does not exist: with its new name, options that have it, the keys near it, or its neighbours."""
        if new := self.find_new_key(key):
            hint = self.describe_absence(new) if self.get(new) is MISSING else suggest_keys(line, key, new)
            self.add_mistake(key, describe_rename(key, new), hint, head=line)
            return
        hints = self.suggest_options(key, line) if self.describe_absence(key) else self.suggest_known(key, line)
        if not any(hints) and isinstance(around := self.get(parent := key.rpartition(".")[0]), dict) and parent:
            hints = [f"'{parent}' has: {', '.join(k for k in around if k not in HYDRA_KEYS) or 'no key'}"]
        self.add_mistake(key, f"there is no key '{key}'", *hints, head=line)

    def check_groups(self) -> None:
        """Check that every group with a default is there and builds something, and the linear layers of a model."""
        for group, option in read_defaults().items():
            typed, is_there = self.typed_overrides.get(group, f"~{group}"), isinstance(self.get(group), dict)
            if option == "null" or group == "local" or (is_there and group not in COMPONENTS):
                continue
            if not is_there and (typed.startswith("~") or group not in COMPONENTS):
                self.add_mistake(group, f"a run needs {group}; options: {', '.join(list_groups()[group])}", head=typed)
            elif not isinstance(self.get(f"{group}._target_"), str) and f"{group}._target_" not in self.typed_overrides:
                self.add_mistake(group, *describe_missing_node(group, self.get_choice(group)), head=typed)
        for group, keys in GROUP_KEYS.items():  # those that conf/config.yaml leaves to the options of a group
            if group in self.typed_overrides and (missing := [key for key in keys if self.get(key) == "???"]):
                lines = describe_missing_keys(group, self.get_choice(group), missing)
                for key in missing:
                    self.add_mistake(key, *lines, head=self.typed_overrides[group])
        if self.typed_overrides.get("linear", "").startswith("~"):
            options = " or ".join(f"linear={option}" for option in list_groups()["linear"])
            self.add_mistake("linear", "a model needs its linear layers", f"give {options}")

    def check_references(self) -> None:
        """Check that something reads each key at the top, and that no setting refers to a key by its old name."""
        leaves = [leaf for root, node in self.cfg.items() for leaf in iter_leaves(root, node)]
        references = {key: re.findall(r"\$\{([\w.]+)\}", value) for key, value in leaves if isinstance(value, str)}
        read_keys = {name for names in references.values() for name in names}
        for key in self.typed_overrides:
            is_read = key in read_keys
            if key in TRAINER_KEYS and key in self.cfg and not is_read and f"trainer.{key}" not in self.typed_overrides:
                message = f"nothing reads '{key}' here: trainer={self.get_choice('trainer')} sets trainer.{key} itself"
                self.add_mistake(key, message, suggest_keys(self.typed_overrides[key], key, f"trainer.{key}"))
            elif "." not in key and key not in self.cfg and is_read:
                self.add_mistake(key, f"the run reads '{key}'", f"give {key}=null or {key}=VALUE")
        for setting in ("hydra.sweeper.when", "hydra.sweeper.enqueue"):
            references[setting] = re.findall(r"[a-z]\w*(?:\.\w+)+", repr_value(self.get(setting)))
        known_keys = {
            *re.findall(r"^(\w+):", (CONF / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE),
            *list_groups(),
            *read_keys,
        }
        for key in [] if self.mistakes else self.cfg.keys() - known_keys - self.typed_overrides.keys():
            hints = self.suggest_known(key, key)
            self.add_mistake(key, "no component reads it", *(hint for hint in hints if hint.startswith("did you")))
        for key, names in references.items():
            unknown = [
                n for n in names if n.partition(".")[0] not in self.cfg and not n.startswith((".", "hydra", *self.mistakes))
            ]
            if unknown and not key.startswith("hydra") and "\\${" not in str(self.get(key)):
                self.add_mistake(key, f"there is no key '{unknown[0]}', which ${{{unknown[0]}}} refers to")
            if renames := {old: new for old in names if self.get(old) is MISSING and (new := self.find_new_key(old))}:
                self.add_mistake(key, *(describe_rename(old, new) for old, new in renames.items()))

    def check_node(self, key: str, node: dict[str, Any]) -> None:
        """Check that a node's target exists and takes each of its keys; Hydra accepts any key that has a +."""
        target = self.check_target(f"{key}._target_")
        if (signature := read_signature(target)) is None:
            return
        names = signature.names
        unknown = [name for name in node if name not in (*HYDRA_KEYS, *names)]
        for old in [f"{key}.{name}" for name in unknown if self.find_new_key(f"{key}.{name}")]:
            self.add_unknown_key(old, self.typed_overrides.get(old, ""))
        unknown = [name for name in unknown if f"{key}.{name}" not in self.mistakes]
        of_presets = [
            name for name in unknown if f"{key}.{name}" not in self.typed_overrides and self.find_preset(f"{key}.{name}")
        ]
        together = [name for name in unknown if name not in of_presets]
        for unknown in filter(None, [*([name] for name in of_presets), together]):
            typed = [self.typed_overrides.get(f"{key}.{name}", "") for name in (*unknown, "_target_")]
            near = [f"{key}.{name}" for name in suggest(unknown[0], names) if len(unknown) == 1]
            hint = suggest_keys(self.sweep_lines.get(f"{key}.{unknown[0]}", typed[0]), f"{key}.{unknown[0]}", *near)
            if f"{key}._target_" in self.typed_overrides and len(unknown) < 4:  # left over from the target before
                hint = hint or f"give {' '.join(f'~{key}.{name}' for name in unknown)}"
            hint = hint or self.describe_absence(f"{key}.{unknown[0]}")
            hints = [hint] if hint else self.suggest_habit(f"{key}.{unknown[0]}", typed[0])
            hints = hints if any(hints) else [f"it has: {', '.join(names) or 'none'}"]
            head = " ".join(dict.fromkeys(filter(None, typed)))
            self.add_mistake(f"{key}.{unknown[0]}", f"{target} has no parameter {', '.join(unknown)}", *hints, head=head)
        self.check_settings(f"{key}.", signature)

    def check_target(self, key: str) -> str:
        """Check that a target exists and may be named, by its text and by what its source says it is; return it."""
        target = str(self.get_resolved(key)[0])
        conflict = check_target(key, target)
        try:
            module, node = find_definition(target)
        except TargetError as error:
            near = error.near or [name for name in list_components() if name.endswith(f".{target}")]
            near = near or [
                n for n in (f"torch.optim.{target}", f"torch.nn.{target}") if "." not in target and read_signature(n)
            ]
            self.add_mistake(key, *error.message.splitlines(), suggest_keys("", key, *(f"{key}={name}" for name in near)))
        except UnresolvedError:
            if not conflict and key.startswith("hydra."):  # Hydra builds these itself: run.py cannot look at them before
                try:
                    locate_target(key, target)
                except ValueError as error:
                    self.add_mistake(key, *str(error).splitlines())
                except (ImportError, AttributeError):
                    pass  # Hydra says so
        else:
            if not conflict and target not in list_components() and isinstance(node, ast.ClassDef | ast.FunctionDef):
                conflict = check_target(key, f"{module.name}.{node.name}", alias=target)
        if conflict:
            self.add_mistake(key, conflict.message.removeprefix(f"{key}={target}").lstrip(": "), conflict.fix)
        return target

    def check_hydra(self) -> None:
        """Check what Hydra itself builds or calls: its plugins and callbacks, and the classes of its logging."""
        for key, _ in iter_targets("hydra", self.cfg["hydra"]):
            self.check_target(key)
        for setting in ("job_logging", "hydra_logging"):
            for key, target in iter_targets(f"hydra.{setting}", self.cfg["hydra"].get(setting), ("()", "class")):
                if not re.fullmatch(LOGGING_CLASS, target):
                    self.add_mistake(key, f"{key}={target} is no class of Python's logging", "give one, as logging.FileHandler")
        if isinstance(space := self.get("hydra.sweeper.custom_search_space"), str) and (
            conflict := check_target("hydra.sweeper.custom_search_space", space)
        ):
            self.add_mistake("hydra.sweeper.custom_search_space", conflict.message, conflict.fix)

    def check_settings(self, prefix: str, signature: Signature) -> None:
        """Check the type, range and choices of each value that the signature knows; of a path, that it exists."""
        for parameter in signature.parameters:
            key = f"{prefix}{parameter.name}"
            value, source = self.get_resolved(key)
            if value is MISSING or isinstance(value, dict):
                continue
            if value == "???":
                self.add_mistake(source, f"{source} needs a value")
            elif is_interpolated(value):
                continue
            elif mistake := describe_mistake(key, value, parameter.value_types):
                whole = WHOLE_INTERVAL.sub(to_whole_interval, line := self.sweep_lines.get(source, ""))
                if whole != line and isinstance(value, float) and not describe_mistake(key, int(value), parameter.value_types):
                    types = " or ".join(map(str, parameter.value_types))
                    self.add_mistake(source, f"{key} takes {types}; this interval has fractions", f"give '{whole}'", head=line)
                else:
                    candidates = iter_respelt(source, value, parameter.value_types)
                    fits = [v for v in candidates if not describe_mistake(key, v, parameter.value_types)][:1]
                    words = [quote_word(f"{source}={to_override(v)}") for v in fits]
                    is_open = not fits or isinstance(value, list)
                    words += [f"{source}={sweep}"] if is_open and (sweep := respell_sweep(value)) else []
                    self.add_mistake(source, mistake, *(f"did you mean: {word} ?" for word in words))
            elif isinstance(value, str) and any(alternative.name == "path" for alternative in parameter.value_types):
                path = expand_path(value).resolve()
                if not path.exists():
                    self.add_mistake(source, *describe_missing_path(source, value, path))

    def add_conflict(self, keys: tuple[str, ...], *lines: str) -> None:
        """Record keys that do not go together, unless one of them has a mistake of its own."""
        sources = [key if key in list_groups() else self.get_resolved(key)[1] for key in keys]
        if not any(source in self.mistakes for source in sources):
            typed = [self.typed_overrides[source] for source in sources if source in self.typed_overrides]
            self.add_mistake(" ".join(sources), *lines, head=" ".join(dict.fromkeys(typed)) or " and ".join(sources))


def is_interpolated(value: Any) -> bool:
    """Return whether a text or a list holds a reference to another key, whose value is not known here."""
    return isinstance(value, str | list) and "${" in str(value)
