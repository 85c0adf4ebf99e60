"""Keys that only some options of a swept group have: one mistake for all of them, and how the sweep may go on with them."""

import json
from typing import NamedTuple

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from research.composition.compose import MISSING, ComposedConfig, chooses_option, compose
from research.composition.overrides import expand_sweep, format_key, format_mistake, quote_word, to_override
from research.contracts import contract

WHEN = "hydra.sweeper.when"


class PartialKey(NamedTuple):
    """An override whose key some options of a swept group lack."""

    override: Override
    group: str
    having: list[str]  # options
    lacking: list[str]

    def describe(self) -> str:
        """Return which options lack the key."""
        having, lacking = (", ".join(f"{self.group}={o}" for o in options) for options in (self.having, self.lacking))
        return f"there is no key '{self.override.key_or_group}' with {lacking}, unlike with {having}"

    def get_words(self) -> tuple[str, str]:
        """Return the override as a sweep has it under a condition, and as it is without one; quoted for the shell."""
        key, values = self.override.key_or_group, str(self.override.input_line).partition("=")[2]
        plain = values if self.override.is_sweep_override() else f"choice({values})"
        return quote_word(f"{key}={plain}"), quote_word(f"{key}={values}")

    def get_condition(self) -> str:
        """Return the condition under which a run has the key."""
        return f'{self.group} == "{self.having[0]}"' if len(self.having) == 1 else f"{self.group} in {json.dumps(self.having)}"


@contract
def replace_partial_keys(mistakes: list[str], overrides: list[Override], runs: list[list[Override]]) -> list[str]:
    """Return the mistakes, with one in place of all those about keys that a sweep's options have only in part.

    With a + such a key is there already in some runs, without one it is unknown in others: neither advice would do.
    """
    heads = {mistake.removeprefix("error: ").split("\n  ")[0] for mistake in mistakes}
    partial, others, replaced = list[PartialKey](), list[str](), set[str]()
    for override in overrides if any(o.is_sweep_override() and chooses_option(o) for o in overrides) else []:
        line, own = str(override.input_line), {str(override.input_line), *expand_sweep(override)}
        if chooses_option(override) or not own & heads or (partial_key := find_partial_key(override, overrides, runs)) is None:
            continue
        replaced |= own
        if not partial_key.group:
            message = f"'{override.key_or_group}' is no key in some runs of this sweep"
            others.append(format_mistake(line, message, "sweep the options that have it by themselves"))
        elif override.is_delete():
            apart = quote_word(f"{partial_key.group}={','.join(partial_key.having)}")
            others.append(format_mistake(line, partial_key.describe(), f"did you mean: {apart} {line} ?"))
        else:
            partial.append(partial_key)
    kept = [text for text in mistakes if text.removeprefix("error: ").split("\n  ")[0] not in replaced]
    return [*kept, *others, *([describe_partial_keys(partial, overrides)] if partial else [])]


def describe_partial_keys(partial: list[PartialKey], overrides: list[Override]) -> str:
    """Return the mistake of such keys: each under a condition, all in one map, or without the options that lack it."""
    conditions = dict[str, str]()
    for override in overrides:
        if override.key_or_group == WHEN and isinstance(before := override.value(), dict):
            conditions |= {str(key): str(value) for key, value in before.items()}
    conditions |= {item.override.key_or_group: item.get_condition() for item in partial}
    when = quote_word(f"{WHEN}={{{', '.join(f'{format_key(key)}: {to_override(test)}' for key, test in conditions.items())}}}")
    options = dict[str, list[str]]()
    for item in partial:
        options[item.group] = [option for option in options.get(item.group, item.having) if option in item.having]
    plain, typed = zip(*(item.get_words() for item in partial), strict=True)
    apart = [quote_word(f"{group}={','.join(names)}") for group, names in options.items()]
    fix = " or ".join([" ".join([*plain, when]), *([" ".join([*apart, *typed])] if all(options.values()) else [])])
    head = " ".join(str(item.override.input_line) for item in partial)
    return format_mistake(head, *[item.describe() for item in partial][:3], f"did you mean: {fix} ?")


def find_partial_key(override: Override, overrides: list[Override], runs: list[list[Override]]) -> PartialKey | None:
    """Return which options of a swept group have a key; no group where none decides it, None where all runs are alike."""
    key, swept = override.key_or_group, [o.key_or_group for o in overrides if o.is_sweep_override() and chooses_option(o)]
    has_key: dict[tuple[str, str], set[bool]] = {}
    try:
        for run in runs:
            is_there = ComposedConfig(compose(run)).get(key) is not MISSING
            for choice in run if key in {o.key_or_group for o in run} else []:
                has_key.setdefault((choice.key_or_group, str(choice.input_line).partition("=")[2]), set()).add(is_there)
    except HydraException:
        return None  # the run reports it
    if len(set[bool]().union(*has_key.values())) < 2:
        return None
    for group in swept:
        choices = {text: sides for (name, text), sides in has_key.items() if name == group}
        having, lacking = ([text for text, sides in choices.items() if sides == {side}] for side in (True, False))
        if having and lacking and len(having) + len(lacking) == len(choices):
            return PartialKey(override, group, having, lacking)
    return PartialKey(override, "", [], [])
