"""The files of a run folder: what is written is read, by this version and from the one before."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from research.data.spec import Images, Tokens, Vectors
from research.run_dir import SUMMARY_FILE, Summary, read_summary, write_json

FULL = Summary("FINISHED", monitor="val/acc", value=0.5, metrics={"val/acc": 0.4}, shape={"vocab_size": 5, "seq_len": 4})


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    FULL.write(tmp_path)
    assert read_summary(tmp_path) == FULL
    assert json.loads((tmp_path / SUMMARY_FILE).read_text())["version"] == 2


@pytest.mark.parametrize("shape", [Images(3, 8, 8, 2, per_pixel=True), Vectors(4, 1, 151.5, 75.25), Tokens(9, 4)])
def test_the_shape_of_data_is_read_as_it_was_written(tmp_path: Path, shape: Images | Vectors | Tokens) -> None:
    Summary(status="FINISHED", shape=shape._asdict()).write(tmp_path)
    summary = read_summary(tmp_path)
    assert summary
    assert summary.shape == shape._asdict()


def test_numbers_that_are_not_finite_are_read_as_none(tmp_path: Path) -> None:
    replace(FULL, value=float("nan"), metrics={"val/acc": float("inf")}).write(tmp_path)
    summary = read_summary(tmp_path)
    assert summary is not None
    assert (summary.value, summary.metrics) == (None, {"val/acc": None})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"vocab": 5, "length": 4}, {"vocab_size": 5, "seq_len": 4}),
        ({"features": 64, "classes": 10}, {"num_features": 64, "num_classes": 10}),
    ],
)
def test_version_1_had_other_names_in_its_shape(tmp_path: Path, old: dict[str, int], new: dict[str, int]) -> None:
    write_json(tmp_path / SUMMARY_FILE, {"status": "FINISHED", "shape": old, "value": 0.5})
    summary = read_summary(tmp_path)
    assert summary is not None
    assert (summary.shape, summary.value) == (new, 0.5)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"shape": [1]}', '{"version": 3, "status": "FINISHED"}'])
def test_what_is_no_summary_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / SUMMARY_FILE).write_text(text)
    assert read_summary(tmp_path) is None
    assert read_summary(tmp_path / "nowhere") is None
