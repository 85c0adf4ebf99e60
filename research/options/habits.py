"""What other programs call settings, switches, values and commands, and how people spell them: answered with ours.

The names stand in habits.toml.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from research.contracts import contract
from research.options.conf import list_groups
from research.ranges import ValueType

TABLES = Path(__file__).with_name("habits.toml")
PRESET = "options are chosen by name: GROUP=OPTION; several at once are a preset: experiment=NAME (conf/experiment/NAME.yaml)"
FALSE, TRUE = ("false", "0", "no", "off", "null", "none", "n"), ("true", "1", "yes", "on", "y", "t")


def squash(name: str) -> str:
    """Return a name without what people write differently: case, - and _."""
    return re.sub(r"[-_\s]", "", name).lower()


@cache
def read_tables() -> dict[str, Any]:
    """Return the tables of habits.toml as they stand there: what is right -> words of others."""
    return tomllib.loads(TABLES.read_text(encoding="utf-8"))


@cache
@contract
def index(name: str, key: str | None = None) -> dict[str, str]:
    """Return a table by each of its words, squashed; of `values` that of a key."""
    table = read_tables()[name] if key is None else read_tables()[name].get(key, {})
    return {squash(word): ours for ours, words in table.items() for word in words.split()}


@contract
def find_habit(key: str) -> str:
    """Return our key for what others call the last part of a key; empty where it is not known."""
    return next(iter(list_habits(key)), "")


@contract
def list_habits(key: str) -> list[str]:
    """Return our keys for what others call a key or its last part: one an option, as data.label and data.target."""
    names = {ours: [squash(word) for word in words.split()] for ours, words in read_tables()["names"].items()}
    ours = [name for name, words in names.items() if "." in key and squash(key) in words]
    return ours or [name for name, words in names.items() if squash(key.rpartition(".")[2]) in words]


@contract
def is_whole_habit(key: str) -> bool:
    """Return whether others call a setting by this whole key, whose last part may be the name of another one."""
    return squash(key) in index("names") and "." in key


@contract
def find_command(word: str) -> str:
    """Return what is right for a word alone that is a command of other programs; empty where it is not known."""
    return index("commands").get(squash(word), "")


def find_value(key: str, text: str) -> str:
    """Return our value for what others call a value of a key, whose last part counts; empty where it is not known."""
    return index("values", key.rpartition(".")[2]).get(squash(text), "")


@contract
def explain_value(key: str, text: str) -> str:
    """Return what is right in place of a value of a key that has none here; empty where it is not known."""
    return index("answers", key.rpartition(".")[2]).get(squash(text), "")


@contract
def explain_options(group: str) -> str:
    """Return what to do about an option that a group lacks; empty where nothing is known."""
    return str(read_tables()["options"].get(group, ""))


@contract
def is_switch(key: str) -> bool:
    """Return whether others switch something on by this name."""
    return squash(key) in index("switches")


@contract
def answer_habit(key: str, value: str) -> str:
    """Return the advice about a switch of others, or about what has no key of ours; empty where it is not known."""
    word = squash(key.rpartition(".")[2])
    if word in index("switches"):
        fix = index("switches")[word].split("|")[squash(value) in FALSE]
        return f"did you mean: {fix} ?" if fix else f"leave out {key}={value}"
    return index("explanations").get(word, "")


@contract
def respell_option(group: str, text: str) -> str:
    """Return the option of a group that a text means, as BitNet, bitnet.yaml or conf/model/bitnet.yaml; else the text."""
    path = PurePath(text)
    name = path.stem if path.suffix in (".yaml", ".yml") else path.name
    options = {squash(option): option for option in list_groups().get(group, ())}
    theirs = find_value(group, text) or find_value(group, name)
    return options.get(squash(name)) or options.get(squash(theirs)) or text


@contract
def respell(key: str, text: str) -> str:
    """Return the value of a key as we write it, where others write it otherwise; else the text."""
    if key in list_groups():
        return ",".join(respell_option(key, part) for part in text.split(",")) if re.fullmatch(r"[\w.,/-]+", text) else text
    return find_value(key, text) or text


@contract
def iter_respelt(key: str, value: object, value_types: Sequence[ValueType]) -> Iterator[object]:
    """Yield what a value that is refused may mean: a choice in another case, a whole number as 1e3 or 1k, yes as true."""
    text = str(value).strip().lower()
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        yield f"[{value[0]}]"  # as the token [EOS]
    if ours := find_value(key, text):
        yield ours
    choices = {squash(str(choice)): choice for kind in value_types for choice in kind.choices}
    yield from (choices[name] for name in get_close_matches(squash(text), choices, n=1, cutoff=0.6))
    if match := re.fullmatch(r"([-+]?\d[\d_,' ]*\.?\d*(?:e[-+]?\d+)?)([km%f]?)", text):
        number = round(float(re.sub("[_,' ]", "", match[1])) * {"k": 1e3, "m": 1e6, "%": 0.01}.get(match[2], 1), 12)
        yield from [int(number), number] if number == int(number) else [number]
        yield from [number / 100] if 1 < number <= 100 else []  # in percent
    if key.endswith("seconds") and (match := re.fullmatch(r"(\d+\.?\d*) ?(s|sec|m|min|h|hours?|d|days?)", text)):
        yield round(float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2][0]])
    if key.endswith("seconds") and re.fullmatch(r"(?:\d+:){1,3}\d+", text):  # as 1:30:00
        yield sum(int(part) * unit for part, unit in zip(text.split(":")[::-1], (1, 60, 3600, 86400), strict=False))
    if text in FALSE:
        yield from (False, None, 0)
    if text in TRUE:
        yield True


@contract
def respell_sweep(value: object) -> str:
    """Return several numbers as a sweep has them: [a,b], a|b, a;b or "a b" as a,b, and 0..4 or 0-4 as a range; else nothing."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    number = r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?"
    if match := re.fullmatch(r"(\d+)(?:\.\.|-|:)(\d+)", str(value)):
        return f"range({match[1]},{int(match[2]) + 1})"
    return ",".join(re.split(r"[|; ]+", str(value))) if re.fullmatch(rf"{number}(?:[|; ]+{number})+", str(value)) else ""


