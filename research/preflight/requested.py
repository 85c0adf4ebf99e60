"""The composed config of one run, with every key validated against its component's signature."""

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Override

from research.composition.compose import MISSING, chooses_option, compose, is_interpolated, iter_leaves, iter_targets
from research.composition.overrides import cast_intervals, expand_sweep, format_mistake, parse, quote_word, to_override
from research.contracts import contract
from research.options.conf import CONF, list_groups, read_defaults
from research.options.files import (
    COMPONENTS,
    GROUP_KEYS,
    describe_missing_keys,
    describe_missing_node,
    describe_missing_value,
    describe_needs,
    locate_key,
)
from research.options.habits import explain_value, find_habit, iter_respelt, respell_sweep, suggest
from research.options.renames import describe_rename
from research.options.signature import Signature, list_plain_settings, read_signature
from research.options.source import TargetError, UnresolvedError, find_bare_folder, find_definition
from research.options.targets import check_target, list_components, locate_target
from research.preflight.choices import describe_missing_path
from research.preflight.known_keys import KnownKeys, suggest_keys
from research.ranges import ValueType, describe_mistake, repr_value
from research.rules import HYDRA_KEYS, PRESET_GROUPS

TRAINER_KEYS = ("steps", "batch_size", "eval_every", "precision")  # keys at the top that only some trainers read
FROM_RUN = {"model": 1, "finetune": 1, "optim": 1, "objective": 1}  # how many arguments a run adds: the shape, the model
PARTIAL_NODES = ("loss", "schedule", "optim.base")  # what they name is called by the run
LOGGING_CLASS = r"(logging|logging\.handlers|colorlog|rich\.logging)\.[A-Z]\w*"  # what Hydra's logging may call


