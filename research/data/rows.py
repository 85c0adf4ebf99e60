"""Rows that are held in memory, each of a text and what belongs to it: read, freed of repeats, and split by the text."""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from research.contracts import contract
from research.data.corpus import LEFT_OUT, SPLITS, assign_splits, digest_document
from research.data.spec import MemoryDataset, Split, Tokens
from research.data.tokenizers import Tokenizer
from research.files.documents import Column, DefectError, Format, Row, SplitName, find_kind, iter_rows, iter_text
from research.files.lines import Defect
from research.files.sources import UNLABELLED, Counts, check_splits, find_files, find_split, list_own_files, quote_path
from research.run_dir import expand_path

Pair = tuple[str, str]  # a text, and its class or the text that answers it
BATCH = 1024  # texts that are tokenized together


@contract
def check_different(setting: str, column: str, other_setting: str, other: str) -> None:
    """Raise ValueError where what is learnt would be what it is learnt from."""
    if column == other:
        raise ValueError(f"data.{setting}={column} and data.{other_setting}={other} are one column\ngive two")


def find_labelled_files(
    paths: str | Sequence[str], patterns: str | Sequence[str] | None, counts: Counts
) -> list[tuple[Path, str]]:
    """Return the files at and below `paths`, each with the sub-folder of its path that it is in; empty for none.

    Raise ValueError where `find_files` does, and for sub-folders that are splits and no classes.
    """
    files: list[tuple[Path, str]] = []
    for path in [paths] if isinstance(paths, str) else paths:
        root = expand_path(path)
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
        shown = [folder for folder in folders if not folder.name.startswith((".", "__"))]
        for folder in set(folders) - set(shown):
            counts.add("hidden folders", str(folder))
        own = list_own_files(root, patterns, counts) if shown else find_files(path, patterns, counts)
        if shown:
            check_splits(path, root, [*shown, *own])
        if shown and all(find_split(folder.name) for folder in shown):
            message = f"data.path={path}: its folders are splits ({', '.join(folder.name for folder in shown)}), no classes"
            raise ValueError(
                f"{message}\ngive one of them, as {quote_path(f'{path}/{shown[-1].name}')}: the split is made here"
            )
        for folder in shown:
            if folder.name.lower() in UNLABELLED:
                counts.add(f"folders '{folder.name}', which is no class", str(folder))
            else:
                files += [(file, folder.name) for file in find_files(str(folder), patterns, counts)]
        files += [(file, "") for file in own]
    return files


@contract
def read_pairs(
    files: Sequence[tuple[Path, str]],
    columns: tuple[Column, Column],
    format: Format,  # noqa: A002
    encoding: str,
    defects: Counts,
) -> list[Pair]:
    """Return the pairs of all files, without blank ones: of tables the cells of two columns, of text files text and folder."""
    pairs: list[Pair] = []
    for file, folder in files:
        rows = read_text_file(file, folder, encoding)
        if (kind := find_kind(file, format)) != "text":
            rows = iter_rows(file, kind, columns, encoding)
        for row in rows:
            if isinstance(row, Defect):
                defects.add(row.kind, row.where)
            elif not row[1].strip():
                defects.add(f"rows with an empty '{columns[1].name}'", str(file))
            else:
                pairs.append((row[0].replace("\r\n", "\n"), row[1]))
    return pairs


def read_text_file(file: Path, folder: str, encoding: str) -> Iterator[Row | Defect]:
    """Yield the text of a file and the class that its folder names."""
    if not folder:
        yield Defect("text files that are in no folder of a class", str(file))
        return
    try:
        yield b"".join(iter_text(file, encoding)).decode(), folder
    except DefectError as error:
        yield error.defect


@contract
def check_any(rows: Sequence[Pair], counts: Counts) -> None:
    """Raise ValueError where nothing is left of what was read, with why."""
    if not rows and counts.numbers:
        fix = "name the columns or keys that are there, or give another data.path"
        raise ValueError(f"data.path: no row is left: {counts.describe()}\n{counts.list_examples()}\n{fix}")


@contract
def drop_repeats(pairs: Sequence[Pair], counts: Counts) -> list[Pair]:
    """Return the pairs without blank texts and repeats, which are counted, sorted by the digest that decides on their split."""
    unique = dict.fromkeys(pair for pair in pairs if pair[0].strip())
    if empty := sum(not text.strip() for text, _ in pairs):
        counts.add("empty", "", empty)
    if repeats := len(pairs) - empty - len(unique):
        counts.add("repeated", "", repeats)
    return sorted(unique, key=lambda pair: (digest_text(pair[0]), pair[1]))


def digest_text(text: str) -> int:
    """Return the number by which a text is ranked."""
    return digest_document([text.encode()]).key


@contract
def split_pairs(pairs: Sequence[Pair], fractions: tuple[float, float]) -> dict[SplitName, list[Pair]]:
    """Return the pairs of each split; those of one text are in one. Raise ValueError for an empty one."""
    keys, groups = np.unique(np.array([digest_text(text) for text, _ in pairs], dtype=np.uint64), return_inverse=True)
    splits = assign_splits(keys, np.ones(len(keys), dtype=bool), fractions)[groups]
    assert LEFT_OUT not in splits
    names = [SPLITS[number] for number in splits]
    parts: dict[SplitName, list[Pair]] = {
        name: [pair for pair, of in zip(pairs, names, strict=True) if of == name] for name in SPLITS
    }
    if not parts["train"] or not parts["val"]:
        raise ValueError(f"data.path: {len(keys):,} different texts cannot be split in two\ngive more of them")
    return {name: part for name, part in parts.items() if part}


@contract
def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the tokens of each text."""
    batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
    return [tokens for batch in batches for tokens in tokenizer.encode([text.encode() for text in batch])]


@contract
def pad_left(rows: Sequence[np.ndarray], seq_len: int, value: int, dtype: torch.dtype) -> Tensor:
    """Return rows of at most `seq_len` numbers as one tensor, filled up with `value` before them."""
    padded = np.full((len(rows), seq_len), value, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[seq_len - len(row) :] = row
    return torch.from_numpy(padded).to(dtype)


@contract
def build_dataset(
    shape: Tokens,
    splits: dict[SplitName, Split],
    source: str,
    baseline: dict[str, float],
    notes: Sequence[str],
    counts: Counts,
    tokenizer: Tokenizer,
    classes: Sequence[str] = (),
) -> MemoryDataset[Tokens]:
    """Return splits as a data set; its digest is of all samples, of the split and of what tokens mean."""
    hashed = sha256(json.dumps([shape, tokenizer.describe()]).encode())
    for name, split in splits.items():
        hashed.update(name.encode() + split.inputs.numpy().tobytes() + split.targets.numpy().tobytes())
    left_out = [f"left out: {counts.describe()}"] if counts.numbers else []
    return MemoryDataset(
        shape,
        splits["train"],
        splits["val"],
        hashed.hexdigest(),
        source,
        unit="sample",
        baseline=baseline,
        notes=(*notes, *left_out),
        test=splits.get("test"),
        tokenizer=tokenizer,
        classes=tuple(classes),
    )
