"""The words of a command line that are no overrides, as people type them: --lr 1e-3, lr = 1e-3, model bitnet, lr=1e-3, 3e-4.

Each becomes the override that it means, which the preflight then judges like any other; it is told, and never taken silently.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath

from research.composition.overrides import format_mistake, parse, quote_word
from research.contracts import contract
from research.options.conf import CONF, list_groups
from research.options.habits import PRESET, find_command, find_habit, is_switch, respell_interval, respell_option

VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
PLAIN_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m")
INFO_FLAGS = ("--info", "-i")  # a value may follow
OTHER_FLAGS = ("--shell-completion", "-sc", "--experimental-rerun")
INFO_VALUES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
TEXT_KEYS = ("name", "out", "data.path")
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")
PLAIN = "settings are KEY=VALUE, without dashes"
APART = "an override is key=value, without spaces around '=' and after commas"
LOOKALIKES = str.maketrans(
    {**dict.fromkeys("‐‑‒–−﹣－", "-"), "—": "--", **dict.fromkeys("“”„‟«»＂", '"'), **dict.fromkeys("‘’‚‛", "'")}
    | {"＝": "=", "，": ",", "：": ":", "\u00a0": " ", "\u202f": " "}
)


@dataclass(frozen=True)
class Repair:
    """Words that are no override, with the override that they mean; without one, `lines` say what is right."""

    typed: str
    word: str = ""
    lines: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the mistake of words that mean no override."""
        return format_mistake(self.typed, *self.lines)


@contract
def join_mistakes(repairs: Sequence[Repair], mistakes: Sequence[str]) -> list[str]:
    """Return the mistakes of a command line with its repairs among them: an override may have a mistake of its own.

    Several that have none are told together, as the words that are right.
    """
    joined, clean = list(mistakes), list[Repair]()
    for item in repairs:
        own = [index for index, mistake in enumerate(joined) if mistake.startswith(f"error: {item.word}\n")]
        for index in own:
            joined[index] = format_mistake(item.typed, *item.lines[:1], *joined[index].split("\n  ")[1:])
        clean += [] if own else [item]
    if not clean:
        return joined
    reasons = dict.fromkeys(line for item in clean for line in item.lines[:1])
    fix = f"did you mean: {' '.join(quote_word(item.word) for item in clean)} ?"
    return [*joined, format_mistake(" ".join(item.typed for item in clean), *reasons, fix)]


@contract
def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return Hydra's own flags with their values, and all other words."""
    flags, words, rest = list[str](), list[str](), list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equal, _ = word.partition("=")
        if flag not in (*VALUE_FLAGS, *PLAIN_FLAGS, *INFO_FLAGS, *OTHER_FLAGS):
            words.append(word)
            continue
        flags.append(word)
        if rest and not equal and (flag in VALUE_FLAGS or (flag in INFO_FLAGS and rest[0] in INFO_VALUES)):
            flags.append(rest.pop(0))
    return flags, words


@contract
def is_override(word: str) -> bool:
    """Return whether Hydra can read a word."""
    return (("=" in word and not word.startswith("-")) or word.startswith("~")) and not parse([word])[1]


def is_bare(word: str) -> bool:
    """Return whether a word may be the value of the word before it: no flag and no override. A negative number may."""
    return "=" not in word and not re.match(r"-+[a-zA-Z]|~", word)


@contract
def repair(words: Sequence[str]) -> Iterator[str | Repair]:
    """Yield the overrides of a command line, and a Repair for all other words."""
    rest = [word for word in words if word]
    while rest:
        count, item = read_next(rest)
        yield item
        rest = rest[count:]


def read_next(rest: Sequence[str]) -> tuple[int, str | Repair]:
    """Return how many words belong to the first one, and what they mean together."""
    word = rest[0]
    bare = next((index for index, other in enumerate(rest[1:]) if not is_bare(other)), len(rest) - 1)  # that follow
    if is_override(word) and not (word.endswith("=") and bare):
        return read_more(rest, bare)
    plain = word if is_override(word) else word.translate(LOOKALIKES).strip().lstrip(",;")
    if match := re.fullmatch(r"-{1,2}([a-zA-Z][\w.-]*)(?:=(.*))?", plain, re.DOTALL):
        return read_flag(rest, match[1].replace("-", "_"), match[2], bare)
    if "=" in plain or plain.endswith(":"):
        return read_pair(rest, plain, bare)
    if match := re.fullmatch(r"([\w./]+)(?:\s*:\s*|\s+)(.+)", plain):  # one argument, as 'lr: 1e-3'
        return 1, repair_pair(word, match[1], match[2])
    return read_name(rest, plain, bare)