@contract
@dataclass
class RequestedConfig(KnownKeys):
    """The configuration of one run with its overrides applied, and the mistakes in it."""

    typed_overrides: dict[str, str] = field(default_factory=dict)  # key -> the override as it was typed
    sweep_lines: dict[str, str] = field(default_factory=dict)  # key -> the whole sweep over it, as it was typed
    mistakes: dict[str, str] = field(default_factory=dict)  # key -> its first mistake

    @classmethod
    @contract
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
        if conflict := requested.complete(requested.typed_overrides):
            requested.add_conflict(conflict.keys, conflict.message, conflict.fix)
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
        if not head and (source := self.find_preset(key)):
            (preset, where), group = source, key.partition(".")[0]
            typed = [self.typed_overrides.get(preset.partition("=")[0], preset), self.typed_overrides.get(group, "")]
            head = " ".join(filter(None, typed))
            if typed[1]:
                without = [line for line in lines[1:] if line.startswith("give ~")]
                lines = (f"{preset} sets {key}: {lines[0]}", *without, f"leave out {' or '.join(typed)}")
            else:  # its own mistake, to be mended there
                fixes = [re.sub(r"did you mean: (.*) \?", r"write \1", line).replace("=", ": ") for line in lines[1:]]
                lines = (f"{where}: {'' if key in lines[0] else f'{key}: '}{lines[0]}", *fixes)
        self.mistakes.setdefault(key, format_mistake(head or f"{key}={repr_value(self.get(key))}", *lines))

    def find_preset(self, key: str) -> tuple[str, str] | None:
        """Return the preset that sets a key, as experiment=grokking, with file:line; None where none does."""
        for group in PRESET_GROUPS:
            if where := locate_key(group, option := self.get_choice(group), key):
                return f"{group}={option}", where
        return None

    def add_unknown_key(self, key: str, line: str) -> None:
        """Record that a key does not exist: with its new name, options that have it, the keys near it, or its neighbours."""
        if new := self.find_new_key(key):
            hint = self.describe_absence(new) if self.get(new) is MISSING else suggest_keys(line, key, new)
            self.add_mistake(key, describe_rename(key, new), hint, head=line)
            return
        group, habit = key.partition(".")[0], find_habit(key)
        is_here = habit.startswith(f"{group}.") and self.get(habit) is not MISSING  # as data.target for data.label
        is_elsewhere = self.describe_absence(key) and not is_here
        hints = self.suggest_tracker(key, line) or (self.suggest_options if is_elsewhere else self.suggest_known)(key, line)
        if known := explain_value(key, line.partition("=")[2]):
            hints = [known]
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
        own = signature.parameters[FROM_RUN.get(key, 0) :]
        needed = [p.name for p in own if p.is_needed and p.name not in node]
        if key in PARTIAL_NODES and needed and "_partial_" not in node:
            fix = f"write _partial_: true below its _target_, or give +{key}._partial_=true"
            heads = map(self.typed_overrides.get, (f"{key}._partial_", f"{key}._target_", key.partition(".")[0]))
            message = f"{target} gets {', '.join(needed)} from the run: it needs _partial_: true"
            self.add_mistake(f"{key}._partial_", message, fix, head=next(filter(None, heads), key))
        self.check_names(key, node, target, signature.names)
        self.check_settings(f"{key}.", signature)
        missing = [name for name in needed if name != "higher_is_better"]  # of which a conflict says more
        if missing and not (self.mistakes or key in PARTIAL_NODES or {"_partial_", "_args_"} & node.keys()):
            lines = describe_needs(target, key, self.get_choice(group := key.partition(".")[0]), missing)
            head = self.typed_overrides.get(f"{key}._target_") or self.typed_overrides.get(group, "")
            self.add_mistake(f"{key}.{missing[0]}", *lines, head=head)

    def check_names(self, key: str, node: dict[str, Any], target: str, names: list[str]) -> None:
        """Check that a target has each key of its node: those of a preset one by one, all others in one mistake."""
        unknown = [name for name in node if name not in (*HYDRA_KEYS, *names)]
        for old in [f"{key}.{name}" for name in unknown if self.find_new_key(f"{key}.{name}")]:
            self.add_unknown_key(old, self.typed_overrides.get(old, ""))
        unknown = [name for name in unknown if f"{key}.{name}" not in self.mistakes]
        of_presets = [n for n in unknown if f"{key}.{n}" not in self.typed_overrides and self.find_preset(f"{key}.{n}")]
        for together in filter(None, [*([name] for name in of_presets), [n for n in unknown if n not in of_presets]]):
            first = f"{key}.{together[0]}"
            typed = [self.typed_overrides.get(f"{key}.{name}", "") for name in (*together, "_target_")]
            near = [f"{key}.{name}" for name in suggest(together[0], names) if len(together) == 1]
            hint = suggest_keys(self.sweep_lines.get(first, typed[0]), first, *near)
            is_left = f"{key}._target_" in self.typed_overrides or self.find_preset(first)
            if is_left and len(together) < 4:  # left over from the target before
                hint = hint or f"give {' '.join(f'~{key}.{name}' for name in together)}"
            hints = [line for line in [hint or self.describe_absence(first)] if line] or self.suggest_habit(first, typed[0])
            hints = hints if any(hints) else [f"it has: {', '.join(names) or 'none'}"]
            head = " ".join(dict.fromkeys(filter(None, typed)))
            self.add_mistake(first, f"{target} has no parameter {', '.join(together)}", *hints, head=head)

    def check_target(self, key: str) -> str:
        """Check that a target exists and may be named, by its text and by what its source says it is; return it."""
        target = str(self.get_resolved(key)[0])
        conflict, bare = check_target(key, target), find_bare_folder(target)
        try:
            module, node = find_definition(target)
        except TargetError as error:
            near = error.near or [name for name in list_components() if name.endswith(f".{target}")]
            plain = () if "." in target else (f"torch.optim.{target}", f"torch.nn.{target}")
            near = near or [*filter(read_signature, plain)]
            lines = [*error.message.splitlines(), suggest_keys("", key, *(f"{key}={name}" for name in near))]
            self.add_mistake(key, *(bare or lines))
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
            self.add_mistake(key, *(bare or [conflict.message.removeprefix(f"{key}={target}").lstrip(": "), conflict.fix]))
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
            value, source = self.get_resolved(key := f"{prefix}{parameter.name}")
            is_path = isinstance(value, str) and any(kind.name == "path" for kind in parameter.value_types)
            are_counted = source == "steps" and value is None and self.get("epochs") is not None  # once the data is read
            if value is MISSING or isinstance(value, dict) or are_counted:
                continue
            if value == "???":
                group = source.rpartition(".")[0].rpartition(".")[2]
                head = self.typed_overrides.get(source) or self.typed_overrides.get(group, "")
                self.add_mistake(source, *describe_missing_value(source, self.get_choice(group)), head=head)
            elif is_interpolated(value):
                continue
            elif mistake := describe_mistake(key, value, parameter.value_types):
                self.add_wrong_value(key, source, mistake, parameter.value_types)
            elif is_path and (lines := describe_missing_path(source, str(value))):
                self.add_mistake(source, *lines)

    def add_wrong_value(self, key: str, source: str, mistake: str, types: tuple[ValueType, ...]) -> None:
        """Record a value that a setting does not take, with what it may mean; of a sweep with all its values."""
        value, line = self.get(source), self.sweep_lines.get(source, "")
        whole, values = cast_intervals(line), [value]
        if whole != line and isinstance(value, float) and not describe_mistake(key, int(value), types):
            takes = " or ".join(map(str, types))
            self.add_mistake(source, f"{key} takes {takes}; this interval has fractions", f"give '{whole}'", head=line)
            return
        if line and (sweep := parse([line])[0][0]).is_choice_sweep():
            values = [choice.value() for choice in parse(expand_sweep(sweep))[0]]
            mistake = next(filter(None, (describe_mistake(key, other, types) for other in values)), mistake)
        candidates = [(other, *iter_respelt(source, other, types)) for other in values]
        fits = [next((v for v in row if not describe_mistake(key, v, types)), MISSING) for row in candidates]
        words = [] if MISSING in fits else [quote_word(f"{source}={','.join(dict.fromkeys(map(to_override, fits)))}")]
        is_open = not words or isinstance(value, list)
        words += [f"{source}={several}"] if is_open and (several := respell_sweep(value)) else []
        hints = [f"did you mean: {word} ?" for word in words] or [explain_value(source, to_override(value))]
        self.add_mistake(source, mistake, *hints, head=line if len(values) > 1 else "")

    def add_conflict(self, keys: tuple[str, ...], *lines: str) -> None:
        """Record keys that do not go together, unless one of them has a mistake of its own."""
        sources = [key if key in list_groups() else self.get_resolved(key)[1] for key in keys]
        if not any(source in self.mistakes for source in sources):
            typed = [self.typed_overrides[source] for source in sources if source in self.typed_overrides]
            self.add_mistake(" ".join(sources), *lines, head=" ".join(dict.fromkeys(typed)) or " and ".join(sources))
