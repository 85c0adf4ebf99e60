"""Trackers beside metrics.jsonl: the same numbers, each step once, read back by other programs' readers."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file, save_file
from sinks import (
    Rows,
    assert_same,
    begin,
    isolate_sinks,
    log_until,
    make_run,
    read_csv,
    read_metrics,
    read_tensorboard,
    read_times,
    read_wandb,
    read_wandb_records,
    wait_until_sent,
)

from research import run_dir
from research.run_dir import ROOT, Summary, write_json
from research.tracking import history, sink
from research.tracking import wandb as wandb_tracker
from research.tracking.csv import CsvSink
from research.tracking.jsonl import FAILED, FINISHED, Jsonl
from research.tracking.sink import Record, Sink, describe_weights, open_weights, read_history
from research.tracking.tensorboard import TensorBoardSink
from research.tracking.wandb import WandbSink

Reader = Callable[[Path], Rows]
SINKS: dict[str, tuple[type[Sink], Reader]] = {
    "csv": (CsvSink, read_csv),
    "tensorboard": (TensorBoardSink, read_tensorboard),
    "wandb": (WandbSink, read_wandb),
}
OWN_MARKERS = {name: f".{name}_unsent" for name in SINKS}


@pytest.fixture(autouse=True)
def stay_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate_sinks(monkeypatch, tmp_path, interval=0.05)


class Slow(Sink):
    """A sink that blocks, or raises, until it is let go."""

    name, title, patience = "slow", "the slow one", 0.4

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.free, self.steps = error, threading.Event(), list[int]()

    def log(self, records: Sequence[Record]) -> None:
        if self.error and not self.free.is_set():
            raise self.error
        assert self.free.wait(60)
        self.steps += [record.step for record in records]


FAILURES = {
    "blocks": None,
    "is away": ConnectionError("nobody there"),
    "has a full disk": OSError(28, "No space left on device"),
    "has a bug": KeyError("x"),
    "exits": SystemExit("it ends its thread, without a word"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_sink_that_fails_stops_neither_the_run_nor_another_sink(
    failure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """No step waits, one warning is logged, one is printed at the end, and the next start sends the rest."""
    error = FAILURES[failure]
    run, slow = make_run(tmp_path), Slow(error)
    tracker = Jsonl({"slow": slow, "csv": CsvSink()})
    state, slowest = begin(tracker, run), 0.0
    for step in range(1, 100):
        begun = time.perf_counter()
        log_until(tracker, state, step)
        slowest = max(slowest, time.perf_counter() - begun)
        time.sleep(0.003)
    begun = time.monotonic()
    tracker.finish(FINISHED, {"steps": 99})
    assert slowest < 0.2
    assert time.monotonic() - begun < 3
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (error is not None)
    message = capsys.readouterr().err
    assert message.count("did not take all of this run") == 1
    assert ("no answer" if error is None else str(error)) in message
    assert_same(read_csv(run.folder), run.folder)
    assert [path.name for path in run.folder.glob(".*_unsent")] == [".slow_unsent"]
    slow.free.set()  # the thread ends
    Summary(FINISHED, steps=99).write(run.folder)
    later = Slow()
    later.free.set()
    Jsonl({"slow": later, "csv": CsvSink()}).send_rest(run)
    assert later.steps == list(range(1, 100))
    assert not list(run.folder.glob(".*_unsent"))


class Own(Sink):
    """A sink of one's own, which leaves nothing in a run folder."""

    name = title = "own"

    def __init__(self) -> None:
        self.steps = list[int]()

    def log(self, records: Sequence[Record]) -> None:
        self.steps += [record.step for record in records]


def test_a_sink_of_ones_own_gets_the_history_of_a_finished_run(tmp_path: Path) -> None:
    """Once, where it is added later; and again after a process that went on without it."""
    for first, end in ((0, 9), (9, 12)):
        run, tracker = make_run(tmp_path, resumed=first > 0), Jsonl()
        tracker.count = first
        log_until(tracker, begin(tracker, run, first), end)
        tracker.finish(FINISHED, {"steps": end})
        Summary(FINISHED, steps=end).write(run.folder)
        for expected in (list(range(1, end + 1)), []):
            own = Own()
            Jsonl({"own": own}).send_rest(run)
            assert own.steps == expected


class Lazy(Sink):
    """A sink that takes longer for a call than a run for many steps, and fails at the second one."""

    name, title, patience, max_numbers = "lazy", "the lazy one", 0.3, 7

    def __init__(self) -> None:
        self.steps, self.calls = list[int](), 0

    def rewind(self, step: int) -> None:
        del self.steps[bisect_right(self.steps, step) :]

    def log(self, records: Sequence[Record]) -> None:
        time.sleep(0.05)
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("try again")
        self.steps += [record.step for record in records]


