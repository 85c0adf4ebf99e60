"""The data sets: their samples and splits, and the settings that they refuse."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from program import ROOT

from research.data.digits import digits
from research.data.modular import OPERATIONS, Operation, modular
from research.data.text import text
from research.files.labels import describe_classes

WHOLE = sorted(file for file in (ROOT / "conf/data").glob("*.yaml") if "_target_" in file.read_text())  # others build on these


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_a_call_in_python_has_the_settings_of_the_configuration(file: Path) -> None:
    settings: Any = OmegaConf.to_object(OmegaConf.load(file).data)
    parameters = inspect.signature(get_object(settings.pop("_target_"))).parameters
    defaults = {name: parameters[name].default for name in settings if parameters[name].default is not inspect.Parameter.empty}
    assert defaults.items() <= settings.items() or file.stem == "regression"  # a kind of table


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_each_pair_is_in_one_split_with_its_result(operation: Operation) -> None:
    data = modular(operation, p=7)
    rows = torch.cat((data.train.inputs, data.val.inputs)).tolist()
    answers = torch.cat((data.train.targets, data.val.targets)).tolist()
    assert len({tuple(r) for r in rows}) == len(rows) == (36 if operation in "*/" else 49)
    plain = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "x2+xy+y2": lambda x, y: x * x + x * y + y * y,
    }
    for (x, _, y, _), c in zip(rows, answers, strict=True):
        assert (c * y % 7 == x) if operation == "/" else (c == plain[operation](x, y) % 7)


def test_all_digits_are_in_one_split() -> None:
    data = digits()
    assert len(data.train) + len(data.val) == 1797
    best = int(torch.bincount(data.train.targets).argmax())
    assert data.baseline == {"val/acc majority": pytest.approx(float((data.val.targets == best).float().mean()))}
    assert digits().digest == data.digest != digits(split_seed=1).digest


def test_text_is_split_by_file_and_targets_are_the_next_bytes(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"file {i} " * 50)
    (tmp_path / "again.txt").write_text("file 3 " * 50)
    data = text(str(tmp_path), "*.txt", seq_len=16)
    assert data.source.startswith("9 + 1 documents"), "again.txt repeats 3.txt"
    x, y = data.train[torch.tensor([0, 2])]
    assert torch.equal(x[:, 1:], y[:, :-1])
    corpus = b"\0".join(f"file {i} ".encode() * 50 for i in range(10))
    assert all(bytes([*row.tolist(), int(last)]) in corpus for row, last in zip(x, y[:, -1], strict=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no file"), (b"", "holds no text"), (b"\xff\xfe bad", "not UTF-8"), (b"short", "data.seq_len=256")],
)
def test_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "a.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        text(str(file))


def test_the_sizes_of_ten_classes_and_the_range_of_the_others_are_told() -> None:
    classes = np.repeat(np.arange(12), np.arange(1, 13))
    notes = describe_classes([f"c{number}" for number in range(12)], classes, {"train": np.arange(78), "val": np.arange(78)})
    assert notes[1].startswith("samples in training: 1 of c0, 2 of c1, ")
    assert notes[1].endswith(", 10 of c9, 11 to 12 of each other class")


@pytest.mark.parametrize(
    ("settings", "words"), [({"operation": "/", "p": 48}, "data.p=48"), ({"p": 2}, "data.p takes .* got 2")]
)
def test_a_modulus_that_does_not_fit_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        modular(**settings)  # type: ignore[arg-type]
