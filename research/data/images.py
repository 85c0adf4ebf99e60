"""Images of your own: a folder with a sub-folder for each class; or scikit-learn's digits, 8 x 8 pixels."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from research.contracts import contract
from research.data.spec import Images, MemoryDataset
from research.data.splits import rank_keys, select_parts, split_by_rank
from research.files.labels import describe_classes, describe_counts, predict_majority
from research.files.pictures import Origin, Pictures, decode_pictures, is_hidden, list_pictures, parse_size
from research.files.sources import UNLABELLED, Counts, check_defects, check_needs, find_split, quote_path, quote_setting
from research.ranges import ExistingPath, Fraction, NonNegativeInt, OpenFraction, PositiveFloat, check_settings
from research.run_dir import expand_path

MASK_FOLDERS = "(images?|imgs?|inputs?|photos?)(tr)?", "(masks?|labels?|annotations?|segmentations?|groundtruth)(tr)?"
FIX = "mend or move them, or give data.defects=skip to leave them out"


class Labelled(NamedTuple):
    """A file, its class and the split that its folder names; an empty text for none."""

    path: Origin
    label: str
    part: str


def images(
    path: ExistingPath | None = None,  # None: scikit-learn's digits
    pattern: str | None = None,
    size: int | list[int] | None = None,
    channels: Literal[1, 3] | None = None,
    val_fraction: OpenFraction = 0.2,
    test_fraction: Fraction = 0.0,
    split_seed: NonNegativeInt = 0,
    defects: Literal["refuse", "skip"] = "refuse",
    max_gb: PositiveFloat = 4.0,
) -> MemoryDataset[Images]:
    """Return images of one class each: the name of the sub-folder, in sorted order.

    Sub-folders train/ and val/ or test/ are the splits, with the classes below them. Else files are split by their contents,
    each class alike. Raise ValueError for folders without classes, and unless skipped for files that cannot be read.
    """
    check_settings("data", images.__annotations__, locals())
    fractions, sides = (val_fraction, test_fraction), parse_size(size)
    if path is None:
        check_needs("data.path", pattern=pattern, size=size, channels=channels)
        return read_digits(fractions, split_seed)
    root, counts, treated, faults = expand_path(path).resolve(), Counts(), Counts(), Counts()
    files = list_labelled(root, pattern, counts, faults)
    pictures = decode_pictures([file.path for file in files], sides, channels, max_gb, treated, faults)
    files = [files[number] for number in pictures.numbers]
    kept = drop_repeats(files, pictures, counts, faults)
    check_defects(faults, defects == "skip", counts, FIX)
    names = sorted({files[row].label for row in kept})
    if len(names) < 2:
        what = f"of the one class '{names[0]}'" if names else "in no class"
        raise ValueError(f"data.path: {root} holds {len(kept)} images {what}\ngive a folder with a sub-folder for each class")
    pictures = replace(pictures, numbers=kept)
    notes = describe_parts([files[row].part for row in kept])
    data = build_images(root.name, files, pictures, names, fractions, split_seed, notes)
    return replace(data, notes=(*data.notes, *describe_counts(counts, treated)))


@contract
def build_images(
    name: str,
    files: Sequence[Labelled],
    pictures: Pictures,  # of all files; `numbers` are those of the rows that count, sorted
    names: Sequence[str],
    fractions: tuple[float, float],
    split_seed: int,
    notes: Sequence[str] = (),
) -> MemoryDataset[Images]:
    """Return the data set of pictures whose labels are among the names of the classes."""
    kept = pictures.numbers
    numbers = {label: number for number, label in enumerate(names)}
    classes = np.array([numbers[files[row].label] for row in kept])
    ranks = rank_keys([pictures.keys[row] for row in kept], split_seed)
    parts = assign_parts([files[row].part for row in kept], ranks, classes, fractions)
    num_channels, height, width = pictures.pixels.shape[1:]
    x = torch.from_numpy(pictures.pixels if len(kept) == len(files) else pictures.pixels[kept])
    source = f"{name}, {height} x {width}, {len(names)} classes"
    facts = {"baseline": predict_majority(classes, parts), "classes": tuple(names)}
    notes = (*describe_classes(names, classes, parts), *notes)
    shape = Images(num_channels, height, width, len(names))
    return select_parts(shape, x, torch.from_numpy(classes), parts, source=source, notes=notes, **facts)


def read_digits(fractions: tuple[float, float], split_seed: int) -> MemoryDataset[Images]:
    """Return scikit-learn's digits as images of 0 to 255."""
    from sklearn.datasets import load_digits  # heavy

    vectors, labels = load_digits(return_X_y=True)
    pixels, classes = np.round(vectors.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8), labels.astype(np.int64)
    parts = split_by_rank(rank_keys([image.tobytes() for image in pixels], split_seed), classes, fractions)
    x, y, baseline = torch.from_numpy(pixels), torch.from_numpy(classes), predict_majority(classes, parts)
    return select_parts(Images(1, 8, 8, 10), x, y, parts, source="scikit-learn digits, 8 x 8", baseline=baseline)


