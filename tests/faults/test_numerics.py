"""Row 5: what a resumed run's bits rest on has changed, and the run says so."""

import json
from pathlib import Path

import pytest
from fitting import fit

from research.training import snapshot


def resume(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    fit(folder, resume=folder, steps=12)
    return [record.getMessage() for record in caplog.records if "not bit for bit" in record.getMessage()]


def test_nothing_is_said_where_nothing_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, steps=8)
    assert resume(tmp_path, caplog) == []


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 64), ("cpu_capability", "NEON"), ("torch", "1.0"), ("numpy", "0.1"), ("device", "cuda:3"),
                        ("adamw_kernel", "not built"), ("fast_bf16", "perhaps")]
)  # fmt: skip
def test_each_difference_is_told_in_a_line(
    tmp_path: Path, name: str, value: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = snapshot.describe_numerics
    monkeypatch.setattr(snapshot, "describe_numerics", lambda *arguments: describe(*arguments) | {name: value})
    fit(tmp_path, steps=8)
    monkeypatch.undo()
    (line,) = resume(tmp_path, caplog)
    assert "\n" not in line
    assert f"{snapshot.NUMERICS.get(name, name)} is " in line
    assert f"was {value}" in line
    assert line.endswith("; set OMP_NUM_THREADS=64 for as many threads") == (name == "threads")


def test_the_manifest_names_all_that_bits_rest_on(tmp_path: Path) -> None:
    fit(tmp_path, steps=8)
    (file, *_) = tmp_path.glob("checkpoints/step-*/manifest.json")
    numerics = json.loads(file.read_text())["numerics"]
    assert snapshot.NUMERICS.keys() < numerics.keys()
    assert {"device", "threads", "cpu_capability", "ternary_kernel", "adamw_kernel", "torch", "numpy"} <= numerics.keys()
