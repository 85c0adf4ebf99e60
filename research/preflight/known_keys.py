"""The keys that a configuration has, and what one that it lacks may mean."""

import os
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import yaml

from research.composition.complete import complete
from research.composition.compose import MISSING, ComposedConfig, iter_leaves
from research.composition.overrides import quote_word
from research.contracts import contract
from research.options.conf import find_target, list_groups, list_offers, read_yaml
from research.options.habits import (
    answer_habit,
    count_changed_letters,
    is_whole_habit,
    list_habits,
    respell,
    respell_option,
    squash,
    suggest,
)
from research.options.renames import find_new_key
from research.options.signature import Signature, read_signature
from research.preflight.choices import list_readers
from research.rules import Conflict
from research.run_dir import expand_path

OPTION_NAMES = ("name", "type", "kind", "class", "id")  # of a group in other programs: its option


@contract
@dataclass
class KnownKeys(ComposedConfig):
    """A composed configuration that knows what an unknown key may mean."""

    notes: tuple[str, ...] = ()  # what completed it, for people

    def complete(self, typed: Collection[str]) -> Conflict | None:
        """Take over model and tokenizer of what the run starts from, and its teacher's digest; return what conflicts."""
        settings, self.notes, conflict = complete(self.cfg, typed, self.cfg["hydra"]["runtime"]["choices"])
        for key, value in settings.items():
            self.set(key, value)
        return conflict

    def get_signature(self, key: str) -> Signature:
        """Return the signature of a node's target; an empty one where there is none or it cannot be read."""
        return read_signature(str(self.get(f"{key}._target_"))) or Signature()

    def suggest_known(self, key: str, line: str) -> list[str]:
        """Return what an unknown key may mean: one that ends so, one that others call so, or one that is spelt so."""
        typed, is_hydra = line.partition("=")[2], key.startswith("hydra.")
        group, _, name = key.rpartition(".")
        if name in OPTION_NAMES and respell_option(group, typed) in list_groups().get(group, ()):  # as optim.name=adamw
            return [suggest_keys(line, key, group)]
        own = [leaf for root, node in self.cfg.items() if (root == "hydra") == is_hydra for leaf, _ in iter_leaves(root, node)]
        groups = [
            group
            for group, options in list_groups().items()
            if {respell_option(group, v) for v in typed.split(",")} <= set(options) or count_changed_letters(key, group) <= 2
        ]
        known = [name for name in own + groups if not f"{name}.".startswith(f"{key}.")]
        names = [name for name in suggest(key, known) if key.endswith("_") or not name.endswith("_")]
        tails = [name for name in names if squash(name.rpartition(".")[2]) == squash(key.rpartition(".")[2])]
        habits = [] if tails and not is_whole_habit(key) else self.suggest_habit(key, line)
        return habits or [suggest_keys(line, key, *(tails or names or ([f"+{key}"] if self.may_add(key) else [])))]

    def add_tracker(self, name: str) -> str:
        """Return the override that chooses a tracker besides those that are."""
        sinks = self.get("tracker.sinks")
        names = [
            other for other in (sinks if isinstance(sinks, dict) else ()) if other in list_groups()["tracker"] and other != name
        ]
        return shlex.join([f"tracker=[{','.join([*names, name])}]" if names else f"tracker={name}"])

    def suggest_tracker(self, key: str, line: str) -> list[str]:
        """Return the tracker that an unknown key is a setting of, where its sink is not chosen; else nothing."""
        parts, value = key.split("."), line.partition("=")[2]
        if parts[0] != "tracker" or len(parts) == 1 or not value or line.startswith("~"):
            return []
        others = {name: list_sink_keys(name) for name in list_groups()["tracker"]}
        others = {name: keys for name, keys in others.items() if keys and self.get(f"tracker.sinks.{name}") is MISSING}
        is_short = len(parts) == 2  # as tracker.project
        owner = next((name for name in parts[1:] if name in others), "") or next(
            (name for name, keys in others.items() if is_short and parts[1] in [k.rpartition(".")[2] for k in keys]), ""
        )
        if not owner:
            return []
        near = suggest(parts[-1], [name.rpartition(".")[2] for name in others[owner]])[:1]
        settings = [name for name in others[owner] if name.rpartition(".")[2] in near]
        settings = [] if parts[-1] == owner else [name for name in settings if name == key] or settings
        words = [self.add_tracker(owner), *(quote_word(f"{name}={value}") for name in settings[:1])]
        return [f"tracker={owner} is not chosen", f"did you mean: {' '.join(words)} ?"]

    def suggest_habit(self, key: str, line: str) -> list[str]:
        """Return what stands for a key of other programs: ours, that of another option, or another way; else nothing."""
        habits = sorted(list_habits(key), key=lambda name: name.rpartition(".")[0] != key.rpartition(".")[0])
        habit = next((name for name in habits if self.get(name) is not MISSING), next(iter(habits), ""))
        if habit in list_groups() or habit.startswith("hydra/") or (habit and self.get(habit) is not MISSING):
            return [suggest_keys(line, key, habit)]
        hints = [hint for hint in self.suggest_options(habit, line) if hint] if habit else []
        return hints or [answer for answer in [answer_habit(key, line.partition("=")[2])] if answer]

    def suggest_options(self, key: str, line: str) -> list[str]:
        """Return which options have a key that the chosen one lacks, and the key with each of these; else nothing."""
        if key == "data.path" and self.get("data.masks") is not MISSING:
            return ["images and masks are two folders: data.images=FOLDER data.masks=FOLDER"]
        value = quote_word(line).partition("=")[2]
        group, _, rest = key.partition(".")
        node = next(
            (f"{root}.{group}" for root in self.cfg if root != "hydra" and isinstance(self.get(f"{root}.{group}"), dict)), group
        )  # of linear
        words = [f"{option} {node}.{rest}={value}" for option in self.find_options(key)[1]] if value else []
        if key == "data.path" and (typed := line.partition("=")[2]) and os.path.exists(expand_path(typed)):
            words = list_readers(typed) or words
        return [self.describe_absence(key), f"did you mean: {' or '.join(words)} ?" if words else ""]

    def may_add(self, key: str) -> bool:
        """Return whether a + would add a key: a setting of its node's target, or a part of one that holds any keys."""
        node, _, name = key.rpartition(".")
        target, is_node = self.get(f"{node}._target_"), isinstance(self.get(node), dict)
        is_free = target is MISSING and self.get(f"{node.rpartition('.')[0]}._target_") is not MISSING
        return is_node and (name in self.get_signature(node).names or is_free)

    def find_new_key(self, key: str) -> str | None:
        """Return the current name of a key that was renamed; None for any other, as one that its node's target takes."""
        node, _, name = key.rpartition(".")
        return None if name in self.get_signature(node).names else find_new_key(key, self.get(f"{node}._target_"))

    def find_options(self, key: str) -> tuple[str, list[str]]:
        """Return the chosen option of a key's group, and those that have the key where the chosen one lacks it."""
        parent, _, name = key.rpartition(".")
        group = parent.rpartition(".")[2]  # as linear for model.linear
        choice, options = f"{group}={self.get_choice(group)}", list_groups().get(group, ())
        shape = self.get_signature(group).parse_shape()  # data of the same shape need no other model: they come first
        ordered = sorted(options, key=lambda option: read_option(group, option).parse_shape() != shape)
        having = [option for option in ordered if name in read_option(group, option).names]
        offers = [option for option in having if option in list_offers(group)]
        others = [f"{group}={option}" for option in offers or having]
        if not others:  # those whose yaml has it, as callbacks=ternary for callbacks.ternary.every
            group, part = [*key.split("."), ""][:2]
            choice = f"{group}={self.get_choice(group)}"
            pattern = rf"(?m)^(?:{group}:\n(?:  .*\n)*?  )?{re.escape(part)}:"
            options = () if self.get(f"{group}.{part}") is not MISSING else list_groups().get(group, ())
            others = [f"{group}={option}" for option in options if re.search(pattern, read_yaml(group, option))]
        return choice, others if choice not in others else []

    def describe_absence(self, key: str) -> str:
        """Return which options of a group have a key that the chosen one lacks; empty where none has it."""
        choice, others = self.find_options(key)
        group, _, option = choice.partition("=")
        if option == "None" and others:
            is_list = isinstance(self.get(group), dict)  # of options, as callbacks=[ternary,profiler]
            return f"{'it' if is_list else f'no {group}= is chosen; it'} is a setting of {' and '.join(others)}"
        return f"{choice} has no such setting, unlike {', '.join(others)}" if others else ""


