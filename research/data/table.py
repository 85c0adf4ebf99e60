"""Tables of your own: columns of numbers and of texts predict another one, a class or a number."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from research.contracts import contract
from research.data.spec import MemoryDataset, Vectors
from research.data.splits import rank_keys, select_parts, split_by_rank
from research.files.cells import EXACT, Column, Decimals, check_decimals, check_spellings
from research.files.columns import Header, Table, read_table
from research.files.documents import check_encoding
from research.files.features import FEW, encode_classes, encode_features, encode_numbers, exclude_column, list_names
from research.files.labels import describe_classes, describe_counts, predict_majority
from research.files.sources import TABLE_KINDS, Counts, check_defects, find_files
from research.ranges import ExistingPath, Fraction, NonNegativeInt, OpenFraction, PositiveInt, check_settings

Kind = Literal["class", "number"]
Missing = Literal["refuse", "drop", "mean"]


def table(
    kind: Kind = "class",  # of target
    path: ExistingPath | list[str] | None = None,  # None: scikit-learn's breast cancer, or its diabetes for a number
    pattern: str | list[str] | None = None,
    target: str | None = None,
    features: list[str] | None = None,
    exclude: list[str] | None = None,
    header: Header = "auto",
    decimal: Decimals = "point",
    encoding: str = "utf-8",
    missing: Missing = "refuse",
    defects: Literal["refuse", "skip"] = "refuse",
    max_categories: PositiveInt = 100,
    standardize: bool = True,
    val_fraction: OpenFraction = 0.2,
    test_fraction: Fraction = 0.0,
    split_seed: NonNegativeInt = 0,
) -> MemoryDataset[Vectors]:
    """Return rows of features and the class, or the number, that stands in the column `target`.

    Raise ValueError for what cannot be read or used, naming column and row.
    """
    check_settings("data", table.__annotations__, locals())
    counts, faults, gaps, filled = Counts(), Counts(), Counts(), Counts()
    if path is None:
        rows, source = load_example(kind), f"scikit-learn {'breast cancer' if kind == 'class' else 'diabetes'}"
    else:
        files = find_files(path, pattern, counts, TABLE_KINDS)
        rows = read_table(files, check_encoding(encoding), header, decimal, counts, faults)
        source = files[0].name if len(files) == 1 else f"{len(files)} tables"
    goal, columns = choose_columns(rows, target, features, exclude or [], counts)
    for column in (*columns, goal) if kind == "number" else columns:
        check_decimals(column, decimal)
    columns = [column if column.is_of_numbers else column.keep_spelling() for column in columns]
    if kind == "class":
        goal = goal.keep_spelling() if goal.texts else goal
        check_spellings(goal)
    rest = find_usable_rows(rows, goal, columns, kind, missing, (faults, gaps, filled))
    fix = "leave a column out by data.exclude=[NAME]"
    check_defects(faults, defects == "skip", counts, f"mend them, {fix}, or give data.defects=skip")
    check_defects(gaps, missing != "refuse", counts, f"give data.missing=mean or drop, or {fix}", "data.missing=refuse")
    if len(rest) < 2:
        raise ValueError(f"data.path: {len(rest)} usable rows in {source}: {counts.describe() or 'no more'}\ngive more rows")
    names, y = encode_classes(goal, rest) if kind == "class" else ([], encode_numbers(goal, rest))
    cells = np.stack([column.hash_cells()[rest] for column in (*columns, goal)], axis=1)
    keys = [cell.tobytes() for cell in cells]
    parts = split_rows(keys, y if names else None, (val_fraction, test_fraction), split_seed)
    x, encoded = encode_features(columns, rest, parts["train"], max_categories, standardize)
    notes = describe_classes(names, y, parts) if names else describe_numbers(y)
    notes += (*describe_columns(columns, goal, rest, keys), *encoded, *describe_counts(counts, filled))
    baseline = predict_majority(y, parts) if names else predict_mean(y, parts)
    inputs, known = torch.from_numpy(x), y[parts["train"]]
    unit = {} if names else {"mean": float(known.mean()), "scale": float(known.std()) or 1.0}
    shape = Vectors(x.shape[1], len(names) or 1, **unit)
    targets = torch.from_numpy(y if names else y.astype(np.float32))
    source += f", {len(columns)} columns predict '{goal.name}'"
    return select_parts(shape, inputs, targets, parts, source=source, notes=notes, baseline=baseline, classes=tuple(names))


def load_example(kind: Kind) -> Table:
    """Return a table of scikit-learn's; its target is the last column."""
    from sklearn.datasets import load_breast_cancer, load_diabetes  # heavy

    bunch = load_breast_cancer() if kind == "class" else load_diabetes()
    columns = {
        str(name): Column(str(name), array("d", values)) for name, values in zip(bunch.feature_names, bunch.data.T, strict=True)
    }
    columns["target"] = Column("target", array("d", bunch.target))
    if kind == "class":
        texts = {row: str(bunch.target_names[label]) for row, label in enumerate(bunch.target)}
        columns["target"] = Column("target", array("d", [np.nan] * len(texts)), texts)
    return Table(columns)


