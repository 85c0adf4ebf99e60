"""Images with a class for each pixel: two folders, images and masks; or scikit-learn's digits put on a canvas."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int16, Int64, UInt8

from research.contracts import contract
from research.data.images import FIX, Labelled, assign_parts, describe_parts, drop_repeats, has_splits
from research.data.spec import Images, MemoryDataset
from research.data.splits import rank_keys, select_parts, split_by_rank
from research.files.labels import NUM_NAMES, describe_counts, describe_sizes
from research.files.pictures import Picture, Size, decode_pictures, list_pictures, map_files, parse_size, read_mask, select_good
from research.files.sources import Counts, check_defects, check_needs, find_split
from research.losses import IGNORE
from research.ranges import ExistingPath, Fraction, NonNegativeInt, OpenFraction, PositiveFloat, check_settings
from research.run_dir import expand_path
from research.seeding import SPLIT_STREAM, fold_in

NUM_CANVASES = 1500
CELL = 10  # pixels a side, in which a digit of 8 x 8 lies somewhere
MIN_SQUARES = 0.01  # of a class's pixels that lie in even squares of 2 x 2
MANY = 100  # values are shades, though none between them is missing
INK = 64  # of 255: from which grey on a pixel belongs to its digit


def segmentation(
    images: ExistingPath | None = None,  # None: digits on a canvas
    masks: ExistingPath | None = None,
    pattern: str | None = None,
    size: int | list[int] | None = None,
    channels: Literal[1, 3] | None = None,
    ignore: NonNegativeInt | None = 255,
    val_fraction: OpenFraction = 0.2,
    test_fraction: Fraction = 0.0,
    split_seed: NonNegativeInt = 0,
    defects: Literal["refuse", "skip"] = "refuse",
    max_gb: PositiveFloat = 4.0,
) -> MemoryDataset[Images]:
    """Return images and the class of each of their pixels: the values of the masks, in sorted order, without `ignore`.

    Raise ValueError for images without masks and masks without images, for pairs of two sizes, and unless skipped for files
    that cannot be read.
    """
    check_settings("data", segmentation.__annotations__, locals())
    fractions, sides = (val_fraction, test_fraction), parse_size(size)
    if images is None or masks is None:
        lacking = " and ".join(f"data.{key}" for key, folder in (("images", images), ("masks", masks)) if folder is None)
        check_needs(lacking, images=images, masks=masks, pattern=pattern, channels=channels)
        return draw_canvases(sides or (32, 32), fractions, split_seed)
    counts, treated, faults = Counts(), Counts(), Counts()
    roots = expand_path(images).resolve(), expand_path(masks).resolve()
    pairs = pair_files(*roots, pattern, counts, faults)
    pictures = decode_pictures([image for image, _ in pairs], sides, channels, max_gb, treated, faults)
    decoded = decode_masks([pairs[number][1] for number in pictures.numbers], pictures.sizes, sides, faults)
    is_split, files = has_splits(roots[0], False), list[Labelled]()
    for number, mask in zip(pictures.numbers, decoded, strict=True):
        path = pairs[number][0]
        part = find_split(path.relative_to(roots[0]).parts[0]) if is_split else ""
        files.append(Labelled(path, mask.digest.hex() if mask else "", part))
    kept = [row for row in drop_repeats(files, pictures, counts, faults, "images with several masks") if decoded[row]]
    check_defects(faults, defects == "skip", counts, FIX, "data.images, data.masks")
    if not kept:
        raise ValueError(f"data.images: no image with a mask is left: {counts.describe()}\ngive images and masks of one stem")
    good = [mask for row in kept if (mask := decoded[row])]
    targets, values = number_classes([mask.pixels for mask in good], ignore)
    check_areas([mask.areas for mask in good if mask.areas is not None], values)
    ranks = rank_keys([pictures.keys[row] for row in kept], split_seed)
    in_folders = [files[row].part for row in kept]
    parts = assign_parts(in_folders, ranks, None, fractions)
    num_channels, height, width = pictures.pixels.shape[1:]
    shape = Images(num_channels, height, width, len(values), per_pixel=True)
    source = f"{roots[0].name} and {roots[1].name}, {height} x {width}, {len(values)} classes"
    x, y = torch.from_numpy(pictures.pixels[kept]), torch.from_numpy(targets)
    notes = (
        describe_values(values, targets, parts["train"], ignore) + describe_parts(in_folders) + describe_counts(counts, treated)
    )
    return select_parts(shape, x, y, parts, source=source, notes=notes, baseline=predict_majority(targets, parts))


def pair_files(images: Path, masks: Path, pattern: str | None, counts: Counts, faults: Counts) -> list[tuple[Path, Path]]:
    """Return images and masks of the same place and stem in their folders; one without the other is a fault."""
    sides: list[dict[str, list[Path]]] = []
    for key, root in (("images", images), ("masks", masks)):
        if not root.is_dir():
            raise ValueError(f"data.{key}: {root} is no folder\ngive a folder of {key}")
        files = list_pictures(root, pattern if key == "images" else None, counts)
        if not files:
            raise ValueError(f"data.{key}: no image below {root}: {counts.describe() or 'it is empty'}\ngive a folder of {key}")
        by_stem: dict[str, list[Path]] = {}
        for file in files:
            by_stem.setdefault(str(file.relative_to(root).with_suffix("")), []).append(file)
        sides.append(by_stem)
    pairs = []
    for stem in sorted(set(sides[0]) | set(sides[1])):
        left, right = sides[0].get(stem, []), sides[1].get(stem, [])
        if len(left) == len(right) == 1:
            pairs.append((left[0], right[0]))
        elif not right or not left:
            kind, there = ("images without a mask", left) if left else ("masks without an image", right)
            faults.add(kind, str(there[0]), len(there))
        else:
            kind, there = ("images of one stem", left) if len(left) > 1 else ("masks of one stem", right)
            faults.add(kind, " = ".join(map(str, there)), len(there))
    return pairs


def decode_masks(files: Sequence[Path], image_sizes: Sequence[Size], size: Size | None, faults: Counts) -> list[Picture | None]:
    """Return the masks in the order of their files, None in place of a fault."""
    results = map_files(lambda pair: read_mask(pair[0], pair[1], size), list(zip(files, image_sizes, strict=True)))
    select_good(results, faults)
    return [result if isinstance(result, Picture) else None for result in results]


def number_classes(
    masks: Sequence[UInt8[np.ndarray, "h w"]], ignore: int | None
) -> tuple[Int16[np.ndarray, "n h w"], list[int]]:
    """Return the class of each pixel, IGNORE where its value is `ignore`, and the values of the classes.

    Raise ValueError for fewer than two classes.
    """
    seen = np.zeros(256, dtype=bool)
    for mask in masks:
        seen[np.unique(mask)] = True
    values = [value for value in np.flatnonzero(seen).tolist() if value != ignore]
    if len(values) < 2:
        there = ", ".join(map(str, np.flatnonzero(seen).tolist()))
        fix = "give data.ignore=null where all values are classes, or masks of several classes"
        raise ValueError(f"data.ignore={ignore}: the masks hold {there}, which leaves {len(values)} class\n{fix}")
    classes = np.full(256, IGNORE, dtype=np.int16)
    classes[values] = np.arange(len(values))
    return np.stack([classes[mask] for mask in masks]), values


def check_areas(areas: Sequence[Int64[np.ndarray, "2 256"]], values: Sequence[int]) -> None:
    """Raise ValueError where most values are seen at edges alone, never in a square: masks that were blurred.

    Numbers without a gap from 0 on are classes, as of points, which have no squares.
    """
    if max(values) < min(MANY, len(values)):
        return
    sizes, squares = np.sum(areas, axis=0)
    edges = [value for value in values if squares[value] < MIN_SQUARES * sizes[value]]
    if len(edges) > max(2, len(values) / 2):
        seen = f"{len(values)} values, {len(edges)} of them at edges alone, as {', '.join(map(str, edges[:NUM_NAMES]))}"
        fix = "give masks that hold class numbers alone: not blurred, not resized with smooth edges, never saved as JPEG"
        fix += "; number classes that are points 1, 2, 3"
        raise ValueError(f"data.masks: the masks hold {seen}\n{fix}")


def describe_values(
    values: Sequence[int], targets: Int16[np.ndarray, "n h w"], train: np.ndarray, ignore: int | None
) -> tuple[str, ...]:
    """Return notes: classes with other numbers than the values of the masks, how many pixels have each, and none."""
    changed = [f"{number} value {value}" for number, value in enumerate(values) if number != value]
    known, ignored = targets[train], float(np.mean(targets == IGNORE))
    sizes = np.bincount(known[known != IGNORE], minlength=len(values))
    return (
        *((f"classes by the values of the masks: {', '.join(changed[:NUM_NAMES])}",) if changed else ()),
        describe_sizes([str(value) for value in values], sizes, "pixels by value"),
        *((f"{ignored:.2%} of the pixels have the value {ignore}, and do not count (data.ignore)",) if ignored else ()),
    )


@contract
def predict_majority(targets: Int16[np.ndarray, "n h w"], parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return accuracy and mean intersection over union of the class that is most frequent among the pixels of training."""
    train, val = (targets[parts[name]][targets[parts[name]] != IGNORE] for name in ("train", "val"))
    best = int(np.bincount(train).argmax())
    share = float(np.mean(val == best))
    return {"val/acc majority": share, "val/iou majority": share / len({best, *np.unique(val).tolist()})}


