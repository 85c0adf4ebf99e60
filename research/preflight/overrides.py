"""The words of a command line: which of them Hydra can read, which group has which option, what a sweep runs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from research.preflight.help import list_groups
from research.preflight.suggest import suggest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MAX_SWEEP_VALUES = 50  # values of a sweep that are looked at
MAX_LINES = 6  # of one mistake


class Conflict(NamedTuple):
    """Keys that do not go together: what is wrong, and the values that would do."""

    keys: tuple[str, ...]
    message: str
    fix: str


def format_mistake(head: str, *lines: str) -> str:
    return "\n  ".join((f"error: {head}", *(line for line in lines[: MAX_LINES - 1] if line)))


def get_key(override: "Override") -> str:
    return str(override.get_key_element()).lstrip("+~")


def parse(arguments: list[str]) -> tuple[list["Override"], list[str]]:
    """The overrides that can be read, and what is wrong with the others."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, overrides, wrong = OverridesParser.create(), [], []
    for argument in arguments:
        name, equal, value = argument.partition("=")
        try:
            override = parser.parse_override(argument)
            if override.key_or_group:
                overrides.append(override)
                continue
        except HydraException:
            pass
        if not equal or not re.fullmatch(r"[+~]{0,2}[\w./@:$-]+", name) or value != value.lstrip():
            lines = ["an override is key=value, without spaces around '=', as trainer.eval_every=5"]
        else:
            quoted = value.replace('"', "'")
            lines = [f"{value} cannot be read: brackets must close; text with brackets, commas or = needs quotes"]
            lines += [f"a list: '{name}=[a,b]'   text: '{name}=\"{quoted}\"'"]
        wrong.append(format_mistake(argument, *lines))
    return overrides, wrong


def check_no_sweep(override: "Override") -> str:
    """What Hydra says to a sweep without -m."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.errors import ConfigCompositionException
    from hydra.types import RunMode

    try:
        ConfigLoaderImpl.validate_sweep_overrides_legal([override], RunMode.RUN, from_shell=True)
    except ConfigCompositionException as error:
        return format_mistake(str(override.input_line), *str(error).splitlines())
    return ""


def expand_sweep(override: "Override") -> list[str]:
    """Each value of a sweep as an override of its own; of an interval its ends."""
    from hydra.core.override_parser.types import Glob, IntervalSweep, QuotedString, Transformer

    if not override.is_sweep_override():
        return [str(override.input_line)]
    swept: Any = override.value()
    if isinstance(swept, IntervalSweep):
        texts = [str(swept.start), str(swept.end)]
    elif isinstance(swept, Glob):
        texts = swept.filter(list_groups().get(override.key_or_group, []))
    else:
        found = islice(override.sweep_iterator(transformer=Transformer.identity), MAX_SWEEP_VALUES)
        texts = [to_override(each.text if isinstance(each, QuotedString) else each) for each in found]
    return [f"{override.get_key_element()}={text}" for text in texts]


def check_sweep_values(override: "Override") -> str:
    """What is wrong with a sweep over no value at all; of groups `no_option` tells."""
    return format_mistake(str(override.input_line), "nothing is between start and stop") if not expand_sweep(override) else ""


def check_option(override: "Override") -> str:
    """What is wrong with the choice of a group's option."""
    group, line = override.key_or_group, str(override.input_line)
    options = list_groups().get(group)
    if options is None or override.is_delete():
        return ""
    chosen = [each.value() for each in parse(expand_sweep(override))[0]]
    for name in [name for value in chosen for name in (value if isinstance(value, list) else [value])]:
        if name is None:
            return format_mistake(line, f"a group takes one of its options: {', '.join(options)}", f"none of them: ~{group}")
        if name not in options:
            near = suggest(str(name), options)
            there = f"group '{group}' has no option '{name}'; options: {', '.join(options)}"
            return format_mistake(line, there, f"did you mean: {' or '.join(f'{group}={n}' for n in near)} ?" if near else "")
    return "" if chosen else format_mistake(line, f"no option of group '{group}' matches; options: {', '.join(options)}")


def iter_variants(overrides: list["Override"]) -> Iterator[list["Override"]]:
    """The first run of a sweep, then one run for each other value of each key."""
    sweeps = [parse(expand_sweep(override))[0] for override in overrides]
    first = [sweep[0] for sweep in sweeps]
    yield first
    for place, sweep in enumerate(sweeps):
        for other in sweep[1:]:
            yield [*first[:place], other, *first[place + 1 :]]


def to_override(value: Any) -> str:
    """A value as an override gives it, so that Hydra reads back the very same."""
    from hydra.core.override_parser.types import QuotedString

    value = value.text if isinstance(value, QuotedString) else value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{to_override(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(to_override, value)) + "]"
    return quote_if_needed(str(value))


def quote_if_needed(text: str) -> str:
    """A text without quotes where Hydra reads it so, or else in quotes."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString

    if text and text == text.strip() and text.isascii() and all(c.isalnum() or c in "_-./" for c in text):
        read_back = OverridesParser.create().parse_override(f"x={text}").value()
        if isinstance(read_back, str) and read_back == text:
            return text
    return QuotedString(text, Quote.single).with_quotes()