def choose_columns(
    rows: Table, target: str | None, features: Sequence[str] | None, exclude: Sequence[str], counts: Counts
) -> tuple[Column, list[Column]]:
    """Return the target's column, by default the last, and the features', by default all others with any value."""
    names = list(rows.columns)
    for key, wanted in (("target", [target] if target else []), ("features", features or []), ("exclude", exclude)):
        for name in wanted:
            if name not in names:
                raise ValueError(f"data.{key}={name}: there is no such column\ngive one of {', '.join(names[:12])}")
    goal = target or names[-1]
    if features and goal in features:
        raise ValueError(f"data.features: '{goal}' is the target\nleave it out, or give another data.target")
    chosen = [rows.columns[name] for name in features or names if name != goal and name not in exclude]
    used = [column for column in chosen if column.texts or column.nested or not np.isnan(column.values).all()]
    for column in (*chosen, rows.columns[goal]):
        key = "target" if column.name == goal else "features"
        if column not in used and key == "features":
            counts.add("columns without a value", f"'{column.name}'")
        elif column.is_inexact:
            fix = (
                f"give {exclude_column(column.name)}, or smaller numbers"
                if key == "features"
                else "give texts or smaller numbers"
            )
            raise ValueError(f"data.{key}: '{column.name}' has whole numbers beyond {EXACT:,}, which lose digits\n{fix}")
    if not used:
        raise ValueError(f"data.features: no column is left to predict '{goal}' from\ngive data.features=[NAME,NAME]")
    return rows.columns[goal], used


def find_usable_rows(
    rows: Table, goal: Column, columns: Sequence[Column], kind: Kind, missing: Missing, counts: tuple[Counts, Counts, Counts]
) -> Int64[np.ndarray, "_"]:
    """Return the numbers of the rows with a value in each cell, or one that `missing` fills in.

    Counts are of faults, of gaps that leave a row out, and of gaps that are filled.
    """
    faults, gaps, filled = counts
    is_usable = np.ones(len(goal.numbers), dtype=bool)
    for column in (*columns, goal):
        is_goal, values = column is goal, column.values
        lacks = np.isnan(values)
        lacks[list(column.texts)] = False
        of_numbers = kind == "number" if is_goal else column.is_of_numbers
        if kind == "number" and is_goal and not column.is_of_numbers:
            raise ValueError(f"data.target={goal.name} holds text, as '{next(iter(column.texts.values()))}'\ngive data=table")
        if of_numbers:
            for row, text in column.texts.items():
                faults.add(f"texts among the numbers of '{column.name}'", f"{rows.locate(row)} '{text[:20]}'")
            is_usable[list(column.texts)] = False
        for row in column.nested:
            faults.add(f"cells with a list, an object or bytes in '{column.name}'", rows.locate(row))
        endless, lacks[column.nested], is_usable[column.nested] = np.isinf(values), False, False
        add_rows(faults, f"numbers that are not finite in '{column.name}'", endless, rows)
        is_filled = missing == "mean" and not is_goal
        add_rows(filled if is_filled else gaps, f"cells without a value in '{column.name}'", lacks, rows)
        is_usable &= ~endless & (is_filled | ~lacks)
    return np.flatnonzero(is_usable)


