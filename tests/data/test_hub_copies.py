"""The copy of a data set: made once, continued after a kill, shared, and left alone by a data set that does not change."""

import gc
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hubs import fill_in_this_process, make_image, make_story, write_images, write_parquet, write_texts, write_tinystories

from research.data.hub import hub, hub_images
from research.data.text import text
from research.files import hub as files
from research.files import hub_fill, hub_rows
from research.files.hub import Request

SPLITS = {"train": "train", "val": "auto", "test": "auto"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of forty stories in two files, and caches of this test's own."""
    fill_in_this_process(tmp_path / "cache", monkeypatch)
    write_tinystories(tmp_path / "set")
    return tmp_path / "set"


def read_windows(samples: Any) -> bytes:
    return b"".join(bytes(row.tolist()) for row in samples.inputs)


def request(folder: Path, **settings: Any) -> Request:
    return Request(
        **{
            "kind": "text",
            "dataset": str(folder),
            "config_name": None,
            "revision": None,
            "splits": SPLITS,
            "columns": ("text",),
        }
        | settings
    )


def test_the_second_start_reads_the_copy_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub(str(folder), seq_len=32)
    monkeypatch.setattr(files, "run_filler", lambda *words: pytest.fail("the library is asked again"))
    monkeypatch.setattr(files, "is_hub_reachable", lambda: pytest.fail("the hub is asked again"))
    again = hub(str(folder), seq_len=32)
    assert (again.digest, again.source) == (first.digest, first.source)
    folder.rename(folder.with_name("moved"))  # a folder is its files
    assert hub(str(folder.with_name("moved")), seq_len=32).digest == first.digest


def test_a_file_that_changes_is_another_data_set(folder: Path) -> None:
    first = hub(str(folder), seq_len=32)
    write_texts(folder / "data/validation-00000-of-00001-869c898b519ad725.parquet", [make_story(n) for n in range(70, 76)])
    assert hub(str(folder), seq_len=32).digest != first.digest


def test_the_order_of_samples_does_not_depend_on_the_library(folder: Path, tmp_path: Path) -> None:
    """The same documents by data=text: what trains is a window of our own streams."""
    data = hub(str(folder), val_split=None, seq_len=32)
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": make_story(n)}) + "\n" for n in range(40)))
    ours = text(str(tmp_path / "all.jsonl"), seq_len=32)
    assert data.digest == ours.digest


def test_a_repeat_is_in_the_test_or_validation_alone(folder: Path) -> None:
    for split, numbers in (("train", [*range(20), 30, 31]), ("validation", [30, 40, 41, 31]), ("test", [50, 51, 31])):
        write_texts(folder / f"data/{split}-00000-of-00001.parquet", [make_story(number) for number in numbers])
    for file in [*folder.glob("data/*1b.parquet"), *folder.glob("data/*25.parquet")]:
        file.unlink()
    data = hub(str(folder), seq_len=32)
    assert data.source.startswith("20 + 3 + 3 documents")
    assert "left out: 3 repeated" in data.notes
    assert "data.val_fraction does not count beside a split of its own" in data.notes


def test_parts_of_splits(folder: Path, tmp_path: Path) -> None:
    data = hub(str(folder), train_split="train[:50%]", val_split="train[50%:60%]", seq_len=32)
    assert data.source.startswith("20 + 4 documents")
    both = hub(str(folder), train_split="train+validation", val_split=None, seq_len=32)
    assert both.source.startswith("41 + 5 documents")
    assert (tmp_path / "cache/huggingface/datasets").is_dir()


def test_limits_are_of_training_alone(folder: Path) -> None:
    assert hub(str(folder), max_documents=7, seq_len=32).source.startswith("7 + 6 documents")
    size = sum(len(make_story(number)) for number in range(5))
    assert hub(str(folder), max_bytes=size, seq_len=32).source.startswith("5 + 6 documents")
    assert hub(str(folder), max_bytes=1, seq_len=32).source.startswith("1 + 6 documents")


def test_columns_are_joined(tmp_path: Path) -> None:
    columns = {"title": [f"title {n}" for n in range(9)], "body": [make_story(n) for n in range(9)]}
    write_parquet(tmp_path / "two/train.parquet", columns, {name: datasets.Value("large_string") for name in columns})
    data = hub(str(tmp_path / "two"), field=["title", "body"], seq_len=32)
    assert b"title 3\n" + make_story(3).encode()[:20] in read_windows(data.train) + read_windows(data.val)


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": [make_story(n) for n in range(12)]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk(str(tmp_path / "several"))
    assert hub(str(tmp_path / "one"), seq_len=32).source.startswith("11 + 1 documents")
    assert hub(str(tmp_path / "several"), seq_len=32).source.startswith("9 + 1 + 2 documents")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the library leaves it to the collector to close its files
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_files_of_other_kinds(suffix: str, tmp_path: Path) -> None:
    stories = [make_story(number).strip() for number in range(9)]
    lines = {"jsonl": [json.dumps({"text": story}) for story in stories], "csv": ["text", *stories], "txt": stories}[suffix]
    (tmp_path / "kind").mkdir()
    (tmp_path / f"kind/train.{suffix}").write_text("\n".join(lines) + "\n")
    assert hub(str(tmp_path / "kind"), seq_len=32).source.startswith("8 + 1 documents")
    gc.collect()


def test_images_without_a_class_and_a_folder_of_images(tmp_path: Path) -> None:
    write_images(tmp_path / "set2", "default", "image", ["cat", "dog"], "L", 8)
    file = tmp_path / "set2/default/train-00000-of-00001.parquet"
    columns: dict[str, list[Any]] = {
        "image": [make_image(n, "L", 8) for n in range(20)],
        "label": [-1, *[n % 2 for n in range(19)]],
    }
    write_parquet(file, columns, {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    data = hub_images(str(tmp_path / "set2"), channels=3, size=4)
    assert data.shape == (3, 4, 4, 2, False)
    assert "left out: 1 images without a class" in data.notes
    for number in range(12):
        path = tmp_path / f"pets/{('cat', 'dog')[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(number, "RGB", 8).save(path)
    assert hub_images(str(tmp_path / "pets"), val_fraction=0.25).classes == ("cat", "dog")


def test_a_damaged_image_and_a_contradiction_are_refused_or_counted(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "image": [*({"bytes": b"no image", "path": None}, None), *[make_image(n % 9, "L", 8) for n in range(12)]],
        "label": [0, 1, *[n % 2 for n in range(12)]],
    }
    write_parquet(tmp_path / "odd/train.parquet", columns, {"image": datasets.Image(), "label": datasets.Value("int64")})
    with pytest.raises(ValueError, match=r"data\.dataset: .*1 empty files, 1 files that are no images") as error:
        hub_images(str(tmp_path / "odd"))
    assert "train, row 0" in str(error.value)
    data = hub_images(str(tmp_path / "odd"), defects="skip")
    assert len(data.train) + len(data.val) == 6  # of twelve three are twice, of two classes
    assert data.classes == ("0", "1")


@pytest.mark.parametrize("start", [None, r".*[05]\.$"])
def test_a_filler_that_is_interrupted_goes_on(
    start: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some rows, with a note after each: the copy is that of one go."""
    monkeypatch.setattr(hub_rows, "PROGRESS_EVERY", 0)
    wanted = request(folder, document_start=start)
    take, left = hub_rows.TextAdder.take, [0]

    def interrupt(adder: Any, row: Any) -> bool:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return take(adder, row)

    monkeypatch.setattr(hub_rows.TextAdder, "take", interrupt)
    for count in (3, 1, 17, 12, 9):
        left[0] = count
        with pytest.raises(KeyboardInterrupt):
            hub_fill.fill(wanted, tmp_path / "part")
    left[0] = 1000
    hub_fill.fill(wanted, tmp_path / "part")
    assert left[0] > 1000 - 10  # what was there was not read again
    hub_fill.fill(wanted, tmp_path / "at_once")
    for name in ("train.jsonl", "val.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "at_once" / name).read_bytes()
