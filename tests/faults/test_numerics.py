"""Row 5: what a resumed run's bits rest on has changed, and the run says so."""

import json
import os
from pathlib import Path

import pytest
from fitting import fit

from research.training import snapshot


def resume(folder: Path, caplog: pytest.LogCaptureFixture, **settings: int) -> list[str]:
    fit(folder, resume=folder, steps=12, **settings)
    return [record.getMessage() for record in caplog.records if "not bit for bit" in record.getMessage()]


def test_nothing_is_said_where_nothing_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, steps=8)
    assert resume(tmp_path, caplog) == []


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 64), ("cpu_capability", "NEON"), ("torch", "1.0"), ("numpy", "0.1"), ("device", "cuda:3"),
                        ("adamw_kernel", "not built"), ("fast_bf16", "perhaps"), ("processor", "Z80"), ("processes", 2)]
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


def test_the_library_of_products_is_told_something_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if not name.startswith("MKL_")})
    fit(tmp_path, steps=8)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    (line,) = resume(tmp_path, caplog)
    assert "what the environment says to MKL and oneDNN is MKL_CBWR=COMPATIBLE, was nothing" in line


def test_other_micro_batches_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They add up to the same gradient, in another order."""
    fit(tmp_path, steps=8)
    (line,) = resume(tmp_path, caplog, grad_accum=2)
    assert line.endswith("not bit for bit: the number of micro-batches is 2, was 1")


def test_the_manifest_names_all_that_bits_rest_on(tmp_path: Path) -> None:
    fit(tmp_path, steps=8)
    (file, *_) = tmp_path.glob("checkpoints/step-*/manifest.json")
    numerics = json.loads(file.read_text())["numerics"]
    assert snapshot.NUMERICS.keys() < numerics.keys()
    assert {"device", "threads", "cpu_capability", "ternary_kernel", "adamw_kernel", "torch", "numpy"} <= numerics.keys()
