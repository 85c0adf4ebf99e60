"""Numbers that are not finite never reach the weights, and memory that runs out makes smaller micro-batches."""

import math
import os
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting import DATA, fit, make_state, read_metrics
from program import ROOT, run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from research.callbacks.early_stop import EarlyStop
from research.data.spec import Dataset, Split, Tokens
from research.losses import IGNORE, last_token, next_token
from research.models.transformer import Transformer
from research.nn.blocks import recompute
from research.optim import fused, grokfast
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.run_dir import list_checkpoints
from research.training import checkpoint, nonfinite, oom
from research.training.checkpoint import hash_weights
from research.training.evaluate import evaluate
from research.training.nonfinite import Guard
from research.training.state import Callback, State
from research.training.trainer import Trainer


def make_poisoned_loss(*calls: int) -> Any:
    """A loss that is not finite at the given calls while training, counted from 1."""
    made = 0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal made
        made += torch.is_grad_enabled()
        return last_token(logits, targets) * (float("nan") if torch.is_grad_enabled() and made in calls else 1.0)

    return loss


def test_stop_names_the_step_and_saves_nothing_after_it(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError) as stopped:
        fit(tmp_path, loss=make_poisoned_loss(12), every=4, log_every=1)
    for word in (
        "at step 12, with lr=",
        "the gradient of embed.weight is the first",
        "last good step is 11",
        "saved is step 8",
    ):
        assert word in str(stopped.value)
    snapshot = checkpoint.load_newest(tmp_path)[1]
    assert snapshot.step == 8
    assert all(bool(torch.isfinite(tensor).all()) for tensor in snapshot.tensors["model"].values())
    assert read_metrics(tmp_path)[-1]["step"] == 11


def test_skip_leaves_one_update_out_and_gives_up_after_a_row(tmp_path: Path) -> None:
    class Weights(Callback):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_step(self, state: State) -> None:
            self.seen.append(hash_weights(state.model))

    weights = Weights()
    state = fit(tmp_path, weights, loss=make_poisoned_loss(5, 6), guard=Guard("skip"), log_every=1, steps=12)
    assert (state.progress.step, state.error) == (12, "")
    assert weights.seen[3] == weights.seen[4] == weights.seen[5]
    assert len(set(weights.seen)) == 10
    assert "train/loss" not in read_metrics(tmp_path)[4], "a mean over no step is no number"
    with pytest.raises(FloatingPointError, match=r"3 times in a row, over trainer\.guard\.max_skips=2"):
        fit(tmp_path / "again", loss=make_poisoned_loss(5, 6, 7), guard=Guard("skip", max_skips=2))


def test_rollback_takes_another_order_and_keeps_what_it_went_back_to(tmp_path: Path) -> None:
    state = fit(tmp_path, loss=make_poisoned_loss(12), guard=Guard("rollback"), every=4, log_every=1, keep_best=1)
    fit(tmp_path / "plain", every=4, log_every=1)
    assert (state.progress.step, state.progress.rollbacks) == (30, 1)
    lines, others = read_metrics(tmp_path), read_metrics(tmp_path / "plain")
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[:8] == others[:8], "up to the checkpoint it is the same run"
    assert lines[8]["train/loss"] != others[8]["train/loss"], "after it the samples come in another order"
    assert (tmp_path / "checkpoints" / "step-00000008").exists(), "the last good one from before the failure stays"
    with pytest.raises(FloatingPointError, match=r"went back 2 times \(trainer\.guard\.max_rollbacks=2\)"):
        fit(tmp_path / "thrice", loss=make_poisoned_loss(12, 17, 22), guard=Guard("rollback"), every=4)
    with pytest.raises(FloatingPointError, match=r"no checkpoint to go back to: give callbacks\.checkpoint\.every"):
        fit(tmp_path / "none", loss=make_poisoned_loss(2), guard=Guard("rollback"))


