"""Values as we write them: what a value that is refused may mean."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import PurePath

from research.preflight.habits import FALSE, TRUE, find_value, squash
from research.preflight.help import list_groups
from research.ranges import ValueType


def respell_option(group: str, text: str) -> str:
    """Return the option of a group that a text means, as BitNet, bitnet.yaml or conf/model/bitnet.yaml; else the text."""
    path = PurePath(text)
    name = path.stem if path.suffix in (".yaml", ".yml") else path.name
    options = {squash(option): option for option in list_groups().get(group, ())}
    theirs = find_value(group, text) or find_value(group, name)
    return options.get(squash(name)) or options.get(squash(theirs)) or text


def respell(key: str, text: str) -> str:
    """Return the value of a key as we write it, where others write it otherwise; else the text."""
    if key in list_groups():
        return ",".join(respell_option(key, part) for part in text.split(",")) if re.fullmatch(r"[\w.,/-]+", text) else text
    return find_value(key, text) or text


def iter_respelt(key: str, value: object, value_types: Sequence[ValueType]) -> Iterator[object]:
    """Yield what a value that is refused may mean: a choice in another case, a whole number as 1e3 or 1k, yes as true."""
    text = str(value).strip().lower()
    if ours := find_value(key, text):
        yield ours
    choices = {squash(str(choice)): choice for kind in value_types for choice in kind.choices}
    yield from (choices[name] for name in get_close_matches(squash(text), choices, n=1, cutoff=0.6))
    if match := re.fullmatch(r"([-+]?\d[\d_,]*\.?\d*(?:e[-+]?\d+)?)([km%]?)", text):
        number = round(float(re.sub("[_,]", "", match[1])) * {"k": 1e3, "m": 1e6, "%": 0.01}.get(match[2], 1), 12)
        yield from [int(number), number] if number == int(number) else [number]
        yield from [number / 100] if 1 < number <= 100 else []  # in percent
    if text in FALSE:
        yield from (False, None, 0)
    if text in TRUE:
        yield True
