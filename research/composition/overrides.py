"""The overrides of a command line: parse them, check each by itself, expand sweeps into runs; values as overrides."""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
    Transformer,
)
from hydra.errors import HydraException

from research.cli import UNPRINTABLE
from research.contracts import contract
from research.options.conf import find_target, list_groups
from research.options.habits import answer_habit, find_habit
from research.ranges import MAX_NESTING
from research.run_dir import RUN_ID_PATTERN, expand_path
from research.signals import find_program

MAX_VALUES = 100_000  # of one range or choice
MAX_SWEEP_VALUES = 50  # values of a sweep that are checked
CONFIG_DIR = ("--config-dir", "-cd")  # Hydra's flag
MAX_LINES = 6  # of one mistake


@contract
def format_mistake(head: str, *lines: str) -> str:
    """Return an error for the terminal: what was typed, then what is wrong and what would be right."""
    once = (line.removeprefix(f"{head}: ") for line in lines[: MAX_LINES - 1])  # as a constructor says it, which has no head
    return "\n  ".join((f"error: {head}", *filter(None, once)))


@contract
def fit_lines(mistakes: list[str]) -> list[str]:
    """Return the mistakes of a command line in at most MAX_LINES lines: one each, with its fix, where they are more."""
    if len(mistakes) < 2 or len("\n".join(mistakes).splitlines()) <= MAX_LINES:
        return mistakes
    lines = [f"{mistake.split(chr(10))[0]}: {mistake.split(chr(10))[-1].strip()}" for mistake in mistakes]
    more = len(lines) - (MAX_LINES - 1)
    return lines if more < 2 else [*lines[: MAX_LINES - 1], f"and {more} other mistakes"]


@contract
def get_key(override: Override) -> str:
    """Return the key that an override sets, with its package, without + and ~."""
    return str(override.get_key_element()).lstrip("+~")


@cache
def create_parser() -> OverridesParser:
    """Return Hydra's parser of overrides."""
    return OverridesParser.create()


@contract
def parse(arguments: list[str]) -> tuple[list[Override], list[str]]:
    """Parse arguments; return the overrides, and a mistake for each argument that is none."""
    parser, overrides, mistakes = create_parser(), [], []
    for argument in arguments:
        with suppress(HydraException):
            if UNPRINTABLE.search(argument):
                raise HydraException
            override = parser.parse_override(argument)
            if override.key_or_group:
                overrides.append(override)
                continue
        name, equal, value = argument.partition("=")
        if UNPRINTABLE.search(argument):
            lines = ["an override is one line of text, without control characters or bytes that are not UTF-8"]
        elif not equal or not re.fullmatch(r"[+~]{0,2}[\w./@:$-]+", name) or value != value.lstrip():
            lines = ["an override is key=value, without spaces around '=', as trainer.eval_every=5"]
        elif not all(name.lstrip("+~").split(".")):
            lines = ["the names of a key stand between single dots, as trainer.eval_every"]
        else:
            what = "brackets must close; text with brackets, commas, = or letters beyond ASCII needs quotes"
            closed = [f"one list: {shlex.quote(f'{name}={value}]')}"] if value.startswith("[") else []
            lines = [f"{value} cannot be read: {what}", *closed, f"one text: {quote_word(f'{name}={to_override(value)}')}"]
        mistakes.append(format_mistake(argument, *lines))
    return overrides, mistakes


@contract
def expand_argument(argument: str) -> str:
    """Return an argument as Hydra reads it: resume=X as resume.path=X, since `resume` holds keys, and KEY=~/X without its ~."""
    argument = re.sub(r"^(\+{0,2})resume=", r"\1resume.path=", argument)
    key, _, value = argument.partition("=")
    is_path = re.fullmatch(r"~[^,'\"(){}\[\]]*", value)  # one path that Hydra's grammar has no word for
    return f"{key}={to_literal(str(expand_path(value)))}" if is_path else argument


