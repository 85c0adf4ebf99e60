"""The grokking callback: its milestones agree with metrics.jsonl, also after a resume, and it changes no weight."""

import json
import math
import os
import shutil
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from program import ROOT, TINY, read_metrics, run, run_ranks
from torch import nn

from research.callbacks.checkpoint import Checkpoint
from research.callbacks.grokking import Grokking, Milestone, find_milestone
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim.schedules import constant
from research.run_dir import RunConfig
from research.tracking.jsonl import Jsonl
from research.training.checkpoint import hash_weights
from research.training.state import Callback, State
from research.training.trainer import Trainer

DATA = modular(p=7, train_fraction=0.8)  # 29 pairs, of which a few steps are enough for the other 7
STEPS, EVERY, HOLD = 100, 5, 3
PNG = b"\x89PNG"


def fit(folder: Path | None, *callbacks: Callback, resume: Path | None = None, lr: float = 1e-2, **settings: Any) -> State:
    torch.manual_seed(0)
    data, dropout = settings.pop("data", DATA), settings.pop("dropout", 0.0)
    model = Transformer(data.shape, 32, 1, 2, nn.Linear, dropout=dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, fused=True)
    own = {"steps": STEPS, "batch_size": 32, "eval_every": EVERY, "log_every": 1, "eval_train": True, "device": "cpu"}
    trainer, jsonl = Trainer(**own | settings), Jsonl()  # type: ignore[arg-type]
    if folder:
        folder.mkdir(exist_ok=True)
        jsonl.start(RunConfig("name", "study", folder, {}, [], {}))
    try:
        state = trainer.setup(model, optimizer, constant, last_token, data, [jsonl, *callbacks],
                              monitor="val/acc", folder=folder, resume=resume)  # fmt: skip
        return trainer.fit(state)
    finally:
        jsonl.finish("", {})


def read_grokking(folder: Path) -> dict[str, Any]:
    """Return grokking.json without the seconds."""
    facts = json.loads((folder / "grokking.json").read_text())
    assert facts.pop("seconds") > 0
    return dict(facts)


def scan_curve(curve: Iterable[tuple[int, float]], level: float, hold: int) -> Milestone:
    """Return what `find_milestone` returns, from one evaluation after the other."""
    first, held, lowest, row = None, None, None, list[int]()
    for step, value in curve:
        row = [*row, step] if value >= level else []
        first = step if row and first is None else first
        held = row[0] if len(row) == hold and held is None else held
        if first is not None and not math.isnan(value):
            lowest = value if lowest is None else min(value, lowest)
    return Milestone(first, held, lowest)


def recompute_grokking(folder: Path, steps: int) -> dict[str, Any]:
    """Return grokking.json as computed from metrics.jsonl."""
    milestones: dict[str, Any] = {}
    for level in (0.95, 0.99):
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            curve = [(line["step"], line[f"{split}/acc"]) for line in read_metrics(folder) if f"{split}/acc" in line]
            facts[split] = vars(scan_curve(curve, level, HOLD))
        both = [facts[split]["first"] for split in ("train", "val")]
        milestones[f"{level:.2f}"] = facts | {"delay": None if None in both else both[1] - both[0]}
    return milestones | {"steps": steps}


VALUES = st.sampled_from([0.0, 0.5, 0.9499999, 0.95, 0.96, 0.99, 1.0, math.nan])
CURVES = st.lists(st.tuples(st.integers(1, 40), VALUES), max_size=14).map(
    lambda pairs: [(sum(gap for gap, _ in pairs[: i + 1]), value) for i, (_, value) in enumerate(pairs)]
)


@given(CURVES, st.sampled_from([0.5, 0.95, 0.99, 1.0]), st.integers(1, 16))
def test_a_milestone_is_that_of_a_plain_scan(curve: list[tuple[int, float]], level: float, hold: int) -> None:
    """Also where `hold` is longer than the curve, and with accuracies that are NaN."""
    milestone = find_milestone(curve, level, hold)
    assert milestone == scan_curve(curve, level, hold)
    values = dict(curve)
    assert all(step is None or values[step] >= level for step in (milestone.first, milestone.held))
    assert hold <= len(curve) or milestone.held is None
    assert hold > 1 or milestone.held == milestone.first


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("full")
    return folder, fit(folder, Checkpoint(), make_grokking())


def make_grokking() -> Grokking:
    """Return a callback that ends the run 7 steps after 95 % was held."""
    return Grokking(every=10, hold=HOLD, end=0.95, after=7)


