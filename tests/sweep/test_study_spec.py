"""study.json: what is written is read back, files of version 1 are read, newer ones are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from program import ROOT

from research.tracking.study_spec import SWEEP_SPEC_FILE, StudySpec, read_study_spec, write_study_spec

OLD = ROOT / "tests" / "fixtures" / "v1" / "sweep"


def test_a_file_of_version_1_is_read() -> None:
    spec = read_study_spec(OLD)
    assert (spec.study, spec.total, spec.finished, spec.kind, spec.version) == ("sweep", 3, True, "grid", 2)
    assert spec.fixed is not None
    assert "data=digits" in spec.fixed
    assert spec.space == {"lr": "3 values: 0.1, 0.01, 0.001"}
    assert spec.repeat_key == "seed"


def test_what_is_written_is_read_back_under_the_same_keys(tmp_path: Path) -> None:
    spec = replace(read_study_spec(OLD), reason="patience: 3 trials", max_failure_rate=0.25)
    write_study_spec(tmp_path, spec)
    assert read_study_spec(tmp_path) == spec
    keys = json.loads((OLD / SWEEP_SPEC_FILE).read_text()).keys()
    assert json.loads((tmp_path / SWEEP_SPEC_FILE).read_text()).keys() == keys | {"version"}


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_study_spec(tmp_path) == StudySpec()
    assert read_study_spec(tmp_path).fixed is None


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / SWEEP_SPEC_FILE).write_text('{"version": 3}')
    with pytest.raises(ValueError, match=r"study\.json has version 3.*update"):
        read_study_spec(tmp_path)
