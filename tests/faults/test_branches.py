"""Row 1: what begins at another run's checkpoint reports its own numbers, and begins there in a sweep too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fitting import fit
from program import TINY, read_metrics, train

from research.run_dir import list_checkpoints

BASE = [*TINY, "trainer.steps=4", "tracker=none", "target=null"]


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    tmp_path = tmp_path_factory.mktemp("own")
    train(tmp_path, *BASE)
    (run,) = (tmp_path / "out").glob("*/*/")
    return run


def read_summary_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_a_run_at_its_end_is_no_result_of_other_settings(own_run: Path, tmp_path: Path) -> None:
    """Nor of another monitor: the result that is there stays."""
    run = Path(shutil.copytree(own_run, tmp_path / "run"))
    done = train(tmp_path, *BASE, f"resume={run}", "lr=9", "monitor=val/loss", fails=True)
    assert "step 4 of 4 is done with other settings: monitor is" in done.stderr
    assert "lr is 9 here" in done.stderr
    assert (run / "summary.json").read_bytes() == (own_run / "summary.json").read_bytes()
    assert (run / "config.yaml").read_bytes() == (own_run / "config.yaml").read_bytes()


def test_a_library_run_at_its_end_is_evaluated_by_another_monitor(tmp_path: Path) -> None:
    first = fit(tmp_path / "run", steps=4, monitor="val/loss")
    again = fit(tmp_path / "more", steps=4, monitor="val/acc", resume=tmp_path / "run")
    assert again.progress.best["val/acc"] == first.progress.metrics["val/acc"]
    assert again.progress.best["step"] == 4


def test_a_branch_of_other_settings_has_no_best_of_its_parent(own_run: Path, tmp_path: Path) -> None:
    """The parent's is kept where only the number of steps is another."""
    copy = shutil.copytree(list_checkpoints(own_run)[4], tmp_path / "copy")
    for change in ("batch_size=16", "lr=1e-9"):
        train(tmp_path, *BASE, "trainer.steps=5", f"resume={copy}", change, f"name={change[:2]}")
    same, other = (read_summary_of(next((tmp_path / "out" / name).iterdir())) for name in ("ba", "lr"))
    assert other["best"]["step"] == 5
    assert same["best"]["val/acc"] >= read_summary_of(own_run)["best"]["val/acc"]


@pytest.mark.parametrize("weights_only", [True, False])
def test_the_trials_of_a_sweep_begin_where_resume_says(own_run: Path, tmp_path: Path, weights_only: bool) -> None:
    """Given again they go on from their own checkpoints."""
    sweep, steps = tmp_path / "sweep", 2 if weights_only else 6
    command = [*BASE, f"trainer.steps={steps}", "tracker=jsonl", "trainer.log_every=1", f"hydra.sweep.dir={sweep}", "-m",
               "lr=choice(1e-30)", f"resume={own_run}", f"resume.weights_only={weights_only}"]  # fmt: skip
    train(tmp_path, *command)
    assert read_metrics(sweep / "0")[0]["step"] == (1 if weights_only else 5)
    assert read_summary_of(sweep / "0")["metrics"]["val/loss"] == read_summary_of(own_run)["metrics"]["val/loss"]
    assert str(own_run) in (sweep / "0" / "config.yaml").read_text()
    checkpoint = list_checkpoints(sweep / "0")[steps]
    written = (checkpoint / "manifest.json").stat().st_mtime_ns
    for path in (sweep / "0" / "summary.json", *sweep.glob("study*")):
        path.unlink()
    train(tmp_path, *command)
    assert (checkpoint / "manifest.json").stat().st_mtime_ns == written, "its own checkpoint, not the first one's"
    assert read_summary_of(sweep / "0")["steps"] == steps