def test_milestones_agree_with_the_metrics(full_run: tuple[Path, State]) -> None:
    folder, state = full_run
    facts = read_grokking(folder)
    assert facts == recompute_grokking(folder, state.progress.step)
    assert facts["0.95"]["delay"] > 0, "this small run generalises after it has memorised"
    for percent, level in (("95", facts["0.95"]), ("99", facts["0.99"])):
        assert level["delay"] >= 0
        names = {f"train_{percent}": level["train"]["first"], f"val_{percent}": level["val"]["first"],
                 f"held_{percent}": level["val"]["held"], f"delay_{percent}": level["delay"]}  # fmt: skip
        assert {name: state.progress.metrics[f"grok/{name}"] for name in names} == names
        train_at, val_at = level["train"]["first"], level["val"]["first"]
        assert state.end_notes[f"grokking {percent}%"] == (
            f"train at step {train_at}, val at step {val_at}, {level['delay']} steps later; "
            f"held from {level['val']['held']}, lowest since {level['val']['lowest']:.3f}"
        )
    logged = {line["grok/held_95"] for line in read_metrics(folder) if "grok/held_95" in line}
    assert logged == {facts["0.95"]["val"]["held"]}, "trackers have it too"
    assert (folder / "plots" / "grokking.png").read_bytes().startswith(PNG)


def test_a_measurement_is_logged_at_its_own_step(full_run: tuple[Path, State]) -> None:
    """The first, for the picture, is at step 1 and not logged."""
    folder, state = full_run
    steps = [line["step"] for line in read_metrics(folder) if "grok/weight_norm" in line]
    assert steps == [line["step"] for line in read_metrics(folder) if "grok/embedding_rank" in line]
    assert steps == list(range(10, state.progress.step + 1, 10))
    watched = state.stateful["Grokking 0"]
    assert isinstance(watched, Grokking)
    assert [step for step, _, _ in watched.norms] == [1, *steps]
    assert list(watched.spectra) == [1, steps[-1]]


def test_the_run_ends_some_steps_after_the_accuracy_was_held(full_run: tuple[Path, State]) -> None:
    """Counted from the last evaluation of the row; without such a row the run does not end early."""
    folder, state = full_run
    held = read_grokking(folder)["0.95"]["val"]["held"]
    assert state.progress.step == held + (HOLD - 1) * EVERY + 7
    assert state.stop == f"val/acc stayed at 0.95 or above for {HOLD} evaluations"
    assert "val/acc" in state.logged, "its last step is evaluated"
    again = fit(None, Grokking(hold=1, end=0.95, after=1))
    assert again.progress.step == read_grokking(folder)["0.95"]["val"]["first"] + 1
    for callback in (Grokking(hold=HOLD, end=0.95, after=8), Grokking(hold=99, end=0.95), Grokking(hold=1)):
        on = fit(None, callback, steps=state.progress.step)
        assert (on.progress.step, on.stop) == (state.progress.step, "")


def test_a_milestone_of_the_last_evaluation_is_logged(full_run: tuple[Path, State]) -> None:
    first = read_grokking(full_run[0])["0.95"]["val"]["first"]
    assert fit(None, Grokking(), steps=first).progress.metrics["grok/val_95"] == first


def test_a_level_that_is_not_reached_is_noted_and_not_logged(tmp_path: Path) -> None:
    """In a run that has only memorised, and in one that has not."""
    data = replace(DATA, val=replace(DATA.val, targets=(DATA.val.targets + 1) % 7))  # all wrong
    state = fit(tmp_path, Grokking(hold=HOLD), data=data, steps=60)
    facts = read_grokking(tmp_path)
    assert facts == recompute_grokking(tmp_path, 60)
    first = facts["0.95"]["train"]["first"]
    assert state.end_notes["grokking 95%"] == f"train at step {first}, val not reached in 60"
    assert [name for name in state.progress.metrics if name.startswith("grok/") and name.endswith("95")] == ["grok/train_95"]
    state = fit(tmp_path, Grokking(hold=HOLD, end=0.95), lr=1e-9, steps=10)
    assert read_grokking(tmp_path)["0.99"] == {split: vars(Milestone(None, None, None)) for split in ("train", "val")} | {
        "delay": None
    }
    assert set(state.end_notes.values()) == {"train not reached in 10, val not reached in 10"}
    assert not [name for name in state.progress.metrics if name.startswith("grok/") and name.endswith(("95", "99"))]


