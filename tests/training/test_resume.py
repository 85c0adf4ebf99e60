"""Wherever a run ends, it goes on to the bits of the run that was never interrupted. In one process, without Hydra."""

import errno
import math
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting import DATA, EMA, EPOCH, STEPS, fit, read_metrics
from torch import Tensor

from research.callbacks.early_stop import EarlyStop
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.lowrank import add_gains, add_low_rank
from research.optim import grokfast
from research.optim.schedules import cosine
from research.run_dir import list_checkpoints
from research.signals import Watch
from research.training import checkpoint
from research.training.checkpoint import hash_weights
from research.training.nonfinite import Guard
from research.training.state import Callback, State
from research.training.trainer import Trainer

MA = partial(grokfast.ma, window=5)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.2},
    "accumulation": {"dropout": 0.1, "grad_accum": 4},
    "average": {"dropout": 0.1, "ema": 0.9},
    "window": {"dropout": 0.1, "filter": MA},
    "switched": {"filter": partial(grokfast.ema, start_when=7, stop_when=19, adapt=0.5, clip_norm=0.5)},
    "by metric": {"filter": partial(grokfast.ema, start_when="val/acc:0.02", stop_when="train/loss:2.3")},
    "evaluations": {"dropout": 0.1, "eval_every": 1},
    "bf16": {"dropout": 0.1, "precision": "bf16"},
    "fp16": {"dropout": 0.1, "precision": "fp16"},
    "background": {"dropout": 0.1, "background": True},
    "health": {"dropout": 0.1, "health": True},
    "recomputed": {"dropout": 0.2, "checkpoint_activations": True},
    "low rank": {"dropout": 0.1, "ema": 0.9, "finetune": partial(add_low_rank, rank=2, alpha=4.0, include=["*"], exclude=[])},
    "gains": {"dropout": 0.1, "grad_accum": 4, "finetune": add_gains},
}


class Kill(Callback):
    """Sends a signal to this process while a step is under way."""

    def __init__(self, step: int, signum: int = signal.SIGTERM) -> None:
        self.step, self.signum = step, signum

    def on_gradients(self, state: State) -> None:
        if state.progress.step + 1 == self.step:
            os.kill(os.getpid(), self.signum)


