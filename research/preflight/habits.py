"""What other programs call settings, switches, values and commands: looked up in habits.toml, and answered with ours."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

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
def index(name: str, key: str = "") -> dict[str, str]:
    """Return a table by each of its words, squashed; of `values` that of a key."""
    table = read_tables()[name].get(key, {}) if key else read_tables()[name]
    return {squash(word): ours for ours, words in table.items() for word in words.split()}


def find_habit(key: str) -> str:
    """Return our key for what others call the last part of a key; empty where it is not known."""
    return index("names").get(squash(key.rpartition(".")[2]), "")


def find_command(word: str) -> str:
    """Return what is right for a word alone that is a command of other programs; empty where it is not known."""
    return index("commands").get(squash(word), "")


def find_value(key: str, text: str) -> str:
    """Return our value for what others call a value of a key, whose last part counts; empty where it is not known."""
    return index("values", key.rpartition(".")[2]).get(squash(text), "")


def is_switch(key: str) -> bool:
    """Return whether others switch something on by this name."""
    return squash(key) in index("switches")


def answer_habit(key: str, value: str) -> str:
    """Return the advice about a switch of others, or about what has no key of ours; empty where it is not known."""
    word = squash(key.rpartition(".")[2])
    if word in index("switches"):
        fix = index("switches")[word].split("|")[squash(value) in FALSE]
        return f"did you mean: {fix} ?" if fix else f"leave out {key}={value}"
    return index("explanations").get(word, "")