@contract
def add_rows(counts: Counts, kind: str, mask: Bool[np.ndarray, "rows"], rows: Table) -> None:
    """Count the rows of a mask."""
    for row in np.flatnonzero(mask).tolist():
        counts.add(kind, rows.locate(row))


def split_rows(
    keys: Sequence[bytes], classes: Int64[np.ndarray, "n"] | None, fractions: tuple[float, float], split_seed: int
) -> dict[str, Int64[np.ndarray, "_"]]:
    """Return the numbers of the rows in train, val and test, by rank: those of equal features are in one of them."""
    ranks, first = rank_keys(keys, split_seed), dict[bytes, int]()
    for row in np.argsort(ranks, kind="stable").tolist():
        first.setdefault(keys[row][:-8], row)
    heads = np.array(sorted(first.values()))
    groups = np.array([first[key[:-8]] for key in keys])
    parts = split_by_rank(ranks[heads], None if classes is None else classes[heads], fractions, np.bincount(groups)[heads])
    members = {name: np.flatnonzero(np.isin(groups, heads[part])) for name, part in parts.items()}
    return {name: part[np.argsort(ranks[part], kind="stable")] for name, part in members.items()}


def describe_columns(columns: Sequence[Column], goal: Column, rows: Int64[np.ndarray, "n"], keys: Sequence[bytes]) -> list[str]:
    """Return notes: columns that count the rows, or that tell the target, and rows that contradict each other."""
    copies, counting = list[str](), list[str]()
    target = np.unique(goal.hash_cells()[rows], return_inverse=True)[1]
    for column in columns:
        own = np.unique(column.hash_cells()[rows], return_inverse=True)[1]
        if own.max() == target.max() > 0 and len(set(zip(own.tolist(), target.tolist(), strict=True))) == own.max() + 1:
            copies.append(column.name)
        elif not column.texts and len(rows) > FEW and (np.abs(np.diff(column.values[rows])) == 1).all():
            counting.append(column.name)
    broken = [(column.name, sum("\n" in text for text in column.texts.values())) for column in columns]
    different, features = set(keys), len({key[:-8] for key in keys})
    contradictions, repeats = len(different) - features, len(keys) - len(different)
    return [
        *([f"tells '{goal.name}' exactly: {list_names(copies)}; see data.exclude"] if copies else []),
        *(f"{number:,} cells of '{name}' have several lines" for name, number in broken if number),
        *([f"counts the rows: {list_names(counting)}; see data.exclude"] if counting else []),
        *(
            [f"{contradictions:,} rows have the features of another row with another '{goal.name}', and its split"]
            if contradictions
            else []
        ),
        *([f"{repeats:,} rows repeat another one, and have its split"] if repeats else []),
    ]


def describe_numbers(y: Float64[np.ndarray, "n"]) -> tuple[str, ...]:
    """Return a note on the target's numbers."""
    return (f"target from {y.min():g} to {y.max():g}, mean {y.mean():g}, standard deviation {y.std():g}",)


def predict_mean(y: Float64[np.ndarray, "n"], parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the errors of the mean of the training targets."""
    errors = y[parts["val"]] - y[parts["train"]].mean()
    return {"val/rmse mean": float(np.sqrt(np.mean(errors**2))), "val/mae mean": float(np.abs(errors).mean())}