@contract
def check_no_sweep(override: Override) -> str:
    """Return the mistake of a sweep or a study without -m; empty for a single value."""
    line = str(override.input_line)
    key, _, values = line.partition("=")
    fix = "a sweep: add -m (or --multirun)"
    if not override.is_sweep_override():
        is_study = override.key_or_group == "sweep" and not override.is_delete() and override.value() is not None
        return format_mistake(line, "a study starts several runs, and needs -m", fix) if is_study else ""
    if key not in list_groups() and (answer := answer_habit(key, values)):
        return format_mistake(line, f"there is no key '{key}'", answer)
    if key not in list_groups() and (habit := find_habit(key)) and habit.rpartition(".")[2] != key:
        message = f"there is no key '{key}', and a sweep needs -m"
        return format_mistake(line, message, f"did you mean: {quote_word(f'{habit}={values}')} ?")
    # A function, as range(0,3), can be nothing else; bare commas may stand for a list, belong to a text, or to one number.
    is_apart = "(" in values or (key != "tracker" and find_target(key, values.partition(",")[0]))  # one option makes a node
    others = [] if is_apart else [f"one list: {shlex.quote(f'{key}=[{values}]')}", f"one text: {quote(key, values)}"]
    if match := re.fullmatch(r"(\d+),(\d+)", values):
        number = "".join(match.groups()) if re.fullmatch(r"[1-9]\d{0,2},\d{3}", values) else ".".join(match.groups())
        others.insert(0, f"did you mean: {key}={number} ?")
    return format_mistake(line, f"{key} has several values, and a sweep needs -m", fix, *others)


def check_numbers(override: Override) -> None:
    """Raise ValueError for a sweep whose values are too many, whose numbers a cast has cut, or whose tag has no effect."""
    sweep, line = override.value(), str(override.input_line)
    if isinstance(sweep, Sweep) and (odd := sweep.tags - ({"log"} if isinstance(sweep, IntervalSweep | RangeSweep) else set())):
        raise ValueError(f"{line}: a tag {', '.join(sorted(odd))} has no effect; there is log, of intervals and ranges")
    if isinstance(sweep, IntervalSweep | RangeSweep) and "int(" in line:
        typed: Any = create_parser().parse_override(re.sub(r"\bint\(", "float(", line)).value()
        numbers = [number for name in ("start", "stop", "end", "step") if (number := getattr(typed, name, None)) is not None]
        if any(number % 1 for number in numbers):
            fix = (isinstance(typed, IntervalSweep) and cast_interval(typed)) or "whole numbers"
            raise ValueError(f"{line}: int cuts {', '.join(f'{number:g}' for number in numbers if number % 1)}; give {fix}")
    if isinstance(sweep, RangeSweep):
        if sweep.step == 0:
            raise ValueError(f"{line}: the step must not be 0")
        count = (cast(float, sweep.stop) - cast(float, sweep.start)) / sweep.step
        if not 0 < count <= MAX_VALUES:
            raise ValueError(f"{line}: {'nothing is' if count <= 0 else 'too many values are'} between start and stop")


def cast_interval(interval: IntervalSweep) -> str:
    """Return the interval of the whole numbers in an interval as one types it; empty where there is none."""
    ends = [cast(float, interval.start), cast(float, interval.end)]
    if not all(map(math.isfinite, ends)) or (low := math.ceil(ends[0])) > (high := math.floor(ends[1])):
        return ""
    return f"int(interval({low},{high}))"


@contract
def cast_intervals(line: str) -> str:
    """Return a line with each interval that is not cast as one of whole numbers, where there are any between its ends."""

    def cast_one(match: re.Match[str]) -> str:
        interval: Any = create_parser().parse_override(f"x={match[0]}").value()
        return cast_interval(interval) or match[0]

    return re.sub(r"(?<!int\()interval\([^()]*\)", cast_one, line)


