"""Text and images of the Hugging Face hub, or of a folder in its layout, from a copy that is filled before a run begins."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from research.contracts import contract
from research.data import text
from research.data.bins import prepare_streams
from research.data.corpus import SPLITS, Origin, Reader
from research.data.images import Labelled, build_images, drop_repeats
from research.data.spec import Dataset, Images, MemoryDataset, Tokens
from research.data.streams import VERSION
from research.data.tokenizers import Bytes, Tokenizer
from research.files.hub import AUTO, CONTENT, INDEX, Copy, Request, fetch
from research.files.labels import describe_counts
from research.files.pictures import Part, decode_pictures, parse_size
from research.files.sources import Counts, check_defects
from research.ranges import Fraction, NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt, check_settings

KEY, FIX = "data.dataset", "give data.defects=skip to leave them out"


def hub(
    dataset: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    val_split: str | None = AUTO,
    test_split: str | None = AUTO,
    field: str | list[str] = "text",
    document_start: str | None = None,
    max_documents: PositiveInt | None = None,
    max_bytes: PositiveInt | None = None,
    defects: Literal["refuse", "skip"] = "refuse",
    tokenizer: Tokenizer | None = None,
    seq_len: PositiveInt = 256,
    val_fraction: OpenFraction = 0.1,
    test_fraction: Fraction = 0.0,
    val_bytes: PositiveInt = 65_536,  # bytes of the validation text that an evaluation reads
) -> Dataset[Tokens]:
    """Return windows of `seq_len` tokens of a column of texts; the targets are the next tokens.

    Raise ValueError for a data set, a split or a column that is not there, without a network, and for less text than `seq_len`.
    """
    check_settings("data", hub.__annotations__, locals())
    check_pattern(document_start)
    columns = (field,) if isinstance(field, str) else tuple(field)
    splits = {"train": train_split, "val": val_split, "test": test_split}
    limits: dict[str, Any] = {"document_start": document_start, "max_samples": max_documents, "max_bytes": max_bytes}
    copy = fetch(Request("text", dataset or "", config_name, revision, splits, columns, **limits))
    check_fractions(copy, test_fraction, ("test",))
    fractions = (0.0 if "val" in copy.splits else val_fraction), test_fraction
    tokenizer, reader = tokenizer or Bytes(), Reader("jsonl", ("text",), "utf-8")
    parts = {name: copy.folder / f"{name}{INDEX}" for name in SPLITS if name in copy.splits}
    origin = Origin(KEY, FIX, {file: name for name, file in parts.items() if name != "train"})
    read = partial(text.read_sources, [list(parts.values())], reader, fractions, defects == "skip", copy.check, origin)
    digests = [copy.digests[file.name] for file in parts.values()]
    key = text.hash_settings([[list(parts), digests], [VERSION, *fractions, defects, tokenizer.describe()]])
    data = text.build_dataset(
        prepare_streams(text.CACHE, key, read, [1.0], tokenizer), seq_len, val_bytes, None, None, Counts()
    )
    return replace(data, notes=(*describe_copy(dataset, copy, val_fraction), *data.notes))


def hub_images(
    dataset: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    val_split: str | None = AUTO,
    test_split: str | None = AUTO,
    image: str = "image",
    label: str = "label",
    max_images: PositiveInt | None = None,
    size: int | list[int] | None = None,
    channels: Literal[1, 3] | None = None,
    val_fraction: OpenFraction = 0.1,
    test_fraction: Fraction = 0.0,
    split_seed: NonNegativeInt = 0,
    defects: Literal["refuse", "skip"] = "refuse",
    max_gb: PositiveFloat = 4.0,
) -> MemoryDataset[Images]:
    """Return images of one class each, numbered as the data set does.

    Raise ValueError for a data set, a split or a column that is not there, without a network, and for fewer than two classes.
    """
    check_settings("data", hub_images.__annotations__, locals())
    sides = parse_size(size)
    splits = {"train": train_split, "val": val_split, "test": test_split}
    copy = fetch(Request("images", dataset or "", config_name, revision, splits, (image, label), max_samples=max_images))
    check_fractions(copy, test_fraction, ("val", "test"))
    copy.check()
    counts, treated, faults = Counts(), Counts(), Counts()
    files, names = list_labelled(copy, counts)
    pictures = decode_pictures([file.path for file in files], sides, channels, max_gb, treated, faults)
    files = [files[number] for number in pictures.numbers]
    kept = drop_repeats(files, pictures, counts, faults)
    check_defects(faults, defects == "skip", counts, FIX, KEY)
    for part, name in copy.splits.items():
        if not any(files[row].part in (part, "") for row in kept):
            raise ValueError(f"data.{part}_split={name}: no image of a class is left: {counts.describe()}\ngive another split")
    if len({files[row].label for row in kept}) < 2:
        raise ValueError(f"data.label={label}: {dataset} has the one class {files[kept[0]].label}\ngive another column")
    notes = (*describe_copy(dataset, copy, val_fraction), *describe_counts(counts, treated))
    pictures = replace(pictures, numbers=kept)
    return build_images(str(dataset), files, pictures, names, (val_fraction, test_fraction), split_seed, notes)


def check_pattern(pattern: str | None) -> None:
    """Raise ValueError for what is no regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        message = f"data.document_start={pattern} is no regular expression: {error}"
        raise ValueError(f"{message}\ngive one that rows which begin a document match, as '^ = [^=]'") from None


