"""Row 4: which samples come next depends on (seed, samples consumed) alone: a resumed run repeats and skips none.

Whatever changes between two parts of a run (batch size, micro-batches, processes), the samples are those of one stream: epoch
after epoch, each sample once an epoch.
"""

import json
import os
import shutil
from itertools import count, islice
from pathlib import Path
from typing import Any

import program
import pytest
import torch
from fitting import DATA, fit, read_metrics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from research.models.transformer import Transformer
from research.run_dir import list_checkpoints
from research.seeding import ROLLBACK_STREAM, fold_in, permutation
from research.signals import Stopped
from research.training.checkpoint import hash_weights
from research.training.manifest import Manifest
from research.training.nonfinite import Guard
from research.training.state import Callback, State

NUM_SAMPLES = len(DATA.train)
Part = tuple[int, int, int]  # steps, batch size, micro-batches
Sample = tuple[int, int]  # the two operands tell a sample from all others

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, "TESTS")
from fitting import fit
from research.models.transformer import Transformer
from research.training import distributed

folder, steps, batch_size, grad_accum = Path(sys.argv[1]), *map(int, sys.argv[2:])
seen, forward = [], Transformer.forward
def record(self, tokens, caches=None):
    if self.training:
        seen.extend(tokens[:, [0, 2]].tolist())
    return forward(self, tokens, caches)
Transformer.forward = record
resume = folder if (folder / "checkpoints").exists() else None
state = fit(folder, resume=resume, steps=steps, batch_size=batch_size, grad_accum=grad_accum)
(folder / f"seen-{distributed.rank()}.json").write_text(json.dumps(seen))
"""


def take_from_stream(start: int, stop: int, seed: int = 0) -> list[Sample]:
    """Samples number start .. stop-1: one permutation of all samples after the other."""
    stream = (int(index) for epoch in count() for index in permutation(seed, epoch, NUM_SAMPLES))
    return [read_sample(DATA.train.inputs[index]) for index in islice(stream, start, stop)]


def read_sample(tokens: Tensor) -> Sample:
    return int(tokens[0]), int(tokens[2])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """The training samples in the order in which the model got them."""
    samples: list[Sample] = []
    forward = Transformer.forward

    def record(self: Transformer, tokens: Tensor, caches: Any = None) -> Tensor:
        if self.training:
            samples.extend(map(read_sample, tokens))
        return forward(self, tokens, caches)

    monkeypatch.setattr(Transformer, "forward", record)
    return samples


def fit_parts(folder: Path, parts: list[Part]) -> State:
    done, resume = 0, None
    for steps, batch_size, grad_accum in parts:
        done += steps
        state = fit(folder, resume=resume, steps=done, batch_size=batch_size, grad_accum=grad_accum)
        resume = folder
    return state


def check(seen: list[Sample], parts: list[Part]) -> None:
    total = sum(steps * batch_size for steps, batch_size, _ in parts)
    assert seen == take_from_stream(0, total)
    for start in range(0, total - NUM_SAMPLES + 1, NUM_SAMPLES):
        assert len(set(seen[start : start + NUM_SAMPLES])) == NUM_SAMPLES, "each sample once an epoch"


@pytest.mark.parametrize(
    "parts",
    [
        [(5, 8, 1), (5, 12, 1)],
        [(5, 8, 1), (5, 4, 1)],
        [(7, 8, 1), (3, NUM_SAMPLES, 1)],
        [(2, 3 * NUM_SAMPLES, 1), (40, 3, 1)],
        [(5, 8, 1), (5, 8, 4), (5, 8, 2)],
        [(5, 8, 2), (5, 12, 3), (30, 1, 1), (2, 16, 16)],
    ],
    ids=str,
)
def test_a_resumed_run_goes_on_in_the_stream(tmp_path: Path, seen: list[Sample], parts: list[Part]) -> None:
    state = fit_parts(tmp_path, parts)
    check(seen, parts)
    assert state.progress.samples == len(seen)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 4)).filter(lambda part: part[2] <= part[1]),
        min_size=2,
        max_size=4,
    )
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_parts_make_one_stream(tmp_path_factory: pytest.TempPathFactory, seen: list[Sample], parts: list[Part]) -> None:
    seen.clear()
    fit_parts(tmp_path_factory.mktemp("run"), parts)
    check(seen, parts)


class Stop(Callback):
    """A signal that comes in a step: its evaluation is left to the resumed run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_gradients(self, state: State) -> None:
        if state.progress.step + 1 == self.step:
            state.stop = "enough"

    def on_step(self, state: State) -> None:
        if state.progress.step == self.step:
            raise Stopped(15)


def test_a_part_that_a_signal_ends_counts_what_it_consumed(tmp_path: Path, seen: list[Sample]) -> None:
    fit(tmp_path, Stop(7), batch_size=8)
    fit(tmp_path, resume=tmp_path, batch_size=20, steps=12)
    check(seen, [(7, 8, 1), (5, 20, 1)])


class Overflow(Callback):
    """Makes the gradient of some steps infinite."""

    def __init__(self, *steps: int) -> None:
        self.steps = [*steps]

    def on_gradients(self, state: State) -> None:
        if state.progress.step + 1 in self.steps:
            self.steps.remove(state.progress.step + 1)
            state.progress.grad_norm = torch.tensor(torch.inf)