def test_training_accuracy_that_was_not_evaluated_has_no_milestone(full_run: tuple[Path, State]) -> None:
    state = fit(None, Grokking(hold=HOLD), eval_train=False, steps=60)
    first = read_grokking(full_run[0])["0.95"]["val"]["first"]
    assert state.progress.metrics["grok/val_95"] == first
    assert not {"train/acc", "grok/train_95", "grok/delay_95"} & set(state.progress.metrics)
    assert state.end_notes["grokking 95%"].startswith(f"val at step {first}; ")


class Kill(Callback):
    """Send a signal to this process during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_gradients(self, state: State) -> None:
        if state.progress.step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class NotesRecorder(Callback):
    """Record the notes at the time at which the console prints them, before the grokking callback ends."""

    def on_end(self, state: State) -> None:
        self.notes = dict(state.end_notes)


@pytest.mark.parametrize("back", [50, 7, 0, None])
def test_a_resumed_run_reports_the_same(tmp_path: Path, full_run: tuple[Path, State], back: int | None) -> None:
    """Interrupted before and in the evaluation that completed the row, in the last step, and not at all."""
    (folder, state), resumed = full_run, tmp_path / "run"
    if back is None:
        shutil.copytree(folder, resumed)
    else:
        stopped = fit(resumed, Checkpoint(), make_grokking(), Kill(state.progress.step - back))
        assert (stopped.progress.step, stopped.signum) == (state.progress.step - back, signal.SIGTERM)
    end = fit(resumed, Checkpoint(), recorder := NotesRecorder(), make_grokking(), resume=resumed)
    assert (end.progress.step, end.stop, recorder.notes) == (state.progress.step, state.stop, state.end_notes)
    metrics = [{name: value for name, value in s.progress.metrics.items() if "perf/" not in name} for s in (end, state)]
    assert metrics[0] == metrics[1]
    assert (read_grokking(resumed), read_metrics(resumed)) == (read_grokking(folder), read_metrics(folder))
    assert hash_weights(end.model) == hash_weights(state.model)


def test_a_callback_added_at_a_resume_measures_from_there(tmp_path: Path) -> None:
    fit(tmp_path, Checkpoint(), steps=7)
    late = Grokking(every=1000)
    assert fit(tmp_path, Checkpoint(), late, steps=12, resume=tmp_path).progress.step == 12
    assert ([step for step, _, _ in late.norms], [point[0] for point in late.evaluations]) == ([8], [10, 12])
    assert (tmp_path / "plots" / "grokking.png").read_bytes().startswith(PNG)


def test_measuring_changes_no_weight() -> None:
    plain, watched = (
        fit(None, *callbacks, eval_train=bool(callbacks), dropout=0.1, steps=30) for callbacks in ((), (Grokking(every=1),))
    )
    assert "train/acc" in watched.progress.metrics
    assert hash_weights(plain.model) == hash_weights(watched.model)


def test_the_loop_reports_weights_that_are_not_finite() -> None:
    class Break(Callback):
        def on_start(self, state: State) -> None:
            nn.init.constant_(next(state.model.parameters()), math.nan)

    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        fit(None, Break(), Grokking(every=1))


def test_the_command_line_writes_grokking_files_with_one_and_two_processes(tmp_path: Path) -> None:
    """With 50 training samples in batches of 7, the last batch has one sample: one process has none."""
    overrides = [*TINY, "model=decoder", "callbacks=grokking", "tracker=jsonl", "batch_size=7", "trainer.steps=9"]
    program, own = [str(ROOT / "train.py"), *overrides, f"out={tmp_path / 'out'}"], {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = [*run_ranks([*program, "name=both"], tmp_path, own), run([*program, "name=alone"], tmp_path, own)]
    assert [done.returncode for done in ended] == [0, 0, 0], "".join(done.stderr for done in ended)
    assert ["grokking 95%" in done.stdout for done in ended] == [True, False, True]
    (line,) = [line for line in ended[0].stdout.splitlines() if line.startswith("grokking 95%")]
    assert line.split(maxsplit=2)[2] == "train not reached in 9, val not reached in 9"
    curves = []
    for name in ("alone", "both"):
        (folder,) = (tmp_path / "out" / name).iterdir()
        assert read_grokking(folder) == recompute_grokking(folder, 9)
        assert (folder / "plots" / "grokking.png").read_bytes().startswith(PNG)
        curves.append([(line["train/acc"], line["val/acc"]) for line in read_metrics(folder)])
    assert len(curves[0]) == 9
    assert curves[0] == curves[1]