def list_labelled(root: Path, pattern: str | None, counts: Counts, faults: Counts) -> list[Labelled]:
    """Return the pictures of a folder with their classes; what is outside of one is a fault, as is a class without any."""
    if not root.is_dir():
        raise ValueError(f"data.path: {root} is no folder\ngive a folder with a sub-folder for each class")
    files = list_pictures(root, pattern, counts)
    if not files:
        raise ValueError(f"data.path: no image below {root}: {counts.describe() or 'it is empty'}\ngive a folder of images")
    labelled, is_split = [], has_splits(root, True)
    folders = {file.relative_to(root).parts[0] for file in files if file.parent != root}
    if folders and not is_split and all(map(find_split, folders)):
        text = f"data.path: the folders of {root} are splits ({', '.join(sorted(folders))}), no classes"
        fix = f"give train/ and val/ or test/, with classes below them, or {quote_path(root / min(folders))}"
        raise ValueError(f"{text}\n{fix}")
    depth = 1 + is_split
    for file in files:
        parents = file.relative_to(root).parts[:-1]
        if len(parents) < depth:
            faults.add("images outside the folder of a class", str(file))
        elif parents[depth - 1].lower() in UNLABELLED:
            counts.add(f"images in '{parents[depth - 1]}', which is no class", str(file))
        else:
            labelled.append(Labelled(file, parents[depth - 1], find_split(parents[0]) if is_split else ""))
    check_masks(root, {file.label for file in labelled})
    seen = {Path(str(file.path)).relative_to(root).parts[:depth] for file in labelled}
    for folder in root.glob("*/" * depth):
        parts = folder.relative_to(root).parts
        if parts not in seen and parts[-1].lower() not in UNLABELLED and not is_hidden(parts):
            faults.add("class folders without images", str(folder))
    return labelled


def check_masks(root: Path, labels: set[str]) -> None:
    """Raise ValueError for two folders that are no classes: images, and a mask for each of them."""
    sides = [[label for label in labels if re.fullmatch(words, label.lower())] for words in MASK_FOLDERS]
    if len(labels) == 2 and all(sides):
        keys = ("data.images", "data.masks")
        fix = " ".join(quote_setting(key, str(root / side[0])) for key, side in zip(keys, sides, strict=True))
        message = f"data.path: {root} holds {sides[0][0]} and {sides[1][0]}, which are no classes"
        raise ValueError(f"{message}\ngive data=segmentation {fix}, or rename folders that are classes")


@contract
def has_splits(root: Path, has_classes: bool) -> bool:
    """Return whether the sub-folders are splits: train, and val or test. Raise ValueError where others stand beside them.

    Where folders may be classes, such names are classes among others: their images are in them, in no folder below.
    """
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    kinds = {folder: find_split(folder.name) for folder in folders}
    if not set(kinds.values()) - {""} > {"train"}:
        return False
    splits = [folder for folder in folders if kinds[folder] not in ("", "unsup")]
    if has_classes and "" in kinds.values() and not any(path.is_dir() for folder in splits for path in folder.iterdir()):
        return False
    if len(splits) < len(folders):
        names, others = (", ".join(f.name for f in folders if (f in splits) == chosen) for chosen in (True, False))
        raise ValueError(f"data.path: {root} holds the splits {names} beside {others}\nmove one kind elsewhere")
    return True


@contract
def drop_repeats(
    files: Sequence[Labelled],
    pictures: Pictures,
    counts: Counts,
    faults: Counts,
    contradiction: str = "images that are in several classes",
) -> list[int]:
    """Return the numbers of the pictures without repeats: of equal ones that of the test, else of val, else the first by key.

    Equal pictures of several labels are faults, all of them.
    """
    groups: dict[bytes, list[int]] = {}
    for row in sorted(range(len(files)), key=lambda row: pictures.keys[row]):
        groups.setdefault(pictures.digests[row], []).append(row)
    kept = []
    for rows in groups.values():
        if len({files[row].label for row in rows}) > 1:
            faults.add(contradiction, " = ".join(str(files[row].path) for row in rows[:3]), len(rows))
            continue
        best = max(rows, key=lambda row: ("", "train", "val", "test").index(files[row].part))
        kept.append(best)
        for row in rows:
            if row != best:
                is_leak = files[row].part != files[best].part
                where = f"{files[row].path} = {files[best].path}"
                counts.add(f"of {files[row].part} that are in {files[best].part} too" if is_leak else "repeated", where)
    return sorted(kept)


@contract
def assign_parts(
    given_parts: Sequence[str], ranks: np.ndarray, classes: np.ndarray | None, fractions: tuple[float, float]
) -> dict[str, Int64[np.ndarray, "_"]]:
    """Return the numbers of the samples in train, val and test, as their folders say; what these leave open, by rank.

    Raise ValueError for a share of test beside such folders, which would not count.
    """
    parts = {name: np.flatnonzero([part == name for part in given_parts]) for name in ("train", "val", "test")}
    if not len(parts["train"]):
        return split_by_rank(ranks, classes, fractions)
    if fractions[1]:
        there = ", ".join(name for name, part in parts.items() if len(part))
        fix = "give data.test_fraction=0" + ", or a folder of test images" * (not len(parts["test"]))
        raise ValueError(f"data.test_fraction={fractions[1]:g}: the folders say which images are {there}\n{fix}")
    parts = {name: part[np.argsort(ranks[part])] for name, part in parts.items()}
    if not len(parts["val"]):  # train/ and test/ alone
        open_rows = parts["train"]
        cut = split_by_rank(ranks[open_rows], None if classes is None else classes[open_rows], (fractions[0], 0.0))
        parts |= {"train": open_rows[cut["train"]], "val": open_rows[cut["val"]]}
    return parts


@contract
def describe_parts(given_parts: Sequence[str]) -> tuple[str, ...]:
    """Return a note where folders say which samples are in val."""
    return ("splits are those of the folders: data.val_fraction does not count",) if "val" in given_parts else ()
