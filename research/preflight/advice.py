"""The advice of a mistake is tried by the preflight before it is printed, so that none of it leads into another mistake.

A line of advice begins with one of LEADS. Then come words of a command line that would be right, quoted for the shell, with
`or` between alternatives. Those that are refused are left out; what is no such word, as FOLDER, stays as it is.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from research.composition.compose import count_composed
from research.composition.overrides import expand_argument, quote_word
from research.contracts import contract
from research.options.conf import list_groups
from research.options.habits import count_changed_letters

# How a line of advice begins, and whether it is to stand in place of what was typed.
LEADS = {
    **dict.fromkeys(("did you mean: ", "leave out the +: ", "one list: ", "one text: "), True),
    **dict.fromkeys(("give ", "leave out ", "a sweep: add "), False),
}
PLACEHOLDER = r"[^=]+=(FOLDER|NAME|VALUE|N)"  # as out=FOLDER
NEXT = r"(?=['\"]?(?:[+~]*[a-z][\w./@]*=(?!=)|~\w))"  # an override begins here
MAX_TRIES, MAX_COMPOSED = 40, 3  # of a command line, and how many of them may choose other options: these take longer
MAX_KEPT = 3  # alternatives of a mistake


class CommandLine(NamedTuple):
    """What is judged: the typed overrides, whether it is a sweep, and keys in a sweeper's `params` that do not count."""

    words: tuple[str, ...]
    multirun: bool
    dropped: frozenset[str] = frozenset()


def get_typed_key(word: str) -> str:
    """Return the key of a word as it is typed, without + and ~."""
    return word.partition("=")[0].strip().lstrip("+~")


def read_words(text: str) -> list[str]:
    """Return the words of a command line that an alternative begins with; none where it is for people alone."""
    try:
        words = shlex.split(text)
    except ValueError:
        return []
    known = [re.fullmatch(r"[+~]*[a-z][\w./@:]*=.*|~[a-z][\w.]*|-m", word.rstrip(",;:"), re.DOTALL) for word in words]
    count = known.index(None) if None in known else len(known)
    leading = words[:count]
    if count < len(words) and leading:
        leading[-1] = leading[-1].rstrip(",;:")
    return [] if any(re.fullmatch(PLACEHOLDER, word) for word in leading) else leading


@contract
def iter_alternatives(line: str) -> Iterator[tuple[str, str]]:
    """Yield what a line of advice begins with, and each of its alternatives; nothing for another line."""
    if lead := next((lead for lead in LEADS if line.startswith(lead)), ""):
        rest = line.removeprefix(lead).removesuffix(" ?")
        yield from ((lead, text) for text in re.split(r",? or " if lead == "leave out " else rf",? or {NEXT}", rest))


@contract
def take(line: CommandLine, head: str, lead: str, words: list[str]) -> CommandLine:
    """Return the command line of somebody who takes an advice about `head`."""
    words = [expand_argument(word) for word in words]
    keys = {get_typed_key(word) for word in words} | ({get_typed_key(head)} if LEADS[lead] else set())
    rest = [word for word in line.words if get_typed_key(word) not in keys]
    if lead == "leave out ":
        return CommandLine(tuple(rest), line.multirun and "-m" not in words, line.dropped)
    typed = [word for word in words if word != "-m" and word not in rest]
    return CommandLine((*rest, *typed), line.multirun or "-m" in words, line.dropped | {get_typed_key(head)})