def read_more(rest: Sequence[str], bare: int) -> tuple[int, str | Repair]:
    """Read an override, with the words after it that belong to its value: of a text with spaces, or numbers of a sweep."""
    key, _, value = rest[0].partition("=")
    more = list(rest[1 : 1 + bare])
    if key in TEXT_KEYS and more and not is_key(more[0]):
        return 1 + bare, repair_pair(
            " ".join(rest[: 1 + bare]), key, f"'{' '.join([value, *more])}'", "a text with spaces needs quotes"
        )
    count = 1 + next((i for i, other in enumerate(more) if not NUMBER.fullmatch(other)), len(more))
    if count > 1 and NUMBER.fullmatch(value):
        return count, repair_pair(" ".join(rest[:count]), key, ",".join([value, *rest[1:count]]))
    return 1, rest[0]


def read_flag(rest: Sequence[str], key: str, value: str | None, bare: int) -> tuple[int, Repair]:
    """Read what stands for a key in programs with argparse: --key value, --key=value, or --key for true."""
    numbers = next(
        (i for i, other in enumerate(rest[1:]) if not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", other)), len(rest) - 1
    )
    count = 1 if value is not None else 1 + (max(1, numbers) if bare else 0)
    if value is None:
        following = list(rest[1:count])
        value = f"[{','.join(following)}]" if count > 2 else following[0] if following else "true"
    typed = " ".join(rest[:count])
    if (file := read_file(typed, value)) and count > 1:  # --config FILE
        return count, file
    if count == 1 and value == "true":
        flags = [flag for flag in (*PLAIN_FLAGS, *VALUE_FLAGS) if flag.startswith("--")]
        near = get_close_matches(f"--{key}", flags, n=1, cutoff=0.75)
        if near or re.sub("^-+", "-", typed.translate(LOOKALIKES)) in PLAIN_FLAGS:
            return 1, Repair(typed, "", (f"did you mean: {near[0] if near else '-' + key} ?",))
        if (command := find_command(key)) and not is_switch(key):
            return 1, Repair(typed, "", (command,))
        if is_key(key) and not find_habit(key) and key not in ("resume", *list_groups()):
            return 1, Repair(typed, "", (f"{key} needs a value: {key}=VALUE",))
    value = "auto" if key == "resume" and value == "true" else value
    return count, repair_pair(typed, key, value, PLAIN)


def read_pair(rest: Sequence[str], plain: str, bare: int) -> tuple[int, str | Repair]:
    """Read a key and a value with something wrong between or after them: spaces, a colon, a trailing comma, open brackets."""
    words = re.split(r"\s*[,; ]\s*(?=[+~]*[a-z][\w./]*=)", plain)  # several overrides as one argument
    if len(words) > 1 and all(map(is_override, words)):
        return 1, Repair(rest[0], "", (APART, f"did you mean: {' '.join(map(quote_word, words))} ?"))
    key, value = re.split(r"\s*(?:=+>?|:=?)\s*", plain, maxsplit=1) if "=" in plain else (plain[:-1], "")
    count = 1
    while count <= bare and (not value or value.endswith(",") or count_open(value) > 0 or rest[count].startswith(",")):
        value += rest[count].translate(LOOKALIKES)
        count += 1
    if not key or (count == 1 and key in ("out", "data.path")):  # an = by itself; a path may hold anything
        return 1, rest[0]
    typed = " ".join(rest[:count])
    value = value if count_open(value) else value.rstrip(",;")
    value = respell_interval(value) or re.sub(r"^\(([^()]*)\)$", r"[\1]", value.replace(";", ","))
    if count == 1 and f"{key}={value}" == rest[0]:
        return 1, rest[0]  # which the parser explains
    return count, repair_pair(typed, key, value.replace(", ", ","))


def read_name(rest: Sequence[str], plain: str, bare: int) -> tuple[int, str | Repair]:
    """Read a word without a value: a key before its value or an =, an option, a file of conf/, a command of other programs."""
    word, key = rest[0], plain.replace("-", "_")
    if len(rest) > 1 and rest[1].startswith("="):
        count = 2 if rest[1].strip("= ") else min(3, len(rest))
        return count, repair_pair(" ".join(rest[:count]), key, "".join(rest[1:count]).lstrip("= "))
    groups = list_groups()
    if file := read_file(word, plain):
        return 1, file
    group, _, text = re.sub("[/:]", ".", plain).partition(".")  # model.bitnet, model/bitnet
    if (name := respell_option(group, text)) in groups.get(group, ()):
        return 1, repair_pair(word, group, name)
    if bare and is_key(key):
        return 2, repair_pair(" ".join(rest[:2]), key, rest[1].translate(LOOKALIKES))
    if "." in plain and (command := find_command(plain)):  # python train.py
        return 1, Repair(word, "", (command,))
    if "/" in plain or os.path.exists(plain):
        return 1, Repair(word, "", (APART, f"did you mean: resume={plain} or data=text data.path={plain} ?"))
    options = [f"{group}={respell_option(group, plain)}" for group in groups if respell_option(group, plain) in groups[group]]
    if options:
        return 1, Repair(word, "", (APART, f"did you mean: {' or '.join(options[:3])} ?"))
    if command := find_command(plain):
        return 1, Repair(word, "", (command,))
    return 1, Repair(word, "", (f"{word} needs a value: {word}=VALUE",)) if is_key(key) else word


@contract
def is_key(name: str) -> bool:
    """Return whether a name is a group, a key at the top, or what others call a key."""
    return (
        name in list_groups() or bool(find_habit(name)) or bool(re.search(rf"^{re.escape(name)}:", read_config(), re.MULTILINE))
    )


def repair_pair(typed: str, key: str, value: str, reason: str = APART) -> Repair:
    """Return the repair of a key and its value; where they are no override either, what is right in general."""
    value = value.strip("\"'") if value[:1] in ('"', "'") else value
    override = f"{key}={value}"
    return Repair(typed, override, (reason,)) if is_override(override) else Repair(typed, "", (reason,))


@contract
def read_file(typed: str, text: str) -> Repair | None:
    """Return the option that a file of conf/ stands for, or how another yaml becomes one; None for what is no such file."""
    path = PurePath(text)
    group, is_yaml = path.parent.name, path.suffix in (".yaml", ".yml")
    if path.stem in list_groups().get(group, ()):
        return Repair(typed, f"{group}={path.stem}", (PRESET,))
    if not is_yaml:
        return None
    if path.name == "config.yaml":
        return Repair(typed, "", ("conf/config.yaml is always read; change a key of it with KEY=VALUE",))
    return Repair(typed, "", (PRESET, f"save it as conf/experiment/{path.stem}.yaml; then experiment={path.stem}"))


@contract
def find_notes(words: Sequence[str], multirun: bool) -> list[str]:
    """Return a note for each key that is given twice, where the last value counts, and for a sweep in which nothing varies."""
    first, notes = dict[str, str](), list[str]()
    if multirun and not any("," in word or "(" in word or word.startswith(("sweep=", "hydra", "-")) for word in words):
        notes.append("note: a sweep of one run; several are -m lr=1e-3,3e-4")
    for word in words:
        key, equal, _ = word.partition("=")
        if equal and not word.startswith(("-", "+")) and first.setdefault(key, word) != word:
            notes.append(f"note: {first[key]} is given again as {word}: the last one counts, and a sweep is -m {key}=A,B")
            first[key] = word
    return notes


def read_config() -> str:
    """Return the text of conf/config.yaml."""
    return (CONF / "config.yaml").read_text(encoding="utf-8")


def count_open(value: str) -> int:
    """Return how many brackets are open at the end of a text."""
    return sum(value.count(a) - value.count(b) for a, b in ("[]", "{}", "()"))