FullRun = Callable[[str], tuple[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> FullRun:
    """The weights and the story of a case, never interrupted."""

    @cache
    def run_case(case: str) -> tuple[str, list[dict[str, Any]]]:
        folder = tmp_path_factory.mktemp(case)
        return hash_weights(fit(folder, **CASES[case]).model), read_metrics(folder)

    return run_case


@pytest.mark.parametrize("stops", [(1,), (9,), (EPOCH,), (STEPS - 1,), (4, 17)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_end_is_the_same(tmp_path: Path, full_run: FullRun, case: str, stops: tuple[int, ...]) -> None:
    """Step 1, inside an epoch, at its end, before the last step, and twice; the metrics come once each, too."""
    resume = None
    for stop in stops:
        state = fit(tmp_path, Kill(stop), resume=resume, **CASES[case])
        assert (state.progress.step, state.signum) == (stop, signal.SIGTERM)
        resume = tmp_path
    torch.rand(99)  # the process that goes on has another past
    end = fit(tmp_path, resume=resume, **CASES[case])
    assert end.first_step == stops[-1]
    weights, story = full_run(case)
    assert read_metrics(tmp_path) == story, "the first line that differs says where"
    assert hash_weights(end.model) == weights


def test_the_last_step_can_be_gone_on_from(tmp_path: Path) -> None:
    """The same steps in one go, and as a first and a second half that each ran to its end."""
    constant: dict[str, Any] = {"filter": MA, "dropout": 0.1}
    torch.manual_seed(0)
    fit(tmp_path, steps=12, **constant)
    with pytest.raises(ValueError, match=r"step 12 of 11 is done; give trainer\.steps more than 12"):
        fit(tmp_path, steps=11, resume=tmp_path, **constant)
    ended = fit(tmp_path, steps=12, resume=tmp_path, **constant)
    assert ended.progress.step == 12, "a kill may have come before its end was logged"
    assert fit(tmp_path, steps=15, resume=tmp_path, **constant).progress.step == 15


def test_a_signal_inside_an_evaluation_leaves_it_to_the_resumed_run(tmp_path: Path, full_run: FullRun) -> None:
    def interrupting_loss(logits: Tensor, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # an evaluation
            os.kill(os.getpid(), signal.SIGUSR1)
        return last_token(logits, targets)

    state = fit(tmp_path, loss=interrupting_loss, dropout=0.2)
    assert (state.progress.step, state.progress.eval_pending, state.signum) == (7, True, signal.SIGUSR1)
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 6]
    end = fit(tmp_path, dropout=0.2, resume=tmp_path)
    assert (hash_weights(end.model), read_metrics(tmp_path)) == full_run("dropout")


def test_a_second_ctrl_c_ends_at_once_without_harm(tmp_path: Path) -> None:
    class Impatient(Callback):
        def on_gradients(self, state: State) -> None:
            if state.progress.step == 9:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Impatient(), every=4)
    assert checkpoint.load_newest(tmp_path)[1].step == 8


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_ends_the_run_and_not_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """Also where a thread writes: the training hears of it at the next save."""
    commit = checkpoint.commit

    def commit_to_full_disk(root: Path, snapshot: checkpoint.Snapshot) -> Path:
        if snapshot.step >= 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return commit(root, snapshot)

    monkeypatch.setattr(checkpoint, "commit", commit_to_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        fit(tmp_path, every=4, background=background)
    assert checkpoint.load_newest(tmp_path)[1].step == 8
    assert read_metrics(tmp_path)[-1]["step"] < 18


class Late(Callback):
    """A signal that comes when a step has been judged."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, state: State) -> None:
        if state.progress.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_comes_too_late(tmp_path: Path) -> None:
    """Whether it is the last one by number, or because the run has reached its aim."""
    state = fit(tmp_path / "steps", Late(STEPS))
    assert (state.progress.step, state.signum) == (STEPS, 0)
    aim = tmp_path / "aim"
    state = fit(aim, EarlyStop(target=1e9), Late(7))
    assert (state.progress.step, state.signum, state.stop) == (7, 0, "val/loss reached 1e+09")
    again = fit(aim, EarlyStop(target=1e9), resume=aim)
    assert (again.progress.step, again.stop) == (7, "val/loss reached 1e+09"), "as if it had been killed before it could tell"
    assert fit(aim, EarlyStop(target=1e8), resume=aim).progress.step == 14, "another aim"


def test_the_best_are_those_of_one_metric(tmp_path: Path) -> None:
    """A run that goes on under another monitor does not compare it with the old one's values."""
    fit(tmp_path, steps=15)
    state = fit(tmp_path, resume=tmp_path, monitor="val/acc")
    assert set(list_checkpoints(tmp_path)) == {STEPS, state.progress.best["step"]}


def test_half_precision_may_begin_on_the_way(tmp_path: Path) -> None:
    fit(tmp_path, steps=8)
    assert fit(tmp_path, resume=tmp_path, precision="fp16").progress.step == STEPS


def test_a_copy_beside_the_checkpoints_is_none_of_them(tmp_path: Path) -> None:
    fit(tmp_path, Kill(8))
    there = tmp_path / "checkpoints" / "step-00000008"
    shutil.copytree(there, f"{there}-good")
    assert fit(tmp_path, resume=tmp_path, every=3).progress.step == STEPS
    assert Path(f"{there}-good").exists()


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    """Also where the numbers outgrow their eight digits."""
    for step in (99_999_999, 100_000_000, 7):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert list(list_checkpoints(tmp_path)) == [100_000_000, 99_999_999, 7]


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": [Path("here")]}

    with pytest.raises(TypeError, match=r"Odd 0\.state_dict\(\) holds a PosixPath"):
        fit(tmp_path, Odd(), every=2)


def test_numbers_of_other_libraries_are_kept_as_numbers(tmp_path: Path) -> None:
    """numpy's look like floats, and cannot be read again by a loader that trusts nothing."""

    class NumpyMetrics(Callback):
        def on_step(self, state: State) -> None:
            state.progress.extra_metrics["my/norm"] = np.float64(state.progress.step)

    fit(tmp_path, NumpyMetrics(), steps=7)
    assert fit(tmp_path, resume=tmp_path).progress.metrics["my/norm"] == 7.0


def test_other_groups_of_parameters_are_named_by_their_setting(tmp_path: Path) -> None:
    fit(tmp_path, steps=7)
    with pytest.raises(ValueError, match=r"(?s)groups other parameters here.*give the optim\.\* and finetune\.\* settings"):
        fit(tmp_path, resume=tmp_path, filter=partial(EMA, no_decay=()))


def test_a_run_goes_back_and_never_forward(tmp_path: Path) -> None:
    """From step 8 of a folder that holds step 28 as well: it goes back to 8, not on to 28."""
    fit(tmp_path, every=4, keep_last=9)
    steps = []

    class Fails(Callback):
        def on_gradients(self, state: State) -> None:
            steps.append(state.progress.step)
            if state.progress.step == 10 and not state.progress.rollbacks:
                state.progress.grad_norm = math.nan

    state = fit(tmp_path, Fails(), resume=tmp_path / "checkpoints" / "step-00000008", guard=Guard("rollback"))
    assert (state.progress.rollbacks, state.progress.last_finite_checkpoint, state.progress.step) == (1, 8, STEPS)
    assert steps == [8, 9, 10, *range(8, STEPS)]


def test_a_signal_ends_at_once_only_the_first_step_and_the_first_evaluation_that_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[bool] = []
    at_once = Watch.raise_immediately

    def record(self: Watch, enabled: bool) -> AbstractContextManager[None]:
        requested.append(enabled)
        return at_once(self, enabled)

    monkeypatch.setattr(Watch, "raise_immediately", record)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    fit(tmp_path, compile=True, steps=14, log_every=1)
    assert [index for index, enabled in enumerate(requested) if enabled] == [0, 7], "7 steps, an evaluation, 7 steps, another"
    assert len(requested) == 16


def test_callbacks_go_on_with_what_they_counted(tmp_path: Path) -> None:
    """Two evaluations in a row at the target: one before the end of the first process, one after."""
    patient = partial(EarlyStop, target=1e9, hold=2)
    fit(tmp_path, patient(), Kill(9))
    assert fit(tmp_path, patient(), resume=tmp_path).progress.step == 14


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    fit(tmp_path, steps=3)
    torch.manual_seed(0)
    model = Transformer(DATA.shape, 32, 1, 2, BitLinear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"model is Transformer .* here, was .* there; optimizer is SGD here, was Grok"):
        Trainer(steps=5, device="cpu").setup(model, optimizer, cosine, last_token, modular(p=11), resume=tmp_path)
    model, other = Transformer(DATA.shape, 16, 1, 2, BitLinear), modular(p=11, train_fraction=0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"(?s)data is .* here, was .*resume\.weights_only=true") as refused:
        Trainer(steps=5, device="cpu").setup(model, optimizer, cosine, last_token, other, resume=tmp_path)
    assert "model is" not in str(refused.value)
    trainer = Trainer(steps=2, device="cpu", batch_size=8)
    trained = trainer.fit(
        trainer.setup(
            model,
            optimizer,
            cosine,
            last_token,
            modular(p=11, train_fraction=0.4),
            resume=tmp_path,
            weights_only=True,
            folder=tmp_path,
        )
    )
    assert trained.progress.step == 2
    assert trained.first_step == 0


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, every=2, keep_last=3, keep_best=2, eval_every=1, steps=25)
    values = {line["step"]: line["val/loss"] for line in read_metrics(tmp_path)}
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert kept[-1] == 25
    assert min(values, key=lambda step: values[step]) in kept
    assert set(kept) >= {22, 24, 25}
    assert len(kept) <= 5


def test_the_average_is_evaluated_and_kept(tmp_path: Path) -> None:
    state = fit(tmp_path, ema=0.8, steps=14)
    assert state.average is not None
    snapshot = checkpoint.load_newest(tmp_path)[1]
    for name, tensor in state.average.averages.items():
        assert torch.equal(snapshot.tensors["average"][name], tensor)
        assert not torch.equal(snapshot.tensors["average"][name], snapshot.tensors["model"][name])
    with state.average.use_averages(), torch.no_grad():
        logits = state.model.eval()(DATA.val.inputs)
    mean = last_token(logits, DATA.val.targets.long()).mean().item()
    assert state.progress.metrics["val/loss"] == pytest.approx(mean, rel=1e-5)
