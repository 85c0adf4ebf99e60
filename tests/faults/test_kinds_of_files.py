"""Row 15: a pipe or a folder in place of a run's file wedges nothing, and is named before anything is written."""

import os
from pathlib import Path
from typing import Any

import pytest
from fitting import fit

from research.run import begin
from research.run_dir import RunConfig, list_checkpoints
from research.tracking.jsonl import Jsonl
from research.tracking.run_folder import keep_environment
from research.training import checkpoint
from research.training.files import RUN_FILES, RUN_FOLDERS, check_kinds
from research.training.manifest import DamagedError

SETTINGS: dict[str, Any] = {"log_every": 2, "eval_every": 4, "every": 2, "keep_last": 2}


@pytest.mark.parametrize("name", [*RUN_FILES, *RUN_FOLDERS])
def test_a_file_and_a_folder_in_each_others_place_are_named(tmp_path: Path, name: str) -> None:
    """Before anything is written."""
    path = tmp_path / name
    path.mkdir() if name in RUN_FILES else path.write_text("a note")
    config = RunConfig("name", "study", tmp_path, {"resume": {"path": "auto"}}, [], {})
    with pytest.raises(ValueError, match=f"{path} is {'a' if name in RUN_FILES else 'no'} folder"):
        begin(config, Jsonl())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / "whole").mkdir()
    check_kinds(tmp_path / "whole")


def test_a_pipe_among_a_checkpoints_files_is_not_waited_for(tmp_path: Path) -> None:
    fit(tmp_path / "run", steps=6, **SETTINGS)
    newest, older = list_checkpoints(tmp_path / "run").values()
    (newest / "model.safetensors").unlink()
    os.mkfifo(newest / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors is no regular file"):
        checkpoint.read(newest)
    assert checkpoint.load_newest(tmp_path / "run")[0] == older


def test_each_environment_that_a_run_had_is_kept(tmp_path: Path) -> None:
    """Also where one was deleted meanwhile."""
    for number in ("1.", "3.", "10.", ""):
        (tmp_path / f"env.{number}json").write_text(number)
    (tmp_path / "env.x.json").write_text("mine")
    keep_environment(tmp_path)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts == {"env.1.json": "1.", "env.3.json": "3.", "env.10.json": "10.", "env.11.json": "", "env.x.json": "mine"}