@contract
def expand_sweep(override: Override) -> list[str]:
    """Return each value of a sweep as an override of its own; the two ends of an interval. Raise as `check_numbers` does."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    check_numbers(override)
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        texts = [str(sweep.start), str(sweep.end)]
    elif isinstance(sweep, Glob):
        texts = sweep.filter(list_groups().get(override.key_or_group, []))
    else:
        values = islice(override.sweep_iterator(transformer=Transformer.identity), MAX_SWEEP_VALUES)
        texts = [to_override(value.text if isinstance(value, QuotedString) else value) for value in values]
    return [f"{override.get_key_element()}={text}" for text in texts]


@contract
def iter_variants(overrides: list[Override]) -> Iterator[list[Override]]:
    """Yield the first run of a sweep, then one run for each other value of each key: not the whole product.

    Raise ValueError for a sweep that has no value, or as `check_numbers` does.
    """
    sweeps = [parse(expand_sweep(override))[0] for override in overrides]
    for override in [override for override, sweep in zip(overrides, sweeps, strict=True) if not sweep]:
        raise ValueError(f"{override.input_line}: nothing to choose from")
    first = [sweep[0] for sweep in sweeps]
    yield first
    for index, sweep in enumerate(sweeps):
        yield from ([*first[:index], other, *first[index + 1 :]] for other in sweep[1:])


@contract
def format_key(key: Any) -> str:
    """Return a key of a mapping as Hydra reads it. Raise ValueError for a text that is no key in its grammar, as '1' or 'ü'."""
    for text in (str(key), re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", str(key)), to_override(key)):
        with suppress(HydraException):
            read = create_parser().parse_override(f"x={{{text}:0}}").value()
            if isinstance(read, dict) and [(type(item), item) for item in read] == [(type(key), key)]:
                return text
    raise ValueError(f"{{{key!r}: ...}} cannot be an override: Hydra has no such key; give a word of letters")


@contract
def to_override(value: Any, depth: int = MAX_NESTING) -> str:
    """Return a value as text from which Hydra parses the same value.

    Raise ValueError for a key that Hydra cannot have, and for what is nested deeper than `depth`.
    """
    if not depth:
        raise ValueError(f"{value!r} is nested too deeply for an override\nwrite it into a yaml of conf/")
    value = value.text if isinstance(value, QuotedString) else value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{format_key(key)}:{to_override(item, depth - 1)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(to_override(item, depth - 1) for item in value) + "]"
    text = str(value)
    # Text that Hydra parses as a text stays as it is.
    if re.fullmatch(r"[\w./-]+", text, re.ASCII) and create_parser().parse_override(f"x={text}").value() == text:
        return text
    return QuotedString(text, Quote.single).with_quotes()


@contract
def to_literal(text: str) -> str:
    """Return a text, as a path, for an override: Hydra and OmegaConf read this very text, also where it has a ${."""
    return to_override(re.sub(r"(\\*)\$\{", lambda match: rf"{match[1]}{match[1]}\${{", text))


@contract
def to_argument(key: str, text: str) -> str:
    """Return an override as one word of a command line that people copy: quoted for Hydra, then for the shell."""
    return shlex.quote(f"{key}={to_literal(text)}")


@contract
def quote_word(word: str) -> str:
    """Return an override as one word for the shell, its value in quotes where that is needed."""
    key, equal, value = word.partition("=")
    if "'" in value and not re.search(r"[$`\\!]", value):  # as a shell's single quotes would need four more each
        return f'{key}="{value.replace(chr(34), chr(92) + chr(34))}"'
    return f"{key}{equal}{shlex.quote(value) if value else ''}"


@contract
def format_command(
    overrides: Iterable[str], left_out: Iterable[str] = (), world_size: int = 1, argv: Sequence[str] = ()
) -> str:
    """Return the command line of a run, each word quoted, without resume and the overrides that begin with one of `left_out`.

    Folders of options that `argv` names stay: overrides may name what only these have.
    """
    launcher = ["torchrun", "--nproc-per-node", str(world_size)] if world_size > 1 else ["python"]
    pairs = zip(argv, [*argv[1:], ""], strict=False)
    folders = [
        f"--config-dir={word.partition('=')[2] or after}" for word, after in pairs if word.partition("=")[0] in CONFIG_DIR
    ]
    kept = [line for line in overrides if line and not line.startswith(("resume.", *left_out))]
    return shlex.join([*launcher, find_program(), *folders, *kept])


@contract
def quote(key: str, text: str) -> str:
    """Return an override as `to_argument` does; a ${KEY} in the text remains a reference."""
    return shlex.quote(f"{key}={to_override(text)}")


@contract
def check_resume_sweep(override: Override) -> str:
    """Return the mistake of a sweep over several MLflow runs: only one id can be resolved before Hydra starts."""
    is_sweep = override.key_or_group == "resume.path" and override.is_sweep_override()
    if not (is_sweep and any(re.search(RUN_ID_PATTERN, value) for value in expand_sweep(override))):
        return ""
    return format_mistake(str(override.input_line), "a sweep can start from one run in MLflow", "give the folders of several")