def test_rollback_waits_for_a_checkpoint_that_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is still writing step 12 when step 13 fails; what the run goes back to is there to the end."""
    commit = checkpoint.commit

    def commit_slowly(root: Path, snapshot: checkpoint.Snapshot) -> Path:
        time.sleep(0.5)
        return commit(root, snapshot)

    monkeypatch.setattr(checkpoint, "commit", commit_slowly)
    state = fit(tmp_path, loss=make_poisoned_loss(13), guard=Guard("rollback"), every=4, log_every=1, background=True)
    assert (state.progress.last_finite_checkpoint, state.progress.rollbacks) == (12, 1)
    assert 12 in list_checkpoints(tmp_path)


def test_rollback_past_a_damaged_checkpoint_keeps_the_one_it_went_to(tmp_path: Path) -> None:
    class Damage(Callback):
        def on_gradients(self, state: State) -> None:
            bad = tmp_path / "checkpoints" / "step-00000012"
            if state.progress.step == 13 and not state.progress.rollbacks:
                (bad / "state.pt").write_bytes(b"")

    state = fit(tmp_path, Damage(), loss=make_poisoned_loss(14), guard=Guard("rollback"), every=4, keep_last=2)
    assert (state.progress.last_finite_checkpoint, state.progress.rollbacks) == (8, 1)
    assert 8 in list_checkpoints(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """The update itself overflows: the loss of the step before was finite."""

    class Overflow(Callback):
        def on_gradients(self, state: State) -> None:
            if state.progress.step == 9 and not state.progress.rollbacks:
                state.optimizer.param_groups[0]["lr"] = math.inf

    state = fit(tmp_path, Overflow(), guard=Guard("rollback"), every=1, keep_last=1)
    assert (state.progress.last_finite_checkpoint, state.progress.rollbacks, state.progress.step) == (9, 1, 30)


def test_a_judgement_that_is_not_finite_is_neither_best_nor_an_aim(tmp_path: Path) -> None:
    """The first evaluation is of no number; the run takes the best of those that are."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        first = not torch.is_grad_enabled() and not (tmp_path / "checkpoints").exists()
        return last_token(logits, targets) * (float("nan") if first else 1.0)

    def make_checkpoints_folder(state: State) -> None:
        (tmp_path / "checkpoints").mkdir(parents=True, exist_ok=True)

    class Once(Callback):
        def on_step(self, state: State) -> None:
            if state.progress.step == 7:
                make_checkpoints_folder(state)

    state = fit(tmp_path, Once(), EarlyStop(target=1e-3), loss=loss, guard=Guard("skip"))
    assert state.progress.step == 30
    assert state.progress.best["step"] > 7
    assert int(state.progress.best["step"]) in list_checkpoints(tmp_path)


def test_fp16_gradients_that_never_become_finite_are_met(tmp_path: Path) -> None:
    """Some overflows are the scaler's to see to; once it has nothing left to scale down they are the policy's."""

    def broken_loss(logits: Tensor, targets: Tensor) -> Tensor:
        each = last_token(logits, targets)
        return (
            each + 0 * (logits - logits.detach()).sum().sqrt() if torch.is_grad_enabled() else each
        )  # finite; its gradient is not

    with pytest.raises(FloatingPointError, match=r"the gradient of embed\.weight is the first"):
        fit(tmp_path, loss=broken_loss, precision="fp16")


class HostReadCounter(TorchDispatchMode):
    """Counts how often the host asks for a number of a tensor: on a GPU it would wait."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # super() would count as untyped: torch has no annotation here
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["ema", "adamw"])
def test_the_verdict_can_stay_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """As on a GPU: the same weights, and the host asks for numbers at log points only."""
    monkeypatch.setattr(fused, "step", lambda optimizer: False)  # the kernel of a CPU knows no verdict, and rounds otherwise
    build = grokfast.ema if optimizer == "ema" else lambda *args, lamb, **settings: from_base(*args, **settings)
    settings = {"filter": build, "loss": None, "guard": Guard("skip"), "log_every": 10, "eval_every": 100, "steps": 20}
    host = fit(tmp_path / "host", **settings | {"loss": make_poisoned_loss(5, 6)})
    original = Guard.reset
    monkeypatch.setattr(Guard, "reset", lambda self, on_device: original(self, True))
    waits: list[int] = []

    class Count(Callback):
        def on_start(self, state: State) -> None:
            self.mode, self.stack = HostReadCounter(), ExitStack()
            self.stack.enter_context(self.mode)

        def on_step(self, state: State) -> None:
            waits.append(self.mode.count)
            self.mode.count = 0

        def on_end(self, state: State) -> None:
            self.stack.close()

    device = fit(tmp_path / "device", Count(), **settings | {"loss": make_poisoned_loss(5, 6)})
    assert hash_weights(device.model) == hash_weights(host.model)
    assert [number for step, number in enumerate(waits, start=1) if step % 10] == [0] * 18
    with pytest.raises(FloatingPointError, match="not finite at step 5, with"):
        fit(tmp_path / "stop", **settings | {"loss": make_poisoned_loss(5, 7), "guard": Guard("stop")})


def test_an_optimizer_that_cannot_leave_an_update_out_is_not_required_to() -> None:
    model = nn.Linear(2, 2)
    assert not nonfinite.supports_found_inf(torch.optim.SGD(model.parameters(), lr=0.1))
    assert not nonfinite.supports_found_inf(grokfast.ma(model, partial(torch.optim.AdamW, fused=True), lr=0.1))
    assert nonfinite.supports_found_inf(torch.optim.AdamW(model.parameters(), fused=True))


def compute_masked_gradients(model_seed: int, grad_accum: int) -> dict[str, Tensor]:
    """The gradient of one step over sequences of which each has another number of targets that count."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randint(0, 17, (24, 12), generator=generator)
    targets = inputs.roll(-1, 1)
    for row, length in enumerate(torch.randint(0, 13, (24,), generator=generator).tolist()):
        targets[row, length:] = IGNORE
    split = Split(inputs, targets)
    data = Dataset(Tokens(17, 12), split, split, "digest", "made up", "token")
    torch.manual_seed(model_seed)
    model = Transformer(data.shape, 32, 2, 2, nn.Linear)
    found: dict[str, Tensor] = {}

    class Keep(Callback):
        def on_gradients(self, state: State) -> None:
            found.update({name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None})

    trainer = Trainer(steps=1, batch_size=24, grad_accum=grad_accum, clip_norm=None, device="cpu")
    state = trainer.fit(trainer.setup(model, torch.optim.SGD(model.parameters(), lr=0.0), constant, next_token, data, [Keep()]))
    found["loss"] = torch.tensor(state.progress.metrics["train/loss"])
    whole = evaluate(model, split, next_token, 24)["val/loss"]
    assert evaluate(model, split, next_token, 5)["val/loss"] == pytest.approx(whole, rel=1e-6)
    assert state.progress.metrics["train/loss"] == pytest.approx(whole, rel=1e-6)
    return found


