"""The digest of a base: of the files that are read, and of the configuration that says what they compute."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from research.training.digests import hash_folder

INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
BIN, ONE, TWO = "pytorch_model.bin", "model-1.safetensors", "model-2.safetensors"
WHOLE = "model.safetensors"
FOLDERS: dict[str, tuple[dict[str, str], str, bool]] = {  # its files, the one that changes, whether the digest does
    "weights": ({WHOLE: "w"}, WHOLE, True),
    "configuration": ({WHOLE: "w"}, "config.json", True),
    "tokenizer": ({WHOLE: "w", "tokenizer.json": "t"}, "tokenizer.json", False),
    "bin": ({BIN: "w", "extra.safetensors": "e"}, BIN, True),
    "what is not read": ({BIN: "w", "extra.safetensors": "e"}, "extra.safetensors", False),
    "shard": ({"model.safetensors.index.json": json.dumps(INDEX), ONE: "1", TWO: "2"}, TWO, True),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_the_digest_is_of_what_is_read(case: str, tmp_path: Path) -> None:
    files, changed, differs = FOLDERS[case]
    for name, content in ({"config.json": "{}"} | files).items():
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text(content, encoding="utf-8")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "same")
    (tmp_path / "b" / changed).write_text("another", encoding="utf-8")
    before, after, same = (hash_folder(str(tmp_path / name)) for name in ("a", "b", "same"))
    assert before == same
    assert (before != after) == differs


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda folder: (folder / WHOLE).unlink(), "has no weights to begin at"),
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lambda folder: (folder / WHOLE).rename(folder / "model.safetensors.index.json"), "cannot be read: its model.safe"),
    ],
)
def test_a_folder_without_weights_is_refused(edit: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    for name in (WHOLE, "config.json"):
        (tmp_path / name).write_text("{", encoding="utf-8")
    edit(tmp_path)
    with pytest.raises(ValueError, match=expected):
        hash_folder(str(tmp_path))