@cache
def list_sink_keys(tracker: str) -> list[str]:
    """Return the settings of a tracker that has a sink; of one without settings its sink."""
    try:
        node = yaml.safe_load(read_yaml("tracker", tracker))
    except yaml.YAMLError:
        return []
    if not isinstance(node, dict) or not isinstance(node.get("sinks"), dict):
        return []
    leaves = [leaf for leaf, _ in iter_leaves("tracker", node)]
    keys = [leaf for leaf in leaves if not leaf.endswith("._target_")]
    return keys or [f"tracker.sinks.{name}" for name in node["sinks"]]


@contract
def read_option(group: str, option: str) -> Signature:
    """Return the signature of an option's target; an empty one where it cannot be read."""
    return read_signature(find_target(group, option)) or Signature()


@contract
def suggest_keys(line: str, key: str, *names: str) -> str:
    """Return what an override may mean, with its ~ and its value where it sets this very key; empty without a name."""
    match = re.fullmatch(rf"(~?)\+*{re.escape(key)}(=?)(.*)", line, re.DOTALL)
    sign, equal, value = match.groups() if match else ("", "", "")
    words = [f"{sign}{name}{equal}{respell(name, value)}" for name in names]
    return f"did you mean: {' or '.join(map(quote_word, words))} ?" if names else ""
