"""Row 10: a damaged file of a run folder is named, and the checkpoint, which knows its configuration, is used."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from program import TINY, create_empty_store, forget_configurations, train

from research.composition.overrides import to_override
from research.composition.recorded import load_config
from research.load import load_run
from research.preflight.check import check_overrides
from research.run import get_finished_value
from research.run_dir import RunConfig
from research.tracking.mlflow import MLflow

BASE = [*TINY, "trainer.steps=4", "tracker=none"]
DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"0", b"8", 1)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00" + path.read_bytes()),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}
CONFIG_WORDS = {
    "flipped": "has other settings: seed is 8, not 0",
    "cut": "(has other settings: .* is nothing, not|cannot be read)",  # by where the cut is
    "binary": "cannot be read",
    "empty": "is empty",
    "gone": "is not there",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, in out/modular."""
    tmp_path = tmp_path_factory.mktemp("original")
    train(tmp_path, *BASE)
    (run,) = (tmp_path / "out" / "modular").iterdir()
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "modular" / original.name))


def resume(run: Path) -> None:
    """Judge a command that goes on with the run, and look into its summary, as the command does."""
    command = [*BASE, "resume.path=auto", f"out={run.parents[1]}", "trainer.steps=6"]
    assert check_overrides(command, False) == ([], [f"hydra.run.dir={to_override(str(run))}"])
    config = load_config(run)[0] | {"steps": 6}
    assert get_finished_value(RunConfig("", "", run, config, [], {}, resumed=True)) is None


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "overrides.txt", "env.json", "summary.json"])
def test_auto_goes_on_with_a_run_whose_files_are_damaged(
    run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each damage names its file. A summary that is gone is none: a run that was killed has none."""
    before = (run / name).read_bytes()
    DAMAGES[damage](run / name)
    assert not (run / name).exists() or (run / name).read_bytes() != before
    resume(run)
    words, warnings = CONFIG_WORDS[damage] if name == "config.yaml" else "is damaged", capsys.readouterr().err + caplog.text
    if (name, damage) == ("summary.json", "gone"):
        assert warnings == ""
    else:
        assert re.search(rf"{run}(: |/){name} {'is not there' if damage == 'gone' else words}", warnings), warnings


def test_a_whole_run_is_not_called_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*BASE, "resume.path=auto", f"out={run.parents[1]}", "trainer.steps=6"]
    assert check_overrides(command, False)[1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_a_run_of_version_1_names_the_file_that_it_lacks(run: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No manifest knows its configuration, so config.yaml alone does."""
    forget_configurations(run)
    DAMAGES[damage](run / "config.yaml")
    check_overrides([*BASE, f"resume.path={to_override(str(run))}", "trainer.steps=6"], False)
    expected = "is not there" if damage == "gone" else "is empty"
    assert capsys.readouterr().err == f"warning: {run}: config.yaml {expected}\n"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_loads_by_its_checkpoints_configuration(run: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES[damage](run / "config.yaml")
    with caplog.at_level(logging.WARNING):
        assert load_run(str(run)).config.model.dim == 32
    assert "config.yaml" in caplog.text


FOUND, LOST = "is damaged or gone: summary.json names the run", "names no run of this store: it becomes a new one"
IDS: dict[str, Callable[[Path], object]] = {  # what happens to mlflow_run_id
    **{kind: DAMAGES[kind] for kind in ("cut", "binary", "empty", "gone")},
    "of another run": lambda path: path.write_text("0" * 32),
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("folder", ["run", "run without a summary", "sweep"])
def test_a_damaged_id_makes_no_second_record_in_silence(
    tmp_path: Path, kind: str, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A summary gives it back. The folder of a sweep, and a run that was killed, have none."""
    shutil.copy(create_empty_store(), tmp_path / "mlflow.db")
    run = tmp_path / "sweep" / "0"
    run.mkdir(parents=True)

    def track() -> list[str]:
        tracker = MLflow(f"sqlite:///{tmp_path / 'mlflow.db'}")
        tracker.start(RunConfig("name", "study", run, {}, [], {}, sweep_folder=run.parent, resumed=True))
        tracker.finish("FINISHED", {})
        assert not tracker.delivery.error
        return [(path / "mlflow_run_id").read_text() for path in (run, run.parent)]

    before = track()
    assert (track(), caplog.text) == (before, "")
    if folder != "run":
        (run / "summary.json").unlink()
    file = (run.parent if folder == "sweep" else run) / "mlflow_run_id"
    IDS[kind](file)
    after = track()
    is_same = [one == other for one, other in zip(before, after, strict=True)]
    assert is_same == [folder != "run without a summary", folder != "sweep"]
    words = FOUND if folder == "run" else LOST
    assert caplog.text.count(f"{file} {words}") == (folder == "run" or kind != "gone"), caplog.text


def test_a_flipped_setting_is_told_with_both_values(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^lr: .*$", "lr: 0.009", text))
    load_run(str(run))
    assert "lr is 0.009, not 0." in caplog.text
