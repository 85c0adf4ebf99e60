"""The presets of data sets of the hub, each on a folder with the layout and the schema of the real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hubs import (
    CIFAR,
    fill_in_this_process,
    make_image,
    make_story,
    write_cifar10,
    write_fineweb_edu,
    write_mnist,
    write_tinystories,
    write_wikitext,
)
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from program import ROOT, read_summaries, train

from research.data.spec import Dataset
from research.load import instantiate

TINY = ["trainer=debug", "tracker=jsonl", "trainer.device=cpu", "batch_size=4", "model.dim=32", "model.heads=2"]
WRITERS: dict[str, Callable[[Path], None]] = {
    "wikitext": write_wikitext,
    "tinystories": write_tinystories,
    "fineweb_edu": write_fineweb_edu,
    "mnist": write_mnist,
    "cifar10": write_cifar10,
}
MODELS = {"mnist": ["model=bitvision", "model.patch_size=14"], "cifar10": ["model=bitvision", "model.patch_size=16"]}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset[Any]]:
    """Builds the data of a preset as a run does, from a folder in the layout of the real one."""
    fill_in_this_process(tmp_path / "cache", monkeypatch)

    def build(name: str, *overrides: str) -> Dataset[Any]:
        WRITERS[name](tmp_path / "set")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose(
                "config", overrides=[f"data={name}", f"data.dataset={tmp_path / 'set'}", *MODELS.get(name, []), *overrides]
            )
        data: Dataset[Any] = instantiate(cfg.data, key="data")
        return data

    return build


def read_text(samples: Any) -> str:
    """The text of windows one after the other."""
    return b"".join(bytes(row.tolist()) for row in samples.inputs).decode(errors="replace")


@pytest.mark.parametrize("config", ["wikitext-103-raw-v1", "wikitext-2-raw-v1"])
def test_the_lines_of_wikitext_are_articles(config: str, load: Callable[..., Dataset[Any]]) -> None:
    data = load("wikitext", f"data.config_name={config}", "data.seq_len=32")
    assert data.source.startswith("12 + 3 + 3 documents")
    assert {read_text(part).count(" = Article ") for part in (data.val, data.test)} == {3}
    article = read_text(data.train).split(" = Article ")[1]
    assert " = = History = = \n\n " in article  # headings and empty lines stay, in their order
    assert len(article) > 600


def test_stories_have_their_own_validation(load: Callable[..., Dataset[Any]]) -> None:
    data = load("tinystories", "data.seq_len=32")
    assert data.source.startswith("40 + 6 documents")
    assert make_story(0)[:30] in read_text(data.train)
    assert data.test is None
    assert "the same stories" not in read_text(data.train)  # of the text file beside the parquet files


def test_the_first_pages_of_the_web(load: Callable[..., Dataset[Any]]) -> None:
    size = sum(len(make_story(number)) for number in range(40)) + 10
    data = load("fineweb_edu", f"data.max_bytes={size}", "data.seq_len=32")
    assert data.source.startswith("39 + 1 documents")
    assert make_story(60)[:30] not in read_text(data.train)  # it is of another configuration


@pytest.mark.parametrize(("name", "mode", "side"), [("mnist", "L", 28), ("cifar10", "RGB", 32)])
def test_images_have_their_pixels_and_classes(name: str, mode: str, side: int, load: Callable[..., Dataset[Any]]) -> None:
    data = load(name)
    assert data.classes == (tuple("0123456789") if name == "mnist" else tuple(CIFAR))
    test: Any = data.test
    assert [len(data.train), len(data.val), len(test)] == [36, 4, 20]
    assert data.shape == (1 if mode == "L" else 3, side, side, 10, False)
    images = {make_image(500 + number, mode, side).tobytes(): number % 10 for number in range(20)}
    for pixels, label in zip(test.inputs, test.targets.tolist(), strict=True):
        assert images[pixels.permute(1, 2, 0).numpy().tobytes()] == label


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_preset_trains(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "set")
    more = MODELS.get(name, ["data.seq_len=64"])
    words = [f"data={name}", f"data.dataset={tmp_path / 'set'}", *more, *TINY]
    done = train(tmp_path, *words)
    (summary,) = read_summaries(tmp_path)
    assert (summary["status"], summary["steps"]) == ("FINISHED", 3)
    assert f"{tmp_path / 'set'}: train as train" in done.stdout
    folder = next((tmp_path / "out" / name).iterdir())
    resumed = train(tmp_path, *words, f"resume={folder}", "trainer.steps=6")
    assert "step 6/6" in resumed.stdout


def test_the_docs_list_the_presets() -> None:
    page = (ROOT / "docs/data.md").read_text()
    for name in WRITERS:
        data = OmegaConf.load(ROOT / f"conf/data/{name}.yaml").data
        assert f"| `data={name}` | {data.dataset}" in page
        assert str(data.get("config_name", "")) in page