def draw_canvases(size: Size, fractions: tuple[float, float], split_seed: int) -> MemoryDataset[Images]:
    """Return canvases with digits in some of their cells: class 0 the background, 1 to 10 the digits 0 to 9.

    Each split has digits of its own. Raise ValueError for a canvas without room for two.
    """
    rows, columns = (side // CELL for side in size)
    if rows * columns < 2:
        raise ValueError(f"data.size={list(size)} has no room for two digits\ngive data.size=32")
    from sklearn.datasets import load_digits  # heavy

    rng = np.random.default_rng(fold_in(split_seed, SPLIT_STREAM))
    vectors, labels = load_digits(return_X_y=True)
    glyphs = np.round(vectors.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pools = split_by_rank(rank_keys([glyph.tobytes() for glyph in glyphs], split_seed), labels, fractions)
    pixels = np.zeros((NUM_CANVASES, 1, *size), dtype=np.uint8)
    targets = np.zeros((NUM_CANVASES, *size), dtype=np.int16)
    parts, start = dict[str, np.ndarray](), 0
    for name, pool in pools.items():
        end = start + round(NUM_CANVASES * len(pool) / len(glyphs))
        parts[name] = np.arange(start, min(end, NUM_CANVASES))
        start = end
        for number in parts[name].tolist():
            cells = rng.permutation(rows * columns)[: rng.integers(2, max(3, rows * columns * 2 // 3))]
            corners = CELL * np.stack(np.divmod(cells, columns), axis=1) + rng.integers(0, CELL - 7, (len(cells), 2))
            chosen = pool[rng.integers(0, len(pool), len(cells))]
            for (top, left), glyph in zip(corners.tolist(), chosen.tolist(), strict=True):
                pixels[number, 0, top : top + 8, left : left + 8] = glyphs[glyph]
                targets[number, top : top + 8, left : left + 8] = (glyphs[glyph] >= INK) * (labels[glyph] + 1)
    shape, x, y = Images(1, size[0], size[1], 11, per_pixel=True), torch.from_numpy(pixels), torch.from_numpy(targets)
    source = f"scikit-learn digits on canvases of {size[0]} x {size[1]}"
    return select_parts(shape, x, y, parts, source=source, baseline=predict_majority(targets, parts))
