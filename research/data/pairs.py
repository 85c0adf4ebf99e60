"""Sequence to sequence with a decoder: a source, a separator, its target and an end, of which only the target is learnt."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Literal

import numpy as np
import torch

from research.contracts import contract
from research.data.rows import (
    Pair,
    build_dataset,
    check_any,
    check_different,
    drop_repeats,
    encode_texts,
    read_pairs,
    split_pairs,
)
from research.data.spec import MemoryDataset, Split, Tokens
from research.data.tokenizers import Bytes, Tokenizer
from research.files.documents import Column, Format, check_encoding, find_kind
from research.files.labels import unigram_cross_entropy
from research.files.sources import Counts, check_defects, check_needs, find_files
from research.losses import IGNORE
from research.ranges import ExistingPath, Fraction, NonNegativeInt, NumDates, OpenFraction, PositiveInt, check_settings
from research.seeding import SPLIT_STREAM, fold_in

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
MONTHS = "january february march april may june july august september october november december"
SMALL, MONTH_NAMES, TENS_NAMES = [*ONES.split(), "eighteen", "nineteen"], MONTHS.split(), TENS.split()
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"} | {
    "twelve": "twelfth"
}
STYLES = "the {day} of {month} {year}", "{month} the {day} {year}", "{day} {month} {year}"


def pairs(
    path: ExistingPath | list[str] | None = None,  # None: dates in words, to be written as 2021-05-03
    pattern: str | list[str] | None = None,
    format: Format = "auto",  # noqa: A002
    source: str = "source",
    target: str = "target",
    separator: str = " => ",
    encoding: str = "utf-8",
    defects: Literal["refuse", "skip"] = "refuse",
    too_long: Literal["refuse", "skip"] = "refuse",
    tokenizer: Tokenizer | None = None,
    seq_len: PositiveInt = 96,
    val_fraction: OpenFraction = 0.1,
    test_fraction: Fraction = 0.0,
    num_dates: NumDates = 5000,
    split_seed: NonNegativeInt = 0,
) -> MemoryDataset[Tokens]:
    """Return rows of `seq_len` tokens whose targets are the next tokens, and IGNORE within the source and the padding.

    Raise ValueError for pairs that cannot be read, and for longer ones where `too_long` says so.
    """
    check_settings("data", pairs.__annotations__, locals())
    check_encoding(encoding)
    check_different("source", source, "target", target)
    tokenizer, counts, faults = tokenizer or Bytes(), Counts(), Counts()
    if path is None:
        check_needs("data.path", pairs, pattern=pattern, format=format, source=source, target=target, encoding=encoding)
        rows = list(iter_dates(num_dates, split_seed))
    else:
        check_needs("data.path=null", pairs, "of dates that are made", num_dates=num_dates, split_seed=split_seed)
        files = [(file, "") for file in find_files(path, pattern, counts)]
        for file, _ in files:
            if find_kind(file, format) == "text":
                counts.add("files that are no tables", str(file))
        tables = [file for file in files if find_kind(file[0], format) != "text"]
        rows = read_pairs(tables, (Column(source, "source"), Column(target, "target")), format, encoding, faults)
    rows = drop_repeats(rows, counts)
    for text in (text for text, _ in rows if separator in text):
        faults.add(f"sources with the separator {separator!r} in them (give another data.separator)", repr(text[:40]))
    check_defects(faults, defects == "skip", counts)
    check_any(rows, counts)
    parts = split_pairs([row for row in rows if separator not in row[0]], (val_fraction, test_fraction))
    tokenizer.train(f"{text}{separator}{answer}".encode() for text, answer in parts["train"])
    long = Counts()
    encoded = {name: encode_part(part, separator, tokenizer, seq_len, long) for name, part in parts.items()}
    fix = "give a longer data.seq_len, or data.too_long=skip"
    check_defects(long, too_long == "skip", counts, fix, f"data.seq_len={seq_len}")
    splits = {name: build_split(part, seq_len, tokenizer) for name, part in encoded.items() if part}
    if len(splits) < len(parts):
        raise ValueError(f"data.seq_len={seq_len}: a split has no pair that is not longer\ngive a longer one")
    answers = {name: split.targets[split.targets != IGNORE].long() for name, split in splits.items()}
    frequencies = torch.bincount(answers["train"], minlength=tokenizer.vocab_size)
    baseline = {"val/loss unigram": unigram_cross_entropy(frequencies, answers["val"]).item()}
    several = sum(number > 1 for number in Counter(text for text, _ in rows).values())
    notes = [f"{several:,} sources have several targets"] * bool(several)
    sizes = " + ".join(f"{len(part):,}" for part in splits.values())
    origin = "dates in words and as numbers" if path is None else "pairs"
    shape = Tokens(tokenizer.vocab_size, seq_len, tokenizer.end)
    return build_dataset(shape, splits, f"{sizes} {origin}, {tokenizer.name}", baseline, notes, counts, tokenizer)


@contract
def encode_part(
    part: Sequence[Pair], separator: str, tokenizer: Tokenizer, seq_len: int, long: Counts
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the tokens of source and separator, and those of target and end, of each pair that is not too long."""
    sources = encode_texts(tokenizer, [text + separator for text, _ in part])
    answers = [np.append(tokens, tokenizer.end) for tokens in encode_texts(tokenizer, [answer for _, answer in part])]
    fits = [len(source) + len(answer) <= seq_len + 1 for source, answer in zip(sources, answers, strict=True)]
    for (text, _), source, answer, is_kept in zip(part, sources, answers, fits, strict=True):
        if not is_kept:
            long.add(f"pairs of more than {seq_len + 1} tokens", f"{text[:40]!r} ({len(source) + len(answer):,})")
    return [pair for pair, is_kept in zip(zip(sources, answers, strict=True), fits, strict=True) if is_kept]


