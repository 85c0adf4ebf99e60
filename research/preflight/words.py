"""The words of a command line that are no overrides, as people type them: --lr 1e-3, lr = 1e-3, model bitnet, lr=1e-3, 3e-4.

Each becomes the override that it means, which the preflight then judges like any other; it is told, and never taken silently.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from research.preflight.habits import PRESET, PROGRAM_COMMANDS, find_habit, squash
from research.preflight.help import CONF, list_groups
from research.preflight.overrides import format_mistake, parse, quote_word
from research.preflight.spelling import respell_option

VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
PLAIN_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m")
INFO_FLAGS = ("--info", "-i")  # a value may follow
OTHER_FLAGS = ("--shell-completion", "-sc", "--experimental-rerun")
INFO_VALUES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
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
        """Return the mistake."""
        return format_mistake(self.typed, *self.lines, f"did you mean: {quote_word(self.word)} ?" if self.word else "")

    def join(self, mistakes: list[str]) -> list[str]:
        """Return the mistakes of a command line with this one among them: the override may have a mistake of its own."""
        head = f"error: {self.word}\n"
        if not any(mistake.startswith(head) for mistake in mistakes):
            return [*mistakes, self.describe()]
        return [format_mistake(self.typed, *m.split("\n  ")[1:]) if m.startswith(head) else m for m in mistakes]


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


def is_override(word: str) -> bool:
    """Return whether Hydra can read a word."""
    return (("=" in word and not word.startswith("-")) or word.startswith("~")) and not parse([word])[1]


def is_bare(word: str) -> bool:
    """Return whether a word may be the value of the word before it: no flag and no override. A negative number may."""
    return "=" not in word and not re.match(r"-+[a-zA-Z]|~", word)


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
        return 1, word
    plain = word if is_override(word) else word.translate(LOOKALIKES).strip()
    if match := re.fullmatch(r"-{1,2}([a-zA-Z][\w.-]*)(?:=(.*))?", plain, re.DOTALL):
        return read_flag(rest, match[1].replace("-", "_"), match[2], bare)
    if "=" in plain or plain.endswith(":"):
        return read_pair(rest, plain, bare)
    if match := re.fullmatch(r"([\w./]+)(?:\s*:\s*|\s+)(.+)", plain):  # one argument, as 'lr: 1e-3'
        return 1, repair_pair(word, match[1], match[2])
    return read_name(rest, plain, bare)


def read_flag(rest: Sequence[str], key: str, value: str | None, bare: int) -> tuple[int, Repair]:
    """Read what stands for a key in programs with argparse: --key value, --key=value, or --key for true."""
    numbers = next(
        (i for i, other in enumerate(rest[1:]) if not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", other)), len(rest) - 1
    )
    count = 1 if value is not None else 1 + (max(1, numbers) if bare else 0)
    if value is None:
        following = list(rest[1:count])
        value = f"[{','.join(following)}]" if count > 2 else following[0] if following else "true"
    if key in ("resume", "r") and value == "true":
        value = "auto"
    if key in ("config", "cfg", "config_file") and (option := find_option_file(value)):
        return count, Repair(" ".join(rest[:count]), option, (PRESET,))
    return count, repair_pair(" ".join(rest[:count]), key, value, PLAIN)


def read_pair(rest: Sequence[str], plain: str, bare: int) -> tuple[int, str | Repair]:
    """Read a key and a value with something wrong between or after them: spaces, a colon, a trailing comma, open brackets."""
    if plain.count("=") > 1 and " " in plain and all(is_override(word) for word in shlex_split(plain)):
        words = shlex_split(plain)  # several overrides as one argument
        return 1, Repair(rest[0], "", (APART, f"did you mean: {' '.join(map(quote_word, words))} ?"))
    key, value = re.split(r"\s*(?:=+>?|:=?)\s*", plain, maxsplit=1) if "=" in plain else (plain[:-1], "")
    count = 1
    while count <= bare and (not value or value.endswith(",") or count_open(value) > 0 or rest[count].startswith(",")):
        value += rest[count].translate(LOOKALIKES)
        count += 1
    if not key:  # an = that stands by itself
        return count, parse_as_is(rest[0])
    typed = " ".join(rest[:count])
    value = value if count_open(value) else value.rstrip(",")
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
    if option := find_option_file(plain):
        return 1, Repair(word, option, (PRESET,)) if "=" in option else Repair(word, "", (PRESET, option))
    group, _, text = re.sub("[/:]", ".", plain).partition(".")  # model.bitnet, model/bitnet
    if (name := respell_option(group, text)) in groups.get(group, ()):
        return 1, repair_pair(word, group, name)
    is_key = key in groups or find_habit(key) or re.search(rf"^(?:  - )?{re.escape(key)}:", read_config(), re.MULTILINE)
    if bare and is_key and re.fullmatch(r"[\w./]+", key):
        return 2, repair_pair(" ".join(rest[:2]), key, rest[1].translate(LOOKALIKES))
    options = [f"{group}={respell_option(group, plain)}" for group in groups if respell_option(group, plain) in groups[group]]
    if options:
        return 1, Repair(word, "", (APART, f"did you mean: {' or '.join(options[:3])} ?"))
    if command := PROGRAM_COMMANDS.get(squash(plain)):
        return 1, Repair(word, "", (command,))
    return 1, parse_as_is(word, bool(is_key))


def parse_as_is(word: str, is_key: bool = False) -> str | Repair:
    """Return a word whose mistake the parser tells; of a key alone, that its value is missing."""
    return Repair(word, "", (f"{word} needs a value: {word}=VALUE",)) if is_key else word


def repair_pair(typed: str, key: str, value: str, reason: str = APART) -> Repair:
    """Return the repair of a key and its value; where they are no override either, what is right in general."""
    value = value.strip("\"'") if value[:1] in ('"', "'") else value
    override = f"{key}={value}"
    return Repair(typed, override, (reason,)) if is_override(override) else Repair(typed, "", (reason,))


def find_option_file(text: str) -> str:
    """Return the override that a file of conf/ stands for, or how to make an option of another yaml; empty for no yaml."""
    path = PurePath(text)
    group = path.parent.name
    if path.suffix not in (".yaml", ".yml") and group not in list_groups():
        return ""
    if path.stem in list_groups().get(group, ()):
        return f"{group}={path.stem}"
    if path.suffix not in (".yaml", ".yml"):
        return ""
    if path.name == "config.yaml":
        return "it is always read: change one key with KEY=VALUE"
    return f"save it as conf/experiment/{path.stem}.yaml, then experiment={path.stem}"


def read_config() -> str:
    """Return the text of conf/config.yaml."""
    return (CONF / "config.yaml").read_text()


def count_open(value: str) -> int:
    """Return how many brackets are open at the end of a text."""
    return sum(value.count(a) - value.count(b) for a, b in ("[]", "{}", "()"))


def shlex_split(text: str) -> list[str]:
    """Return the words of a text; none where its quotes do not close."""
    try:
        return shlex.split(text)
    except ValueError:
        return []
