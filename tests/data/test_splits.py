"""Fractions of splits that leave nothing to train on are refused: on the command line, and by every data set that has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from research.data.images import images
from research.data.labelled_text import labelled_text
from research.data.pairs import pairs
from research.data.segmentation import segmentation
from research.data.splits import spread_evenly
from research.data.table import table
from research.data.text import text
from research.preflight.check import find_mistakes

NOTHING_LEFT = "data.val_fraction=0.6 and data.test_fraction=0.6 leave nothing to train on"
FITS = {
    "text": [],
    "labelled_text": [],
    "pairs": [],
    "table": ["model=mlp"],
    "images": ["model=vision"],
    "segmentation": ["model=vision"],
}


@pytest.mark.parametrize("build", [text, labelled_text, pairs, table, images, segmentation], ids=lambda build: build.__name__)
def test_splits_leave_something_to_train_on(build: Callable[..., Any], tmp_path: Path) -> None:
    path = {}
    if build is text:
        (tmp_path / "a.txt").write_text("one line\n" * 200)
        path = {"path": str(tmp_path)}
    with pytest.raises(ValueError, match=NOTHING_LEFT):
        build(val_fraction=0.6, test_fraction=0.6, **path)
    words = [f"data={build.__name__}", *FITS[build.__name__], "data.val_fraction=0.6", "data.test_fraction=0.6"]
    assert NOTHING_LEFT in "".join(find_mistakes(words, False))


@pytest.mark.parametrize("total", [5, 300, (1 << 24) + 3, 100_000_007])
def test_numbers_that_are_evenly_spread_are_below_the_total(total: int) -> None:
    numbers = spread_evenly(5, total).tolist()
    assert numbers == pytest.approx([part * (total - 1) / 4 for part in range(5)], rel=0, abs=0.5)
    assert (numbers[0], numbers[-1]) == (0, total - 1)