@contract
def build_split(part: Sequence[tuple[np.ndarray, np.ndarray]], seq_len: int, tokenizer: Tokenizer) -> Split:
    """Return the samples of one split; each begins with its source, as a prompt does, and is filled up with ends."""
    inputs = np.full((len(part), seq_len), tokenizer.end, dtype=np.int32)
    targets = np.full((len(part), seq_len), IGNORE, dtype=np.int32)
    for x, y, (source, answer) in zip(inputs, targets, part, strict=True):
        size = len(source) + len(answer) - 1
        x[:size] = np.concatenate((source, answer[:-1]))
        y[len(source) - 1 : size] = answer
    token_bytes = tokenizer.token_bytes
    return Split(torch.from_numpy(inputs), torch.from_numpy(targets), token_bytes)


def iter_dates(count: int, split_seed: int) -> Iterator[Pair]:
    """Yield different days of 1900 to 2099 in words, each in one of three styles, and as numbers."""
    numbers = random.Random(fold_in(split_seed, SPLIT_STREAM))
    first, last = date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal()
    for number in numbers.sample(range(first, last + 1), count):
        day = date.fromordinal(number)
        words = {"day": spell_ordinal(day.day), "month": MONTH_NAMES[day.month - 1], "year": spell_year(day.year)}
        yield numbers.choice(STYLES).format(**words), day.isoformat()


def spell_number(number: int) -> str:
    """Return a number below 100 in words: "twenty-three"."""
    if number < 20:
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS_NAMES[tens - 2] + f"-{SMALL[ones]}" * bool(ones)


def spell_ordinal(number: int) -> str:
    """Return an ordinal number below 100 in words: "twenty-third"."""
    head, dash, last = spell_number(number).rpartition("-")
    regular = f"{last[:-1]}ie" if last.endswith("y") else last
    return f"{head}{dash}{ORDINALS.get(last, f'{regular}th')}"


def spell_year(year: int) -> str:
    """Return a year of 1900 to 2099 in words: "nineteen oh five", "two thousand", "twenty twenty-one"."""
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return f"two thousand and {SMALL[rest]}" if rest else "two thousand"
    return f"{spell_number(century)} {spell_number(rest) if rest > 9 else f'oh {SMALL[rest]}' if rest else 'hundred'}"
