"""What cannot be read of a data set in the hub's layout: one clear answer each, with what is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hubs import (
    fill_in_this_process,
    make_story,
    write_cifar10,
    write_parquet,
    write_readme,
    write_texts,
    write_tinystories,
    write_wikitext,
)

from research.data.hub import hub, hub_images
from research.data.spec import Dataset
from research.preflight.check import find_mistakes

STORIES = [make_story(number) for number in range(6)]
Mistake = tuple[Callable[[Path], Any], dict[str, Any], str, str]


def write_numbers(folder: Path) -> None:
    columns: dict[str, list[Any]] = {"text": [[1, 2]] * 4, "title": ["a"] * 4, "id": [1] * 4}
    features = {
        "text": datasets.List(datasets.Value("int64")),
        "title": datasets.Value("string"),
        "id": datasets.Value("int64"),
    }
    write_parquet(folder / "train-00000-of-00001.parquet", columns, features)


def write_rows(*rows: str | None, split: str = "train") -> Callable[[Path], None]:
    return lambda folder: write_texts(folder / f"{split}-00000-of-00001.parquet", rows)


def write_both(train: list[str | None], validation: list[str | None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_rows(*train)(folder)
        write_rows(*validation, split="validation")(folder)

    return write


def write_single(folder: Path) -> None:
    write_rows(STORIES[0])(folder)
    write_rows(*STORIES[1:], split="test")(folder)


def write_damaged(folder: Path) -> None:
    write_rows(*STORIES)(folder)
    (folder / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no parquet PAR1")


def write_script(folder: Path) -> None:
    write_rows(*STORIES)(folder)
    (folder / "set.py").write_text("raise SystemExit")


def write_two_configs(folder: Path) -> None:
    write_texts(folder / "a/train.parquet", STORIES)
    write_texts(folder / "b/train.parquet", STORIES)
    write_readme(folder, {"small": {"train": "a/*"}, "large": {"train": "b/*"}})


def write_unlabelled(folder: Path) -> None:
    write_cifar10(folder)
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    write_parquet(folder / "plain_text/test-00000-of-00001.parquet", {"img": [], "label": []}, features)


TEXT: dict[str, Mistake] = {
    "a configuration that is not there": (
        write_wikitext,
        {"config_name": "wikitext-3"},
        "data.config_name=wikitext-3",
        "give one of wikitext-103-raw-v1, wikitext-2-raw-v1",
    ),
    "several configurations": (write_two_configs, {}, "data.config_name=null", "give one of small, large"),
    "a configuration of a set without any": (
        write_tinystories,
        {"config_name": "en"},
        "data.config_name=en",
        "give one of default",
    ),
    "a split that is not there": (
        write_tinystories,
        {"train_split": "training"},
        "data.train_split=training",
        "give one of train, validation",
    ),
    "a split for validation that is not there": (
        write_tinystories,
        {"val_split": "dev"},
        "data.val_split=dev",
        "give one of train, validation",
    ),
    "a part that is none": (
        write_tinystories,
        {"train_split": "train[:x]"},
        "data.train_split=train[:x]",
        "a part as train[:10%]",
    ),
    "a part of no split": (
        write_tinystories,
        {"train_split": "all[:10%]"},
        "data.train_split=all[:10%]",
        "give one of train, validation",
    ),
    "a part without rows": (
        write_tinystories,
        {"train_split": "train[:0]"},
        "data.train_split=train[:0]",
        "corresponds to no data",
    ),
    "one split twice": (write_tinystories, {"val_split": "train"}, "data.val_split=train", "give data.val_split=null"),
    "a column that is not there": (write_tinystories, {"field": "story"}, "data.field=story", "of text there are: text"),
    "a column of a list that is not there": (
        write_tinystories,
        {"field": ["text", "title"]},
        "data.field=title",
        "there are: text",
    ),
    "a column of lists": (write_numbers, {}, "data.field=text", "of text there are: title"),
    "a column of numbers": (write_numbers, {"field": "id"}, "data.field=id: the split train of", "has int64 there"),
    "an empty split": (write_both([*STORIES], []), {}, "data.val_split=validation", "it is empty"),
    "blank rows": (write_rows("", " ", "\n"), {}, "data.dataset: ", "holds no text: 3 empty"),
    "null in a row": (write_rows(*STORIES, None), {}, "data.dataset: 1 rows with null in 'text'", "data.defects=skip"),
    "one document": (write_single, {}, "data.dataset: no document is left for validation", "give more text"),
    "all training text in validation, too": (
        write_both([*STORIES], [*STORIES]),
        {},
        "data.dataset: all training documents",
        "more text",
    ),
    "a damaged file": (write_damaged, {}, "data.dataset=", "mend its files"),
    "a folder without data": (
        lambda folder: (folder / "notes.xyz").write_text("x"),
        {},
        "holds no files in the hub's layout",
        "train-00000",
    ),
    "an empty folder": (lambda folder: None, {}, "holds no files in the hub's layout", "train-00000"),
    "a script": (write_script, {}, "set.py is a script", "are not run"),
    "a revision of a folder": (write_tinystories, {"revision": "main"}, "data.revision=main", "leave it out"),
    "no regular expression": (
        write_tinystories,
        {"document_start": "("},
        "data.document_start=( is no regular expression",
        "give one",
    ),
    "too short": (write_rows(*STORIES), {"seq_len": 100_000}, "data.seq_len=100000 is too long", "give a smaller one"),
    "a share beside a split": (
        write_wikitext,
        {"config_name": "wikitext-2-raw-v1", "test_fraction": 0.1},
        "data.test_fraction=0.1",
        "data.test_split=null",
    ),
    "no documents": (write_tinystories, {"max_documents": 0}, "data.max_documents", "[1, inf)"),
    "a null split": (write_tinystories, {"train_split": ""}, "data.train_split", "text"),
}
IMAGES: dict[str, Mistake] = {
    "a column that is not there": (write_cifar10, {}, "data.image=image", "of images there are: img"),
    "a column of classes": (write_cifar10, {"image": "label"}, "data.image=label", "of images there are: img"),
    "a column of no classes": (
        write_cifar10,
        {"image": "img", "label": "img"},
        "data.label=img",
        "of classes there are: label",
    ),
    "text": (write_tinystories, {}, "data.image=image", "another data set: it has none"),
    "an empty test": (write_unlabelled, {"image": "img"}, "data.test_split=test", "it is empty"),
    "a share beside a split": (
        write_cifar10,
        {"image": "img", "test_fraction": 0.1},
        "data.test_fraction=0.1",
        "data.test_split=null",
    ),
    "one class": (
        write_cifar10,
        {"image": "img", "max_images": 1, "test_split": None},
        "data.label=label",
        "one class airplane",
    ),
    "more than memory": (write_cifar10, {"image": "img", "max_gb": 1e-6}, "data.max_gb", "larger data.max_gb"),
}


def check(build: Callable[..., Dataset[Any]], mistake: Mistake, folder: Path) -> None:
    write, settings, *words = mistake
    folder.mkdir()
    write(folder)
    with pytest.raises(ValueError, match="data") as error:
        build(str(folder), **settings)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 5


@pytest.mark.parametrize("mistake", TEXT.values(), ids=TEXT.keys())
def test_text_is_refused(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_in_this_process(tmp_path / "cache", monkeypatch)
    check(hub, mistake, tmp_path / "set")


@pytest.mark.parametrize("mistake", IMAGES.values(), ids=IMAGES.keys())
def test_images_are_refused(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_in_this_process(tmp_path / "cache", monkeypatch)
    check(hub_images, mistake, tmp_path / "set")


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("", ("data.dataset needs a value", "roneneldan/TinyStories")),
        ("./stories", ("there is no folder", "OWNER/NAME")),
        ("~/stories", ("there is no folder", "OWNER/NAME")),
        ("/data/stories", ("there is no folder /data/stories", "OWNER/NAME")),
        ("data/sets/stories", ("there is no folder", "OWNER/NAME")),
        ("stories/", ("there is no folder", "OWNER/NAME")),
        ("notes.txt", ("is a file", "give its folder")),
        (
            "https://huggingface.co/datasets/roneneldan/TinyStories",
            ("is an address", "give data.dataset=roneneldan/TinyStories"),
        ),
        ("hf://datasets/ylecun/mnist@main/x", ("is an address", "give data.dataset=ylecun/mnist")),
        ("parquet", ("is a kind of files", "OWNER/NAME")),
    ],
)
def test_the_preflight_knows_what_is_no_data_set(
    dataset: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a note")
    (mistake,) = find_mistakes(["data=hub", f'data.dataset="{dataset}"' if dataset else "data.dataset=null"], False)
    assert all(word in mistake for word in words), mistake


def test_settings_of_no_target_are_refused_by_name() -> None:
    (mistake,) = find_mistakes(["data=hub", "data.dataset=a/b", "+data.trust_remote_code=true"], False)
    assert "trust_remote_code" in mistake
