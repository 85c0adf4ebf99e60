"""The split that nothing is chosen by: its metrics are those of the last weights, and come with the end of a run."""

from dataclasses import replace
from pathlib import Path

import fitting
import pytest
from fitting import DATA, STEPS, fit, read_metrics

from research.callbacks.console import build_summary
from research.data.spec import Split
from research.losses import last_token
from research.training.evaluate import evaluate


def test_the_test_split_is_judged_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = Split(DATA.val.inputs[:20], DATA.val.targets[:20])
    monkeypatch.setattr(fitting, "DATA", replace(DATA, test=test))
    state = fit(tmp_path / "run")
    assert state.progress.step == STEPS
    expected = evaluate(state.model, test, last_token, 20)
    assert state.progress.metrics["test/loss"] == pytest.approx(expected["val/loss"])
    assert state.progress.metrics["test/acc"] == expected["val/acc"]
    assert "test/loss" not in state.progress.best
    assert not any(name.startswith("test/") for line in read_metrics(tmp_path / "run") for name in line)
    assert dict(build_summary(state))["final test/loss"].startswith(f"{expected['val/loss']:.4f}")


def test_a_test_split_changes_no_bit_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit(tmp_path / "plain")
    monkeypatch.setattr(fitting, "DATA", replace(DATA, test=DATA.val))
    tested = fit(tmp_path / "tested")
    assert all((a == b).all() for a, b in zip(plain.model.parameters(), tested.model.parameters(), strict=True))
    assert "test/loss" not in plain.progress.metrics