@contract
def respell_interval(text: str) -> str:
    """Return an interval as a sweep has it, for what samplers of others are called: loguniform(a,b), np.logspace(-4,-2)."""
    if not (match := re.fullmatch(r"(?:\w+\.)*(\w+)\(([^,()]+),([^,()]+)(?:,[^()]*)?\)", text)):
        return ""
    name, low, high = match.groups()
    if "log" in name:
        low, high = (f"1e{low}", f"1e{high}") if "space" in name else (low, high)
        return f"tag(log,interval({low},{high}))"
    return f"interval({low},{high})" if re.search("uniform|linspace|float|int", name) else ""


def count_changed_letters(a: str, b: str) -> int:
    """Return the letters between the common start and the common end: 1 for a typing slip, 2 for two letters swapped."""
    length = max(len(a), len(b))
    for _ in range(2):  # cut the common start off both, and turn them round
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
        a, b, length = a[start:][::-1], b[start:][::-1], length - start
    return length


@contract
def suggest(word: str, names: list[str]) -> list[str]:
    """Return at most three names that `word` may stand for, best first. A key may be typed by its last part alone."""
    if same := [name for name in names if squash(name) == squash(word)]:
        return same[:3]
    ranked = []
    tail = word.rpartition(".")[2]
    for name in names:
        slip, tail_slip = count_changed_letters(word, name), count_changed_letters(tail, name.rpartition(".")[2])
        similarity = SequenceMatcher(None, word, name).ratio()
        is_near = slip <= 1 < min(len(word) + slip, len(name))
        ranks = (
            is_near,
            squash(tail) == squash(name.rpartition(".")[2]),
            slip == 2 < min(len(word), len(name)) or tail_slip == 1 < len(tail),
            similarity > 0.7,
        )
        if True in ranks:
            ranked.append((ranks.index(True), -similarity, name))
    return [name for rank, _, name in sorted(ranked)[:3] if rank <= max(1, min(ranked)[0])]
