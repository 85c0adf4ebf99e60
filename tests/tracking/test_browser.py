"""What a user sees in MLflow's pages, in a browser: the links that are printed lead to the run and to the sweep."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from program import TINY, make_environment, train

from docs.record_mlflow import find_missing, open_browser, open_page, serve, take_picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(find_missing()), reason=f"not installed: {', '.join(find_missing())}"),
]
ADDRESS = re.compile(r"^MLflow +.*(http://127\.0\.0\.1:5000)(/#/.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


def test_the_links_of_a_run_and_a_sweep_open_them(tmp_path: Path, browser: Any) -> None:
    small = [*TINY, "trainer.steps=20", "trainer.eval_every=2", "trainer.log_every=2"]
    run = train(tmp_path, *small).stdout
    sweep = train(tmp_path, *small, "-m", "lr=0.001,0.01", "optim=adamw,grokfast").stdout
    (run_link,), (sweep_link,) = ADDRESS.findall(run), ADDRESS.findall(sweep)
    with serve(make_environment(tmp_path)) as links:
        address = links["MLflow"].partition("/#/")[0]
        assert links["newest sweep"] == address + sweep_link[1]
        text = open_page(browser, address + run_link[1], ["bitnet grokfast seed=0", "train", "val", "acc"], 3)
        assert text.index("\ntrain\n") < text.index("\nval\n") < text.rindex("\nModel metrics\n"), "curves stand first"
        take_picture(browser, tmp_path / "run.png")
        names = [f"lr={lr} optim={optim}" for lr in ("0.001", "0.01") for optim in ("adamw", "grokfast")]
        text = open_page(
            browser, address + sweep_link[1], [*names, "Parallel Coordinates", "best.val_acc", "4 matching runs"], 2
        )
        assert "GenAI" in text, "the switch between MLflow's two halves"
        open_page(browser, links["MLflow"], ["sweep lr, optim", "bitnet grokfast seed=0", "6 matching runs"])
        overview = address + run_link[1].replace("/model-metrics", "")
        text = open_page(browser, overview, ["Created by", "train.py", "train.py trainer=debug", "modular ("])
        assert "_target_" not in text
        assert "optim.lr" not in text
    assert (tmp_path / "run.png").stat().st_size < 150_000
    with Image.open(tmp_path / "run.png") as picture:
        assert picture.width == 1280
