"""Data sets on the disk as the hub has them: the layout, the schema and the README of real ones, with a few rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from research.data import text
from research.files import hub, hub_fill

WORDS = "the packed ternary layers of a network learn to read a text of words and lines"
WIKITEXT = {"text": datasets.Value("string")}
FINEWEB = {
    **{name: datasets.Value("string") for name in ("text", "id", "dump", "url", "file_path", "language")},
    **{name: datasets.Value("float64") for name in ("language_score", "score")},
    **{name: datasets.Value("int64") for name in ("token_count", "int_score")},
}
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def fill_in_this_process(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of a test's own, and copies without a process for each: that the program has one, test_hub_program shows."""

    def run_filler(request: hub.Request, folder: Path, is_offline: bool) -> None:
        hub_fill.fill(request, folder)

    datasets.disable_progress_bars()
    monkeypatch.setenv("HF_HOME", str(cache / "huggingface"))
    monkeypatch.setattr(hub, "CACHE", cache / "hub")
    monkeypatch.setattr(text, "CACHE", cache / "tokens")
    monkeypatch.setattr(hub, "run_filler", run_filler)


def write_parquet(file: Path, columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]) -> None:
    """One shard, whose metadata tell the library's features, as push_to_hub writes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(dict(columns), datasets.Features(dict(features))).to_parquet(str(file))


def write_texts(file: Path, texts: Sequence[str | None]) -> None:
    write_parquet(file, {"text": texts}, WIKITEXT)


def write_readme(folder: Path, configs: Mapping[str, Mapping[str, str]], default: str = "") -> None:
    """Which files are of which split, by configuration."""
    rows = [
        {"config_name": name, "data_files": [{"split": s, "path": p} for s, p in splits.items()]}
        | ({"default": True} if name == default else {})
        for name, splits in configs.items()
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'license': 'mit', 'configs': rows})}---\n# A data set\n")


def make_story(number: int) -> str:
    return " ".join(np.random.default_rng(number).choice(WORDS.split(), 60)) + f" number {number}.\n"


def make_article(number: int) -> list[str]:
    """The rows of an article of WikiText: a line each."""
    return [
        "",
        f" = Article {number} = \n",
        "",
        f" {make_story(number)}",
        "",
        " = = History = = \n",
        "",
        f" {make_story(1000 + number)}",
    ]


def make_image(number: int, mode: str, side: int) -> Image.Image:
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8))


def write_wikitext(folder: Path) -> None:
    names = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    for name in names:
        for split, start, count, shards in (("test", 200, 3, 1), ("train", 0, 12, 2), ("validation", 100, 3, 1)):
            for shard in range(shards):
                numbers = range(start + shard * count // shards, start + (shard + 1) * count // shards)
                rows = [row for number in numbers for row in make_article(number)]
                write_texts(folder / name / f"{split}-{shard:05}-of-{shards:05}.parquet", rows)
    splits = ("test", "train", "validation")
    write_readme(folder, {name: {split: f"{name}/{split}-*" for split in splits} for name in names})


def write_tinystories(folder: Path) -> None:
    for shard in range(2):
        stories = [make_story(number) for number in range(shard * 20, shard * 20 + 20)]
        write_texts(folder / f"data/train-0000{shard}-of-00002-2d5a1467fff1081b.parquet", stories)
    write_texts(folder / "data/validation-00000-of-00001-869c898b519ad725.parquet", [make_story(n) for n in range(90, 96)])
    (folder / "TinyStories-train.txt").write_text("the same stories\n<|endoftext|>\n")  # beside the parquet files
    (folder / "README.md").write_text("---\nlicense: cdla-sharing-1.0\nlanguage:\n- en\n---\n")


def write_fineweb_edu(folder: Path) -> None:
    for name, start in (
        ("sample/10BT/000_00000", 0),
        ("sample/10BT/001_00000", 30),
        ("data/CC-MAIN-2024-10/train-00000-of-00014", 60),
    ):
        texts = [make_story(number) for number in range(start, start + 30)]
        columns: dict[str, list[Any]] = {
            key: ["x"] * 30 if kind.dtype == "string" else [1] * 30 for key, kind in FINEWEB.items()
        }
        write_parquet(folder / f"{name}.parquet", columns | {"text": texts}, FINEWEB)
    paths = {"default": "data/*/*", "sample-10BT": "sample/10BT/*"}
    write_readme(folder, {name: {"train": path} for name, path in paths.items()})


def write_images(
    folder: Path, config: str, image: str, names: Sequence[str], mode: str, side: int, counts: tuple[int, int] = (40, 20)
) -> None:
    features = {image: datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    for split, count, start in (("train", counts[0], 0), ("test", counts[1], 500)):
        columns: dict[str, list[Any]] = {
            image: [make_image(start + number, mode, side) for number in range(count)],
            "label": [number % len(names) for number in range(count)],
        }
        write_parquet(folder / config / f"{split}-00000-of-00001.parquet", columns, features)
    write_readme(folder, {config: {split: f"{config}/{split}-*" for split in ("train", "test")}}, config)


def write_mnist(folder: Path) -> None:
    write_images(folder, "mnist", "image", [str(digit) for digit in range(10)], "L", 28)


def write_cifar10(folder: Path) -> None:
    write_images(folder, "plain_text", "img", CIFAR, "RGB", 32)
