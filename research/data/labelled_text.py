"""Classification of texts: two columns of a table or of JSONL, or a folder of text files for each class."""

import ast
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
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
    find_labelled_files,
    pad_left,
    read_pairs,
    split_pairs,
)
from research.data.spec import MemoryDataset, Split, Tokens
from research.data.tokenizers import Bytes, Tokenizer
from research.files.documents import Column, Format, check_encoding
from research.files.labels import describe_classes, predict_majority
from research.files.sources import SKIPPED_FOLDERS, Counts, check_defects, check_needs
from research.ranges import ExistingPath, Fraction, OpenFraction, PositiveInt, check_settings

NUM_PACKAGES = 8  # of the standard library: those with the most docstrings
NUM_CANDIDATES = 16  # the largest packages, whose docstrings are counted
NUM_SHOWN = 8  # classes that a message names


def labelled_text(
    path: ExistingPath | list[str] | None = None,  # None: docstrings of the standard library, each of the class of its package
    pattern: str | list[str] | None = None,
    format: Format = "auto",  # noqa: A002
    field: str = "text",
    label: str = "label",
    encoding: str = "utf-8",
    defects: Literal["refuse", "skip"] = "refuse",
    tokenizer: Tokenizer | None = None,
    seq_len: PositiveInt = 128,
    val_fraction: OpenFraction = 0.1,
    test_fraction: Fraction = 0.0,
) -> MemoryDataset[Tokens]:
    """Return texts of `seq_len` tokens, each with one class. Longer ones lose their end; others get ends on the left.

    Raise ValueError for texts or classes that cannot be read, for texts with several classes, and for fewer than two classes.
    """
    check_settings("data", labelled_text.__annotations__, locals())
    check_encoding(encoding)
    check_different("field", field, "label", label)
    tokenizer, counts, faults = tokenizer or Bytes(), Counts(), Counts()
    if path is None:
        check_needs("data.path", labelled_text, pattern=pattern, format=format, field=field, label=label, encoding=encoding)
        pairs = list(iter_docstrings())
    else:
        columns = Column(field), Column(label, "label", is_label=True)
        pairs = read_pairs(find_labelled_files(path, pattern, counts), columns, format, encoding, faults)
        pairs = [(text, name.strip()) for text, name in pairs]
    skips = defects == "skip" or path is None
    pairs = drop_contradictions(drop_repeats(pairs, counts), faults)
    check_defects(faults, skips, counts)
    check_any(pairs, counts)
    classes = list_classes(pairs, label)
    parts = split_pairs(pairs, (val_fraction, test_fraction))
    tokenizer.train(text.encode() for text, _ in parts["train"])
    kept = {name: encode_part(part, tokenizer, counts) for name, part in parts.items()}
    sizes = [len(tokens) for part in kept.values() for _, tokens in part]
    splits = {name: build_split(part, classes, seq_len, tokenizer) for name, part in kept.items()}
    numbers = torch.cat([split.targets for split in splits.values()]).numpy()
    starts = np.cumsum([0, *map(len, splits.values())])
    rows: dict[str, np.ndarray] = {name: np.arange(*starts[number : number + 2]) for number, name in enumerate(splits)}
    notes = [f"{sum(size > seq_len for size in sizes):,} of {len(sizes):,} texts are cut to {seq_len} tokens"]
    notes += describe_classes(classes, numbers, rows)
    more = ", ..." * (len(classes) > NUM_SHOWN)
    sizes_of = " + ".join(f"{len(part):,}" for part in kept.values())
    source = f"{sizes_of} texts of {len(classes)} classes ({', '.join(classes[:NUM_SHOWN])}{more}), {tokenizer.name}"
    shape = Tokens(tokenizer.vocab_size, seq_len, tokenizer.end, len(classes))
    return build_dataset(shape, splits, source, predict_majority(numbers, rows), notes, counts, tokenizer, classes)


def drop_contradictions(pairs: Sequence[Pair], faults: Counts) -> list[Pair]:
    """Return the pairs whose texts have one class each, and count the other texts."""
    numbers = Counter(text for text, _ in pairs)
    for text in (text for text, number in numbers.items() if number > 1):
        names = sorted(name for other, name in pairs if other == text) if len(faults.examples) < 1 else []
        faults.add("texts with several classes", f"{text[:40]!r} ({', '.join(names)})")
    return [pair for pair in pairs if numbers[pair[0]] == 1]


def list_classes(pairs: Sequence[Pair], label: str) -> list[str]:
    """Return the classes by name. Raise ValueError for less than two, and for labels that are almost all different."""
    classes = sorted({name for _, name in pairs})
    if len(classes) < 2:
        texts = f"all {len(pairs):,} texts are" if len(pairs) > 1 else "the only text is"
        only = f"{texts} of the class {classes[0]}" if classes else "there is no text with a class"
        raise ValueError(f"data.label={label}: {only}\ngive at least two classes")
    if len(classes) > max(2, len(pairs) // 2):
        message = f"data.label={label}: {len(pairs):,} texts have {len(classes):,} classes, as {', '.join(classes[:3])}"
        raise ValueError(f"{message}\ngive a column with classes that several texts share")
    return classes


@contract
def encode_part(part: Sequence[Pair], tokenizer: Tokenizer, counts: Counts) -> list[tuple[str, np.ndarray]]:
    """Return class and tokens of each text; texts without a token are counted."""
    encoded = zip(part, encode_texts(tokenizer, [text for text, _ in part]), strict=True)
    kept = [(name, tokens) for (_, name), tokens in encoded if len(tokens)]
    if len(kept) < len(part):
        counts.add("without a token", "", len(part) - len(kept))
    return kept


@contract
def build_split(part: Sequence[tuple[str, np.ndarray]], classes: Sequence[str], seq_len: int, tokenizer: Tokenizer) -> Split:
    """Return the samples of one split."""
    dtype = torch.uint8 if tokenizer.vocab_size <= 256 else torch.int32
    inputs = pad_left([tokens[:seq_len] for _, tokens in part], seq_len, tokenizer.end, dtype)
    numbers = {name: number for number, name in enumerate(classes)}
    return Split(inputs, torch.tensor([numbers[name] for name, _ in part]))


def iter_docstrings() -> Iterator[Pair]:
    """Yield the docstrings of the standard library's packages that have the most, each with its package."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources: dict[str, list[Path]] = {}
    for folder in sorted(root.iterdir()):
        if folder.name not in SKIPPED_FOLDERS and (folder / "__init__.py").is_file():
            sources[folder.name] = sorted(file for file in walk_package(folder))
    largest = sorted(sources, key=lambda name: -sum(file.stat().st_size for file in sources[name]))[:NUM_CANDIDATES]
    docstrings = {name: [text for file in sources[name] for text in read_docstrings(file)] for name in largest}
    for name in sorted(docstrings, key=lambda name: -len(docstrings[name]))[:NUM_PACKAGES]:
        yield from ((text, name) for text in docstrings[name])


def walk_package(folder: Path) -> Iterator[Path]:
    """Yield the sources of a package."""
    for parent, names, files in os.walk(folder):
        names[:] = [name for name in names if name not in SKIPPED_FOLDERS]
        yield from (Path(parent, name) for name in files if name.endswith(".py"))


def read_docstrings(file: Path) -> list[str]:
    """Return the docstrings of a source file: of the module, its classes and functions."""
    nodes: list[ast.AST] = [ast.parse(file.read_bytes())]
    texts = []
    for node in nodes:  # it grows
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            texts.append(ast.get_docstring(node))
    return [text for text in texts if text]
