"""Texts with a class each: from columns, from folders, from docstrings; told apart from what has no class or several."""

import json
import re
from pathlib import Path

import pyarrow
import pytest
import torch
from omegaconf import OmegaConf
from program import ROOT
from pyarrow import parquet
from torch import nn

from research.data.labelled_text import labelled_text
from research.data.spec import MemoryDataset, Split, Tokens
from research.data.tokenizers import BPE, TOKENIZER_FOLDER, Bytes
from research.load import TrainedRun
from research.models.transformer import Transformer
from research.run_dir import Summary

ROWS = [(f"text number {number} of the class {'even' if number % 2 == 0 else 'odd'}", number % 2) for number in range(40)]
NAMES = ["even", "odd"]


def write_rows(path: Path) -> Path:
    """Write ROWS in the format that the suffix says."""
    texts, labels = [text for text, _ in ROWS], [NAMES[number] for _, number in ROWS]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": texts, "label": pyarrow.array(labels).dictionary_encode()}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"label": c, "text": t}) + "\n" for t, c in zip(texts, labels, strict=True)))
    else:
        tab = "\t" if path.suffix == ".tsv" else ","
        path.write_text(f"text{tab}label\n" + "".join(f"{t}{tab}{c}\n" for t, c in zip(texts, labels, strict=True)))
    return path


def write_folders(folder: Path) -> Path:
    for index, (text, number) in enumerate(ROWS):
        file = folder / NAMES[number] / "deeper" / f"{index}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def read_split(split: Split) -> set[tuple[str, int]]:
    """Return the texts of bytes and their classes."""
    return {(bytes(x).lstrip(b"\0").decode(), y) for x, y in zip(split.inputs.tolist(), split.targets.tolist(), strict=True)}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "folders"])
def test_each_source_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    path = write_folders(tmp_path / name) if name == "folders" else write_rows(tmp_path / name)
    data = labelled_text(str(path), seq_len=64, val_fraction=0.2, test_fraction=0.1)
    assert data.shape == Tokens(256, 64, end=0, num_classes=2)
    assert isinstance(data.test, Split)
    assert [len(split) for split in (data.train, data.val, data.test)] == [28, 8, 4]
    assert read_split(data.train) | read_split(data.val) | read_split(data.test) == set(ROWS)
    assert (
        data.digest
        == labelled_text(str(write_rows(tmp_path / "z.csv")), seq_len=64, val_fraction=0.2, test_fraction=0.1).digest
    )
    assert data.source.startswith("28 + 8 + 4 texts of 2 classes (even, odd), bytes")
    frequent = int(data.train.targets.bincount().argmax())
    assert data.baseline == {"val/acc majority": int((data.val.targets == frequent).sum()) / 8}