@dataclass
class Adviser:
    """Tries advice on one command line. `judge` returns the mistakes of a command line, their advice untried.

    It may stop at the first that is not among those that it is given, as `identify` returns them.
    """

    line: CommandLine
    mistakes: list[str]
    judge: Callable[[CommandLine, set[tuple[str, ...]]], list[str]]
    tries: dict[CommandLine, list[str] | None] = field(default_factory=dict)
    composed: int = field(default_factory=count_composed)

    def check(self) -> list[str]:
        """Return the mistakes with the advice that is accepted. Of one mistake in several runs the nearest advice counts."""
        checked: dict[tuple[str, ...], list[str]] = {identify(mistake): [] for mistake in self.mistakes}
        for mistake in sorted(self.mistakes, key=lambda text: "\n  give " in text):  # which may choose other options, so last
            checked[identify(mistake)].append(self.check_mistake(mistake))
        return [min(texts, key=rank_advice) for texts in checked.values()]

    def check_mistake(self, mistake: str) -> str:
        """Return a mistake without the alternatives that are refused; where nothing is left, with the reason for the first."""
        first, *lines = mistake.split("\n  ")
        head, kept_lines = first.removeprefix("error: "), [first]
        for line in lines:
            lead, kept, reasons = "", list[str](), list[str]()
            alternatives = list(iter_alternatives(line))
            for lead, text in alternatives:
                accepted, reason = self.check_alternative(head, lead, text) if len(kept) < MAX_KEPT else ("", "")
                kept += [accepted] if accepted else []
                reasons += [reason] if reason else []
            if [text for _, text in alternatives] == kept:
                kept_lines.append(line)
            elif kept:
                kept_lines.append(f"{lead}{' or '.join(kept)}{' ?' * line.endswith(' ?')}")
            else:
                kept_lines += reasons[:1]
        return "\n  ".join(dict.fromkeys(kept_lines))

    def check_alternative(self, head: str, lead: str, text: str) -> tuple[str, str]:
        """Return an alternative that is accepted, with what else it needs, and why one is not; nothing where it is untried."""
        words = [text.split()[0].rstrip(",;:")] if lead == "leave out " else read_words(text)
        keys = {get_typed_key(word) for word in self.line.words}
        if lead == "leave out " and words and words != ["-m"] and get_typed_key(expand_argument(words[0])) not in keys:
            return text, ""  # it is about something else than these words
        taken = take(self.line, head, lead, words) if words else self.line
        new = self.list_new_mistakes(taken) if words else []
        if new == []:
            return text, ""
        if new is None:
            return "", ""
        together = self.list_new_mistakes(self.take_others(taken, head)) if LEADS[lead] else new
        if together == []:  # what is wrong by itself is right with the advice about other mistakes
            return text, ""
        if lead in ("leave out ", "one list: ", "one text: "):
            return "", ""
        for more in self.iter_companions(taken, head, words, new[0]):
            return " ".join(map(quote_word, more)), ""
        new_head, message, *rest = [*(together or new)[0].split("\n  "), ""]
        what = "with -m (or --multirun) it is a sweep, which" if lead == "a sweep: add " else text
        # What is known of it, as where to look; or a fix with a placeholder, as finetune.base=FOLDER.
        known = [line for line in rest if line and not any(read_words(text) for _, text in iter_alternatives(line))]
        return "", "\n  ".join([f"{what} is refused too: {message or new_head}", *known[:1]])

    def iter_others(self, head: str) -> Iterator[tuple[str, str, list[str]]]:
        """Yield of each other mistake the first advice in place of what was typed: what that is, how it begins, words."""
        for mistake in self.mistakes:
            other, *lines = mistake.removeprefix("error: ").split("\n  ")
            pairs = [(lead, text) for line in lines for lead, text in iter_alternatives(line) if LEADS[lead]]
            if other != head and pairs and (words := read_words(pairs[0][1])):
                yield other, pairs[0][0], words

    def take_others(self, line: CommandLine, head: str) -> CommandLine:
        """Return the command line of somebody who takes the first advice about each other mistake too."""
        for other, lead, words in self.iter_others(head):
            line = take(line, other, lead, words)
        return line

    def iter_companions(
        self, taken: CommandLine, head: str, words: list[str], mistake: str, depth: int = 2
    ) -> Iterator[list[str]]:
        """Yield the words of an advice with what it needs: an advice of its own new mistake that does not take them back.

        A value that is refused gives way to the right one. With a larger `depth` what is needed may need more in turn.
        """
        about, *lines = mistake.removeprefix("error: ").split("\n  ")
        others = {get_typed_key(word) for _, _, theirs in self.iter_others(head) for word in theirs}
        alternatives = [pair for line in lines for pair in iter_alternatives(line)]
        for lead, text in (pair for pair in alternatives if pair[0] in ("give ", "did you mean: ", "a sweep: add ")):
            leading = read_words(text)
            is_replaced = (key := get_typed_key(about)) in map(get_typed_key, leading) and (LEADS[lead] or key in list_groups())
            kept = [word for word in words if not (is_replaced and expand_argument(word) == about)]
            more = [word for word in leading if word not in kept]
            if more and not (others | {get_typed_key(word) for word in kept}) & {get_typed_key(word) for word in more}:
                taken_on = take(taken, about, lead, leading)
                if not set(map(expand_argument, kept)) <= set(taken_on.words):
                    continue
                if (new := self.list_new_mistakes(taken_on)) == []:
                    yield [*kept, *more]
                elif new and depth > 1:
                    yield from self.iter_companions(taken_on, head, [*kept, *more], new[0], depth - 1)

    def list_new_mistakes(self, line: CommandLine) -> list[str] | None:
        """Return the mistakes of another command line that this one lacks; None where too much was tried already."""
        if line not in self.tries:
            if len(self.tries) >= MAX_TRIES or count_composed() - self.composed > MAX_COMPOSED:
                return None
            known = set(map(identify, self.mistakes))
            self.tries[line] = [mistake for mistake in self.judge(line, known) if identify(mistake) not in known]
        return self.tries[line]


@contract
def identify(mistake: str) -> tuple[str, ...]:
    """Return what a mistake is about and what it says, without its advice."""
    return tuple(mistake.split("\n  ")[:2])


def rank_advice(mistake: str) -> int:
    """Return how far the first advice of a mistake is from what was typed, in letters."""
    head, *lines = mistake.removeprefix("error: ").split("\n  ")
    first = next((text for line in lines for lead, text in iter_alternatives(line) if LEADS[lead]), "")
    return count_changed_letters(get_typed_key(head), get_typed_key(first)) if first else len(mistake)