@contract
def check_fractions(copy: Copy, test_fraction: float, parts: Sequence[str]) -> None:
    """Raise ValueError for a share of test beside the data set's own splits, which would not count."""
    own = [copy.splits[part] for part in parts if part in copy.splits]
    if test_fraction and own:
        fix = " ".join(f"data.{part}_split=null" for part in parts if part in copy.splits)
        message = f"data.test_fraction={test_fraction:g}: the data set has splits of its own: {', '.join(own)}"
        raise ValueError(f"{message}\ngive data.test_fraction=0, or {fix}")


def describe_copy(dataset: str | None, copy: Copy, val_fraction: float) -> tuple[str, ...]:
    """Return notes: what is read of which revision, and that a share for validation does not count."""
    names = ", ".join(f"{name} as {part}" for part, name in copy.splits.items())
    at = f" at {copy.revision[:12]}" if copy.revision else ""
    return (f"{dataset}{at}: {names}", *["data.val_fraction does not count beside a split of its own"] * ("val" in copy.splits))


@contract
def list_labelled(copy: Copy, counts: Counts) -> tuple[list[Labelled], list[str]]:
    """Return the images of a copy, and the names of the classes in their order. Images without a class are counted."""
    rows = list(iter_index(copy))
    used = {label for _, label in rows if label is not None}
    values = sorted(used, key=lambda value: (isinstance(value, str), value))
    names: Mapping[Any, str] = dict(enumerate(copy.classes)) if copy.classes else {value: str(value) for value in values}
    is_alone = list(copy.splits) == ["train"]
    files = []
    for part, label in rows:
        if label in names:
            files.append(Labelled(part, names[label], "" if is_alone else part.file.stem))
        else:
            counts.add("images without a class", part.name)
    return files, list(names.values())


def iter_index(copy: Copy) -> Iterator[tuple[Part, Any]]:
    """Yield each image of a copy, and what the data set has as its class."""
    for part, name in copy.splits.items():
        start, content = 0, copy.folder / f"{part}{CONTENT}"
        with (copy.folder / f"{part}{INDEX}").open(encoding="utf-8") as stream:
            for number, line in enumerate(stream):
                row = json.loads(line)
                yield Part(f"{name}, row {number}", content, start, row["size"]), row["label"]
                start += row["size"]
