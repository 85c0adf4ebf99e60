"""Runs as trackers see them, and what they have written, read back by other programs' readers: step -> metric -> value."""

import csv
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fitting import make_state
from torch import nn

from research.data.modular import modular
from research.files.wandb_files import read_file
from research.run_dir import RunConfig
from research.tracking import sink
from research.tracking.history import read_records
from research.tracking.jsonl import Jsonl
from research.tracking.wandb import WandbSink
from research.training.state import State

Rows = dict[int, dict[str, float]]


def isolate_sinks(monkeypatch: pytest.MonkeyPatch, folder: Path, interval: float) -> None:
    """Use no login of this machine, let no server have been silent yet, and deliver every `interval` seconds."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setattr(sink, "BATCH_INTERVAL", interval)
    monkeypatch.setattr(sink, "silent_stores", set())


def read_metrics(folder: Path) -> Rows:
    """Return the rows of metrics.jsonl."""
    skipped = ("step", "seconds")
    return {
        record["step"]: {key: value for key, value in record.items() if key not in skipped and value is not None}
        for record in read_records(folder / "metrics.jsonl")
    }


def read_csv(folder: Path) -> Rows:
    """Return the rows of metrics.csv. Each step is there once, in order."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    return {
        int(row["step"]): {key: float(text) for key, text in row.items() if text and key not in ("step", "seconds")}
        for row in rows
    }


def read_tensorboard(folder: Path) -> Rows:
    """Return the scalars of the event files. Each step of a curve is there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    rows: Rows = {}
    for key in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(key)]
        assert max(Counter(step for step, _ in points).values()) == 1, key
        for step, value in points:
            rows.setdefault(step, {})[key] = value
    return dict(sorted(rows.items()))


def read_times(folder: Path) -> dict[int, float]:
    """Return the times of the points of train/loss in the event files, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.wall_time for event in events.Scalars("train/loss")}


def read_wandb(folder: Path) -> Rows:
    """Return the rows of all offline files of a run. Each step is there once."""
    rows: Rows = {}
    for record in read_wandb_records(folder):
        if record.WhichOneof("record_type") != "history":
            continue
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = int(row.pop("step"))
        assert step not in rows, f"step {step} is there twice"
        rows[step] = {key: value for key, value in row.items() if key != "seconds" and not key.startswith("_")}
    return rows


def read_wandb_records(folder: Path) -> list[Any]:
    """Return the records of a run's offline files, in order of time, parsed by wandb's own classes."""
    paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    return [record for path in paths for record in read_file(path)]


def make_run(tmp_path: Path, **more: Any) -> RunConfig:
    (folder := tmp_path / "study" / "run").mkdir(parents=True, exist_ok=True)
    config = {"lr": 0.1, "model": {"dim": 3, "name": "net"}, "out": "x", "trainer": {"guard": {"policy": "rollback"}}}
    return RunConfig("a run", "study", folder, config, [], {"model": "bitnet"}, **more)


def begin(tracker: Jsonl, run: RunConfig, step: int = 0) -> State:
    """Begin a run, or go on with it from a step."""
    state = make_state(nn.Linear(2, 2), data=modular(p=5), steps=100, batch_size=4)
    state.progress.step = state.first_step = step
    tracker.start(run)
    tracker.on_start(state)
    state.start_clock()
    return state


def log_until(tracker: Jsonl, state: State, step: int, factor: float = 1.0, every: int = 1) -> None:
    """Log each step: train/loss, which is not finite at step 5, and val/loss every third step."""
    while state.progress.step < step:
        state.advance()
        if state.progress.step % every:
            continue
        state.log({"train/loss": factor / state.progress.step if state.progress.step != 5 else float("inf")})
        if state.progress.step % 3 == 0:
            state.log({"val/loss": factor})
        tracker.on_step(state)


def wait_until_sent(tracker: Jsonl) -> None:
    for _ in range(400):
        if all(item.last_step == tracker.last_step and not item.records for item in tracker.deliveries):
            return
        time.sleep(0.02)
    raise AssertionError("the records were not taken")


def kill(tracker: Jsonl) -> None:
    """Let a tracker do nothing more, as a kill would; W&B's process ends by itself then."""
    for item in tracker.deliveries:
        item.over.set()
        item.finishing.set()
        item.thread.join()
        if isinstance(item.sink, WandbSink):
            item.sink.wandb_run.finish(exit_code=1)
    assert tracker.file
    tracker.file.close()


def assert_same(rows: Rows, folder: Path) -> None:
    """Assert that a reader found what metrics.jsonl has; TensorBoard has float32. What is not finite, some leave out."""
    expected = {step: row for step, row in read_metrics(folder).items() if row}
    found = {step: {key: value for key, value in row.items() if abs(value) < 1e30} for step, row in rows.items()}
    found = {step: row for step, row in found.items() if row}
    assert list(found) == list(expected)
    for step, row in expected.items():
        assert found[step] == pytest.approx(row, rel=1e-7), step