@pytest.mark.parametrize("parts", [2, 5, 24])
def test_accumulation_is_exact_by_tokens(parts: int) -> None:
    """Within 1e-6 of the gradient of one large batch, though a micro-batch may have few targets, or none."""
    whole, cut = compute_masked_gradients(0, 1), compute_masked_gradients(0, parts)
    for name, gradient in whole.items():
        assert (cut[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_recomputing_gives_the_same_bits_from_less() -> None:
    """Half of what is kept for the backward pass is not kept any more."""
    kept = []
    for again in (False, True):
        torch.manual_seed(0)
        model = Transformer(DATA.shape, 64, 4, 2, nn.Linear, dropout=0.1)
        if again:
            recompute(model)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(DATA.train.inputs.long())
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
    with pytest.raises(ValueError, match=r"trainer\.checkpoint_activations: Linear has no ModuleList"):
        recompute(nn.Linear(2, 2))


OUT_OF_MEMORY = """
import resource, sys, torch
from contextlib import ExitStack
from functools import partial
from research.training.state import Callback
from research.training.checkpoint import hash_weights
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.training.trainer import Trainer
torch.set_num_threads(1)
spare, planned = int(sys.argv[1]), [int(halvings) for halvings in sys.argv[2:]]
data = modular(p=47)
torch.manual_seed(0)
model = Transformer(data.shape, 128, 2, 2, torch.nn.Linear, dropout=0.1)
optimizer = from_base(model, partial(torch.optim.AdamW, fused=True), lr=1e-3)

class Halvings(Callback):
    def __init__(self):
        self.seen = []

    def on_start(self, state):
        state.progress.oom_halvings = sum(planned[:1])

    def on_gradients(self, state):
        self.seen.append(state.progress.oom_halvings)

    def on_step(self, state):
        state.progress.oom_halvings = max([state.progress.oom_halvings, *planned[1:]])

callback = Halvings()
trainer = Trainer(steps=2, batch_size=4096, device="cpu")
if spare:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20,) * 2)
trainer.fit(trainer.setup(model, optimizer, constant, last_token, data, [callback]))
print(hash_weights(model), *callback.seen)
"""


def run_out_of_memory(spare: int, *halvings: str) -> list[str]:
    """The digest of two large steps and the halvings of each, in a process that may take so many MB more (0: as many as
    it likes), whose steps have the planned halvings from their start.
    """
    done = run(["-c", OUT_OF_MEMORY, str(spare), *halvings], ROOT, dict(os.environ))
    return done.stdout.split() if done.returncode == 0 else [done.stderr]


def test_running_out_of_memory_halves_the_micro_batch() -> None:
    """For real; and the result is that of a run which had each step's smaller micro-batches from its start."""
    digest, *halvings = run_out_of_memory(150)
    assert halvings[0] >= "1"
    assert run_out_of_memory(0, *halvings) == [digest, *halvings]


def test_an_evaluation_that_runs_out_of_memory_takes_smaller_batches(tmp_path: Path) -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and len(logits) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return last_token(logits, targets)

    state = fit(tmp_path, loss=loss, steps=9)
    assert (state.progress.oom_halvings, state.progress.step) == (2, 9)
    assert state.progress.metrics["val/loss"] == pytest.approx(
        fit(tmp_path / "full", steps=9).progress.metrics["val/loss"], rel=1e-4
    )


def test_a_micro_batch_of_one_cannot_be_halved() -> None:
    state = make_state(nn.Linear(1, 1), batch_size=4)
    state.progress.oom_halvings = 2

    with pytest.raises(
        ValueError, match=r"out of memory at step 1: no more\na micro-batch is one sample; trainer\.checkpoint_act"
    ):
        oom.halve_micro_batch(state, "no more\nbecause")
