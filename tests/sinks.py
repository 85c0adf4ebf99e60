"""What trackers have written, read back by other programs' readers: step -> metric -> value."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

from research.tracking.history import read_records
from research.tracking.wandb import read_file

Rows = dict[int, dict[str, float]]


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