def test_a_sink_that_is_slow_gets_each_step_once(tmp_path: Path) -> None:
    """Its end takes several times its patience, but each call is an answer; a rollback comes while it is behind."""
    run, lazy = make_run(tmp_path), Lazy()
    tracker = Jsonl({"lazy": lazy})
    state = begin(tracker, run)
    log_until(tracker, state, 60)
    state.progress.step = 40
    log_until(tracker, state, 90)
    assert len(lazy.steps) < 40
    tracker.finish(FINISHED, {"steps": 90})
    assert lazy.steps == list(range(1, 91))
    assert not list(run.folder.glob(".*_unsent"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(delivery: sink.Delivery) -> Any:
        sys.exit()

    monkeypatch.setattr(sink.Delivery, "_take_batch", die)
    run, slow = make_run(tmp_path), Slow()
    tracker = Jsonl({"slow": slow})
    log_until(tracker, begin(tracker, run), 3)
    tracker.finish(FINISHED, {"steps": 3})
    assert "did not take all of this run" in capsys.readouterr().err
    assert (run.folder / ".slow_unsent").exists()


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_a_disk_that_was_full_for_a_while_loses_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails after a part has been written."""
    kind, read = SINKS[name]
    run, tracker = make_run(tmp_path), Jsonl({name: kind()})
    state = begin(tracker, run)
    log_until(tracker, state, 4)
    wait_until_sent(tracker)
    path, is_full = next(run.folder.glob("**/metrics.csv" if name == "csv" else "tensorboard/*")), threading.Event()
    is_full.set()
    open_file = Path.open

    def fail(self: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        file = open_file(self, mode, *arguments, **settings)
        if self == path and is_full.is_set() and "+" in mode:
            file.seek(0, os.SEEK_END)
            file.write("half" if name == "csv" else b"half")
            file.close()
            raise OSError(28, "No space left on device")
        return file

    monkeypatch.setattr(Path, "open", fail)
    log_until(tracker, state, 9)
    time.sleep(0.5)
    is_full.clear()
    tracker.finish(FINISHED, {"steps": 9})
    assert_same(read(run.folder), run.folder)


def test_what_a_run_leaves_in_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name, project, group and settings, the numbers that it ends with, the best weights where that is set."""
    run = make_run(tmp_path, sweep_folder=tmp_path / "study" / "sweep_1", in_sweep=False)
    write_checkpoint(run.folder, 2)
    tracker = Jsonl({"wandb": WandbSink(log_weights=True)})
    state = begin(tracker, run)
    log_until(tracker, state, 3)
    state.progress.best = {"step": 2, "val/acc": 0.5}
    tracker.finish(FINISHED, {"steps": 3, "best": state.progress.best, "wall_s": 1.5})
    assert f"wandb sync {run.folder}/wandb/offline-run-" in capsys.readouterr().out
    records = read_wandb_records(run.folder)
    (begun,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.display_name, begun.run_group) == ("study", "a run", "study sweep_1")
    config = {item.key: item.value_json for item in begun.config.update}
    assert config["lr"] == "0.1"
    assert json.loads(config["model"]) == {"dim": 3, "name": "net"}
    summary = {
        item.key: item.value_json
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert (summary["best.val_acc"], summary["status"], summary["system/wall_s"]) == ("0.5", '"FINISHED"', "1.5")
    (artifact,) = (record.artifact for record in records if record.WhichOneof("record_type") == "artifact")
    (entry,) = artifact.manifest.contents
    assert (artifact.type, entry.path) == ("model", "model.safetensors")
    assert load_file(entry.local_path)["w"].tolist() == [1.0]
    assert json.loads(artifact.metadata) | {"description": artifact.description} == describe_weights({}, 2, False)
    assert run_dir.find_link(run.folder) is None, "a run folder with links is refused"


def write_checkpoint(folder: Path, step: int, **averages: float) -> None:
    """Write the weights of a checkpoint, w and b, and their averages."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    save_file({"w": torch.ones(1), "b": torch.zeros(1)}, path / "model.safetensors")
    if averages:
        save_file({name: torch.full((1,), value) for name, value in averages.items()}, path / "average.safetensors")


BASE = {"finetune": {"_target_": "research.finetune.inside", "base": "/a/run", "digest": "0a1b"}}


@pytest.mark.parametrize(
    ("averages", "config", "weights", "words"),
    [
        ({}, {}, [1.0, 0.0], "the weights of step 3, as they were evaluated"),
        ({"w": 0.5}, {}, [0.5, 0.0], "the averaged weights of step 3, as they were evaluated"),
        ({}, BASE, [1.0, 0.0], "adapters alone (finetune=inside), beside the base /a/run with the digest 0a1b"),
        (
            {"w": 0.5},
            {"finetune": {"_target_": "research.finetune.full.full", "base": "/a/run"}},
            [0.5, 0.0],
            "step 3, as they were",
        ),
        (
            {},
            {"finetune": BASE["finetune"] | {"base": None}, "model": {"folder": "/hub"}},
            [1.0, 0.0],
            "the base /hub with the digest",
        ),
    ],
)
def test_the_best_weights_are_what_was_evaluated(
    averages: dict[str, float], config: dict[str, Any], weights: list[float], words: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path)
    write_checkpoint(run.folder, 3, **averages)
    with open_weights(replace(run, config=config), 3) as best:
        assert best
        path, facts = best
        tensors = load_file(path)
        assert (path.name, [tensors[name].item() for name in "wb"]) == ("model.safetensors", weights)
    assert words in facts["description"]
    assert (facts["averaged"], facts.get("base_digest")) == (
        bool(averages),
        "0a1b" if config.get("finetune", {}).get("digest") else None,
    )
    with open_weights(run, 4) as best:
        assert best is None


def test_points_keep_their_times(tmp_path: Path) -> None:
    """The history that a later process sends is as old as the file says; its last line is as old as the file."""
    run, first = make_run(tmp_path), Jsonl()
    log_until(first, begin(first, run), 4)
    first.finish(FINISHED, {"steps": 4})
    path = run.folder / "metrics.jsonl"
    lines = list(history.read_records(path))
    path.write_text("".join(history.format_line({**line, "seconds": 10.0 * line["step"]}) for line in lines))
    os.utime(path, (1e9, 1e9))
    assert [record.timestamp / 1000 - 1e9 for record in read_history(path)] == [-30, -20, -10, 0]
    again = Jsonl({"tensorboard": TensorBoardSink()})
    again.count, begun = 4, time.time()
    log_until(again, begin(again, replace(run, resumed=True), 4), 5)
    again.finish(FINISHED, {"steps": 5})
    times = read_times(run.folder)
    assert [times[step] - 1e9 for step in (1, 2, 3, 4)] == [-30, -20, -10, 0]
    assert times[5] == pytest.approx(begun, abs=60)


def test_a_copied_folder_is_a_run_of_its_own_in_wandb(tmp_path: Path) -> None:
    run, tracker = make_run(tmp_path), Jsonl({"wandb": WandbSink()})
    log_until(tracker, begin(tracker, run), 3)
    tracker.finish(FINISHED, {"steps": 3})
    shutil.copytree(run.folder, copy := tmp_path / "copy")
    again = Jsonl({"wandb": WandbSink()})
    again.count = 3
    log_until(again, begin(again, replace(run, folder=copy, resumed=True), 3), 5)
    again.finish(FINISHED, {"steps": 5})
    ids = [json.loads((folder / "wandb" / "run.json").read_text())["id"] for folder in (run.folder, copy)]
    assert ids[0] != ids[1]
    rows = [path for path in copy.glob("wandb/offline-run-*") if path.name.endswith(ids[1])]
    assert len(rows) == 1


def test_a_server_of_wandb_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes the connection, and then is silent: the run is kept in files, also one that was on line before."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setitem(wandb_tracker.SETTINGS, "init_timeout", 1.0)
        run, tracker = make_run(tmp_path), Jsonl({"wandb": WandbSink()})
        (run.folder / "wandb").mkdir()
        write_json(run.folder / "wandb" / "run.json", {"id": "0123abcd", "folder": str(run.folder)})
        wandb.teardown()  # its library looks up the address once
        begun = time.monotonic()
        log_until(tracker, begin(tracker, run), 5)
        assert time.monotonic() - begun < 5
        tracker.finish(FINISHED, {"steps": 5})
    assert time.monotonic() - begun < 15
    assert_same(read_wandb(run.folder), run.folder)


def test_a_failed_run_ends_as_such_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    run, tracker = make_run(tmp_path), Jsonl({"tensorboard": TensorBoardSink()})
    log_until(tracker, begin(tracker, run), 2)
    tracker.finish(FAILED, {"error": "ValueError: too bad"})
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    stored = {
        key: plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
        for key, metadata in events.summary_metadata.items()
        if key.startswith("_hparams_/")
    }
    assert stored["_hparams_/session_end_info"].session_end_info.status == api_pb2.STATUS_FAILURE
    hparams = stored["_hparams_/session_start_info"].session_start_info.hparams
    assert (hparams["lr"].number_value, hparams["model.name"].string_value) == (0.1, "net")


@pytest.mark.slow
def test_all_trackers_agree_after_a_kill(tmp_path: Path) -> None:
    """A real run is killed between two checkpoints, and goes on: each step once in each of them."""
    settings = ["steps=2000", "eval_every=100", "model.dim=16", "model.heads=2", "data.p=7", "batch_size=4"]
    more = ["trainer.device=cpu", "callbacks.checkpoint.every=200", f"out={tmp_path}", "tracker=[csv,tensorboard,wandb]"]
    command = [sys.executable, str(ROOT / "train.py"), *settings, *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (list(tmp_path.glob("modular/*/checkpoints/step-00000400"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (folder,) = tmp_path.glob("modular/*")
    done = subprocess.run([*command, f"resume={folder}"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(read_metrics(folder)) == 200
    for read in (read_csv, read_tensorboard, read_wandb):
        rows = {step: {k: v for k, v in row.items() if "perf/" not in k} for step, row in read(folder).items()}
        expected = read_metrics(folder)
        assert rows.keys() == expected.keys()
        for step, row in rows.items():
            assert row == pytest.approx({k: v for k, v in expected[step].items() if "perf/" not in k}, rel=1e-6)