def test_an_update_that_is_left_out_has_consumed_its_samples(tmp_path: Path, seen: list[Sample]) -> None:
    fit(tmp_path, Overflow(3, 6), batch_size=8, steps=6, guard=Guard(policy="skip"))
    fit(tmp_path, resume=tmp_path, batch_size=10, steps=10)
    check(seen, [(6, 8, 1), (4, 10, 1)])


def test_a_run_that_went_back_goes_on_from_the_samples_of_its_checkpoint(tmp_path: Path, seen: list[Sample]) -> None:
    """In another order, and still a function of what was consumed: a part with another batch size goes on in it."""
    state = fit(tmp_path, Overflow(6), batch_size=8, steps=8, every=4, guard=Guard(policy="rollback"))
    assert (state.progress.rollbacks, state.progress.samples) == (1, 64)
    fit(tmp_path, resume=tmp_path, batch_size=4, steps=12)
    assert seen[: 6 * 8] == take_from_stream(0, 6 * 8)
    assert seen[6 * 8 :] == take_from_stream(4 * 8, 8 * 8 + 4 * 4, seed=fold_in(0, ROLLBACK_STREAM, 1))


def test_out_of_memory_changes_no_sample(tmp_path: Path, seen: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches are halved; a step is repeated whole, and what follows is as before."""
    forward, failed = Transformer.forward, []

    def fail_once(self: Transformer, tokens: Tensor, caches: Any = None) -> Tensor:
        if self.training and len(tokens) > 4 and len(seen) == 16:
            failed.append(len(tokens))
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, tokens, caches)

    monkeypatch.setattr(Transformer, "forward", fail_once)
    state = fit(tmp_path, batch_size=8, steps=5)
    assert (failed, state.progress.oom_halvings) == ([8], 1)
    fit(tmp_path, resume=tmp_path, batch_size=6, steps=9)
    check(seen, [(5, 8, 2), (4, 6, 1)])


def test_an_unchanged_batch_size_has_the_same_bits(tmp_path: Path) -> None:
    parts, whole = fit_parts(tmp_path / "parts", [(5, 8, 2), (4, 8, 2)]), fit(tmp_path / "whole", steps=9, grad_accum=2)
    again = fit(tmp_path / "again", steps=9, grad_accum=2)
    assert hash_weights(whole.model) == hash_weights(again.model)
    assert parts.progress.samples == whole.progress.samples == 72


def fit_in_processes(tmp_path: Path, folder: Path, world_size: int, *numbers: int) -> list[list[Sample]]:
    """The samples of each process of one part."""
    script = tmp_path / "part.py"
    script.write_text(SCRIPT.replace("TESTS", str(program.ROOT / "tests")))
    argv, environment = [str(script), str(folder), *map(str, numbers)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = program.run_ranks(argv, tmp_path, environment) if world_size == 2 else [program.run(argv, tmp_path, environment)]
    assert not any(process.returncode for process in done), "".join(process.stdout + process.stderr for process in done)
    return [[(a, b) for a, b in json.loads((folder / f"seen-{rank}.json").read_text())] for rank in range(world_size)]


@pytest.mark.slow  # processes that import all anew
def test_other_processes_share_the_same_samples(tmp_path: Path) -> None:
    """Two, then one with another batch size, then two with micro-batches: each takes its part of the same step."""
    folder, consumed, steps = tmp_path / "run", 0, 0
    for world_size, more, batch_size, grad_accum in ((2, 3, 8, 1), (1, 3, 6, 2), (2, 4, 12, 3)):
        steps += more
        parts = fit_in_processes(tmp_path, folder, world_size, steps, batch_size, grad_accum)
        assert {len(part) for part in parts} == {more * batch_size // world_size}
        for step in range(more):
            share = batch_size // world_size
            batch = [sample for part in parts for sample in part[step * share : (step + 1) * share]]
            assert sorted(batch) == sorted(take_from_stream(consumed, consumed + batch_size))
            consumed += batch_size
    ((_, newest), *_) = list_checkpoints(folder).items()
    assert Manifest.from_json((newest / "manifest.json").read_text()).samples == consumed == 90


def test_a_run_of_version_1_goes_on_from_the_samples_that_it_consumed(tmp_path: Path) -> None:
    """It counted steps alone: its configuration has the batch size of then."""
    folder = tmp_path / "digits"
    shutil.copytree(program.ROOT / "tests/fixtures/v1/digits", folder)
    own = "model=bitmlp data=digits optim=adamw model.dim=16 model.depth=1 batch_size=4 steps=25 eval_every=5 tracker=jsonl"
    program.train(tmp_path, *own.split(), f"resume={folder}")
    ((step, newest), *_) = list_checkpoints(folder).items()
    assert step == 25
    assert Manifest.from_json((newest / "manifest.json").read_text()).samples == 20 * 16 + 5 * 4


def test_what_was_logged_is_logged_once(tmp_path: Path) -> None:
    fit_parts(tmp_path, [(6, 8, 1), (6, 4, 2)])
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 6, 7, 9, 12]