def test_long_texts_are_cut_and_short_ones_stand_at_the_right(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["abcdefgh", "ab", *(f"{number:04}" for number in range(8))]
    path.write_text("".join(json.dumps({"text": text, "label": len(text) > 2}) + "\n" for text in texts))
    data = labelled_text(str(path), seq_len=4, val_fraction=0.1)
    rows = torch.cat((data.train.inputs, data.val.inputs))
    assert {bytes(row) for row in rows.tolist()} >= {b"abcd", b"\0\0ab"}
    assert data.notes[0] == "1 of 10 texts are cut to 4 tokens"
    assert "(false, true)" in data.source


def test_the_tokenizer_learns_from_the_training_texts_alone(tmp_path: Path) -> None:
    data = labelled_text(str(write_rows(tmp_path / "a.csv")), tokenizer=BPE(300), seq_len=32)
    assert data.tokenizer is not None
    texts = {data.tokenizer.decode(row).decode() for row in torch.cat((data.train.inputs, data.val.inputs)).tolist()}
    assert texts == {text for text, _ in ROWS}
    assert data.train.inputs.dtype == torch.int32
    other = labelled_text(str(tmp_path / "a.csv"), tokenizer=BPE(300), seq_len=32)
    assert other.digest == data.digest


def test_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv")
    write_rows(tmp_path / "b.jsonl")
    data = labelled_text(str(tmp_path), seq_len=64)
    assert len(data.train) + len(data.val) == 40
    assert data.notes[-1] == "left out: 40 repeated"


REFUSED: dict[str, tuple[dict[str, str], dict[str, object], str]] = {
    "a text with two classes": ({"a.csv": "text,label\nx,a\ny,b\nx,b\n"}, {}, "1 texts with several classes\n.*'x' .a, b."),
    "a missing column": ({"a.csv": "text,kind\nx,a\n"}, {}, "data.label=label: .*give data.label=COLUMN, one of text, kind"),
    "a missing text": ({"a.csv": "body,label\nx,a\n"}, {}, "data.field=text: .* has no column 'text'"),
    "an empty class": ({"a.csv": "text,label\nx,a\ny,\n"}, {}, "1 rows with an empty 'label'"),
    "null": ({"a.jsonl": '{"text": "x", "label": null}\n'}, {}, "1 rows with null in 'label'"),
    "a number with a point": ({"a.jsonl": '{"text": "x", "label": 1.5}\n'}, {}, "1 rows with a float in 'label'"),
    "one class": ({"a.csv": "text,label\nx,a\ny,a\n"}, {}, "all 2 texts are of the class a"),
    "no text": ({"a.csv": "text,label\n,a\n"}, {}, "no row is left: 1 empty"),
    "no row": ({"a.csv": "text,label\n"}, {}, "there is no text with a class"),
    "another key": ({"a.jsonl": '{"body": "x", "label": "a"}\n'}, {"defects": "skip"}, "1 rows without data.field=text"),
    "an identifier": (
        {"a.csv": "text,label\n" + "".join(f"t{n},id{n}\n" for n in range(9))}, {}, "9 texts have 9 classes, as id0"
    ),
    "a text in no folder": ({"pos/a.txt": "x", "neg/a.txt": "y", "c.txt": "z"}, {}, "1 text files that are in no folder"),
    "a folder of splits": ({"train/pos/a.txt": "x", "test/pos/b.txt": "y"}, {}, "holds splits .train, test.*give .*/train: "),
    "one split": ({"test/pos/a.txt": "x", "test/neg/b.txt": "y"}, {}, "its folders are splits .test., no classes"),
    "a split beside classes": ({"train.csv": "a", "test.csv": "b", "pos/a.txt": "x"}, {}, "holds splits .train.csv"),
    "an empty folder": ({"pos/a.txt": "x", "neg/a.png": "y"}, {}, "neg is of a kind that is read; it has 1 .png\ngive files"),
    "one text": ({"a.csv": "text,label\nx,a\n"}, {}, "the only text is of the class a"),
    "one column": ({"a.csv": "text,label\nx,a\n"}, {"field": "label"}, "data.field=label and data.label=label are one column"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_classified_is_refused(tmp_path: Path, name: str) -> None:
    files, settings, words = REFUSED[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        labelled_text(str(tmp_path), **settings)  # type: ignore[arg-type]


def test_settings_of_files_need_files() -> None:
    with pytest.raises(ValueError, match=r"data\.label=kind is of files, and needs data\.path\n.* or data\.label=label"):
        labelled_text(label="kind")


def test_classes_are_told_without_spaces_and_with_what_a_split_lacks(tmp_path: Path) -> None:
    rows = "".join(f"text {number},{'rare' if number < 2 else ('a', ' a', 'A')[number % 3]}\n" for number in range(60))
    (tmp_path / "a.csv").write_text(f"text, label\n{rows}")
    data = labelled_text(str(tmp_path / "a.csv"), seq_len=16)
    assert data.classes == ("A", "a", "rare")
    assert data.notes[1] == "classes: 0 A, 1 a, 2 rare"
    assert data.notes[3:] == ("classes that differ in capitals alone: A, a", "val has no sample of 1 classes: rare")


def test_texts_with_several_classes_can_be_left_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv")
    path.write_text(path.read_text() + f"{ROWS[0][0]},odd\n")
    data = labelled_text(str(path), seq_len=64, defects="skip")
    assert len(data.train) + len(data.val) == 39
    assert data.notes[-1] == "left out: 1 texts with several classes"


def test_a_folder_of_texts_without_a_class_is_left_out(tmp_path: Path) -> None:
    (write_folders(tmp_path) / "unsup").mkdir()
    (tmp_path / "unsup" / "a.txt").write_text("neither")
    data = labelled_text(str(tmp_path), seq_len=64)
    assert (data.shape.num_classes, len(data.train) + len(data.val)) == (2, 40)
    assert data.notes[-1] == "left out: 1 folders 'unsup', which is no class"


def test_the_code_of_the_docs_labels_new_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a batch of the data set has them, texts that are longer than a row among them."""
    torch.manual_seed(0)
    model = Transformer(Tokens(256, 20, 0, 2), 16, 1, 2, nn.Linear, init_std=0.5).eval().requires_grad_(False)
    Bytes().save(tmp_path / TOKENIZER_FOLDER)
    Summary("FINISHED", classes=NAMES).write(tmp_path)
    config = OmegaConf.create({"data": {"seq_len": 20}})
    monkeypatch.setattr("research.load.load_run", lambda run: TrainedRun(tmp_path, tmp_path, config, model))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "run.classes" in block)
    texts = [chr(number) * (number - 96) for number in range(97, 123)]
    printed = list[str]()
    exec(code.replace('["The first one.", "Another one."]', repr(texts)), {"print": printed.append})
    rows = torch.tensor([[0] * (20 - len(text[:20])) + list(text[:20].encode()) for text in texts])
    shares = model(rows)[:, -1].softmax(1)
    expected = [f"{NAMES[int(share.argmax())]} {share.max():.2f} {text}" for share, text in zip(shares, texts, strict=True)]
    assert printed == expected
    assert {line.split()[0] for line in expected} == set(NAMES)


def test_docstrings_have_the_class_of_their_package() -> None:
    data: MemoryDataset[Tokens] = labelled_text(seq_len=32)
    assert data.shape.num_classes == 8
    assert len(data.train) > 1000
    assert data.train.targets.unique().tolist() == list(range(8))
    assert 0.125 < data.baseline["val/acc majority"] < 0.5
