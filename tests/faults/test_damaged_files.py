"""Kind: a damaged file of a run folder is named, and the checkpoint, which knows its configuration, is used (row 10)."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from program import TINY, train

from research.load import load_run
from research.preflight.check import check_overrides
from research.preflight.overrides import to_override

BASE = [*TINY, "trainer.steps=4", "tracker=none"]
DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"0.0", b"0.1", 1)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00" + path.read_bytes()),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
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


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "overrides.txt", "env.json", "summary.json"])
def test_auto_goes_on_with_a_run_whose_files_are_damaged(
    run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / name).read_bytes()
    DAMAGES[damage](run / name)
    changed = not (run / name).exists() or (run / name).read_bytes() != before
    command = [*BASE, "resume.path=auto", f"out={run.parents[1]}", "trainer.steps=6"]
    assert check_overrides(command, False) == ([], [f"hydra.run.dir={to_override(str(run))}"])
    assert ("config.yaml" in capsys.readouterr().err) == (changed and name == "config.yaml")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_loads_by_its_checkpoints_configuration(run: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES[damage](run / "config.yaml")
    with caplog.at_level(logging.WARNING):
        assert load_run(str(run)).config.model.dim == 32
    assert "config.yaml" in caplog.text


def test_a_flipped_setting_is_told_with_both_values(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^lr: .*$", "lr: 0.009", text))
    load_run(str(run))
    assert "lr is 0.009, not 0." in caplog.text
