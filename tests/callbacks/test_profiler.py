"""A trace of some steps, and the numbers of the machine: neither changes what is trained."""

import gzip
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from fitting import fit, make_state
from torch import nn

from research.callbacks import profiler
from research.callbacks.profiler import Profiler
from research.callbacks.system import System
from research.training.checkpoint import hash_weights


def read_traced_steps(path: Path) -> list[str]:
    """Return the steps of a trace, as the profiler numbers them."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted({event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")})


def test_a_trace_and_the_machine_change_no_bit_and_a_resumed_run_has_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"dropout": 0.1, "every": 10}
    plain = fit(tmp_path / "plain", steps=20, **settings)
    with caplog.at_level(logging.INFO, "research.callbacks.profiler"):
        traced = fit(tmp_path / "traced", Profiler(5, 1, 2), System(0.01), steps=20, **settings)
    assert hash_weights(plain.model) == hash_weights(traced.model)
    (path,) = (tmp_path / "traced" / "profile").iterdir()
    assert path.name == "trace_step-00000008.json.gz"
    assert read_traced_steps(path) == ["ProfilerStep#6", "ProfilerStep#7"]
    assert path.stat().st_size < 2_000_000
    assert "aten::" in caplog.text
    assert 0 < traced.progress.metrics["perf/memory_percent"] < 100
    assert traced.progress.metrics["perf/rss_mb"] > 50
    assert traced.progress.metrics["perf/cpu_percent"] >= 0
    for name in ("plain", "traced"):
        watchers = [Profiler(1, 1, 1), System(0.01)] if name == "traced" else []
        fit(tmp_path / name, *watchers, resume=tmp_path / name, steps=30, **settings)
    lines = [
        (tmp_path / name / "checkpoints" / "step-00000030" / "model.safetensors").read_bytes() for name in ("plain", "traced")
    ]
    assert lines[0] == lines[1]
    names = sorted(path.name for path in (tmp_path / "traced" / "profile").iterdir())
    assert names == ["trace_step-00000008.json.gz", "trace_step-00000023.json.gz"]


@pytest.mark.parametrize(
    ("wait", "active", "trace", "warning"),
    [(100, 3, 0, "nothing was traced in 4 steps"), (1, 9, 1, ""), (0, 1, 1, "")],
    ids=["too few steps", "a part", "the first step"],
)
def test_a_run_may_end_before_its_trace(
    wait: int, active: int, trace: int, warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "run", Profiler(wait, 1, active), steps=4)
    assert len(list((tmp_path / "run").glob("profile/*"))) == trace
    assert warning in caplog.text


def test_a_full_disk_costs_the_trace_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profiler, "export", fail)
    assert fit(tmp_path / "run", Profiler(0, 1, 1), steps=4).progress.step == 4
    assert "trace_step-00000002.json.gz was not written" in caplog.text


def test_no_step_waits_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> dict[str, float]:
        time.sleep(60)
        return {}

    monkeypatch.setattr("research.callbacks.system.make_reader", lambda device: hang)
    state, system = make_state(nn.Linear(2, 2)), System(0.01)
    begun = time.monotonic()
    system.on_start(state)
    time.sleep(0.2)
    system.on_gradients(state)
    system.on_end(state)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("settings", [{"wait": -1}, {"active": 0}, {"active": 51}, {"warmup": 0}])
def test_settings_of_the_profiler_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.profiler\.\w+ takes a whole number"):
        Profiler(**settings)
