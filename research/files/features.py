"""Columns of a table as what a model learns from: classes, targets, and features of 32 bits, estimated from training rows."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

from research.cli import format_count
from research.contracts import contract
from research.files.cells import MOSTLY, Column, format_number
from research.files.sources import quote_setting

MAX_CLASSES = 1000
FEW = 20  # so many different numbers may be classes without a word
NUM_NAMES = 5  # of columns that a note names
LARGEST = 1e18  # of targets, which are 32 bits wide, as are the sums of their squares


def encode_classes(goal: Column, rows: Int64[np.ndarray, "n"]) -> tuple[list[str], Int64[np.ndarray, "n"]]:
    """Return the names of the classes, sorted, and the class of each row. Raise ValueError for what are no classes."""
    values = goal.values
    labels = [goal.texts.get(row) or values[row] for row in rows.tolist()]
    numbers, texts = sorted({x for x in labels if isinstance(x, float)}), sorted({x for x in labels if isinstance(x, str)})
    where, regression = f"data.target={goal.name}", "give data=regression to predict numbers, or another data.target"
    num_classes = len(numbers) + len(texts)
    if num_classes < 2:
        raise ValueError(f"{where} has the one class '{(texts or numbers)[0]}'\ngive rows of several classes")
    if len(numbers) > FEW and not all(number.is_integer() for number in numbers):
        raise ValueError(f"{where} has {len(numbers):,} different numbers, as {numbers[0]:g}: no classes\n{regression}")
    if num_classes > MAX_CLASSES or num_classes > len(labels) / 2 > 1:
        raise ValueError(f"{where} has {num_classes:,} classes in {len(labels):,} rows\n{regression}")
    order = {label: index for index, label in enumerate([*numbers, *texts])}
    spellings = {values[row]: text for row, text in goal.spellings.items()}
    names = [spellings.get(number) or format_number(number) for number in numbers] + texts
    return names, np.array([order[label] for label in labels])


def encode_numbers(goal: Column, rows: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Return the target of each row. Raise ValueError where all are equal, and for what 32 bits cannot hold."""
    y: np.ndarray = goal.values[rows]
    where, largest = f"data.target={goal.name}", float(np.abs(y).max())
    if (y == y[0]).all():
        raise ValueError(f"{where} is {y[0]:g} in each row\ngive another target")
    if not 1 / LARGEST <= largest <= LARGEST:
        unit = f"give it in a {'larger' if largest > 1 else 'smaller'} unit, or mend the row"
        raise ValueError(f"{where} has numbers of up to {largest:g}, whose squares 32 bits cannot hold\n{unit}")
    check_rounding(where, y, y, f"subtract one number from all, as {format_number(y.min())}")
    return y


def check_rounding(where: str, cells: Float64[np.ndarray, "n"], used: Float64[np.ndarray, "n"], fix: str) -> None:
    """Raise ValueError where 32 bits make equal more than a tenth of the different numbers of a column, as of dates in seconds.

    `used` is what becomes of the cells. Differences in the 14th digit are none: sums have them. A few numbers of a hundred
    thousand are equal by chance.
    """
    known = ~np.isnan(cells)
    mantissas, exponents = np.frexp(cells[known])
    with np.errstate(over="ignore"):
        rounded = used[known].astype(np.float32)
        num_exact = len(np.unique(np.ldexp(np.round(np.ldexp(mantissas, 44)), exponents - 44)))
    if (num_rounded := len(np.unique(rounded))) < MOSTLY * num_exact:
        raise ValueError(f"{where} has {num_exact:,} different numbers, of which 32 bits keep {num_rounded:,}\n{fix}")


def encode_features(
    columns: Sequence[Column],
    rows: Int64[np.ndarray, "n"],
    train: Int64[np.ndarray, "_"],
    max_categories: int,
    standardize: bool,
) -> tuple[Float[np.ndarray, "n features"], list[str]]:
    """Return the features of each row, and notes. What is estimated is so from the training rows alone.

    Numbers are standardized, gaps are their mean; a text is one of its column's categories, each a feature of 0 or 1.
    """
    features, num_texts, constant, unknown = list[np.ndarray](), 0, list[str](), list[str]()
    for column in columns:
        if column.is_of_numbers:
            values = column.values[rows]
            known = values[train][~np.isnan(values[train])]
            scale = float(np.abs(known).max(initial=0)) or 1.0  # squares of large numbers overflow
            mean, deviation = (float((known / scale).mean()), float((known / scale).std())) if len(known) else (0.0, 1.0)
            values = np.where(np.isnan(values), mean, values / scale)
            features.append((values - mean) / (deviation or 1.0) if standardize else values * scale)
            constant += [column.name] * (deviation == 0)
            logarithm = f"write its logarithm in its place, or give data.standardize=false, or {exclude_column(column.name)}"
            fix = logarithm if standardize else "give data.standardize=true"
            where = f"data.standardize={str(standardize).lower()}: '{column.name}'"
            check_rounding(where, column.values[rows], features[-1], fix)
            continue
        texts = [column.texts.get(row) or format_number(column.numbers[row]) for row in rows.tolist()]
        learnt = {texts[row] for row in train.tolist()}
        categories = sorted(learnt)
        if num_unknown := sum(text not in learnt for text in texts):
            unknown.append(f"{num_unknown:,} of '{column.name}'")
        if len(categories) > max_categories:
            text = f"'{column.name}' has {len(categories):,} different texts, as '{categories[-1][:30]}'"
            fix = f"give {exclude_column(column.name)}, or data.max_categories={len(categories)}"
            raise ValueError(f"data.max_categories={max_categories}: {text}\n{fix}")
        num_texts += 1
        constant += [column.name] * (len(categories) == 1)
        features += [np.array([text == category for text in texts], dtype=np.float64) for category in categories]
    with np.errstate(over="ignore"):
        x = np.stack(features, axis=1).astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("data.standardize=false: a feature has numbers beyond 3e38\ngive data.standardize=true")
    num_categories = x.shape[1] - len(columns) + num_texts
    notes = [f"{format_count(num_texts, 'column')} of texts as {num_categories} categories"] * (num_texts > 0)
    notes += [f"texts that training lacks, of no category: {', '.join(unknown)}"] * bool(unknown)
    return x, [*notes, *([f"one value in training: {list_names(constant)}"] if constant else [])]


@contract
def exclude_column(name: str) -> str:
    """Return the setting that leaves a column out, quoted for Hydra and the shell where its name is no word."""
    return quote_setting("data.exclude", name, "[{}]")


@contract
def list_names(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else ""
    return ", ".join(f"'{name}'" for name in names[:NUM_NAMES]) + more
