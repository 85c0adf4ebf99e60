"""The loop without Hydra: what may change its result and what may not."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from research.data.digits import digits
from research.data.modular import modular
from research.losses import classification, last_token
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.optim.param_groups import from_base
from research.optim.schedules import bitnet, cosine, wsd
from research.preflight.check import find_mistakes
from research.training.checkpoint import hash_weights
from research.training.evaluate import evaluate
from research.training.nonfinite import Guard
from research.training.state import Callback, State
from research.training.trainer import Supervised, Trainer

DATA = modular(p=11)


class Log(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_step(self, state: State) -> None:
        self.seen.append(dict(state.logged))


def fit(*callbacks: Callback, dropout: float = 0.1, schedule: Any = cosine, linear: Any = BitLinear, **settings: Any) -> State:
    torch.manual_seed(0)
    model = Transformer(DATA.shape, 16, 1, 2, linear, dropout=dropout)
    optimizer = from_base(model, partial(torch.optim.AdamW, fused=True), lr=1e-2, weight_decay=0.1)
    settings = {"steps": 6, "batch_size": 12, "eval_every": 10, "device": "cpu", **settings}
    trainer = Trainer(**settings)
    return trainer.fit(trainer.setup(model, optimizer, schedule, last_token, DATA, callbacks, monitor="val/acc"))


def test_looking_does_not_change_the_training() -> None:
    """Evaluations, log points and callbacks, however many, leave the same bits."""
    plainly = fit()
    watched = fit(Log(), eval_every=1, log_every=1)
    assert hash_weights(plainly.model) == hash_weights(watched.model)
    assert hash_weights(fit(seed=1).model) != hash_weights(plainly.model)


@pytest.mark.parametrize("parts", [2, 3, 5, 12])
def test_accumulation_is_the_whole_batch(parts: int) -> None:
    whole, cut = Log(), Log()
    fit(whole, dropout=0.0, linear=nn.Linear, log_every=1)
    fit(cut, dropout=0.0, linear=nn.Linear, log_every=1, grad_accum=parts)
    for a, b in zip(whole.seen, cut.seen, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
        assert a["grad/norm"] == pytest.approx(b["grad/norm"], rel=1e-3)


def test_the_schedule_and_the_clipping_act() -> None:
    log, clipped = Log(), []

    class Norm(Callback):
        def on_gradients(self, state: State) -> None:
            clipped.append(nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None]).item())

    fit(log, Norm(), schedule=partial(wsd, warmup=2, decay=0.5), log_every=1, clip_norm=0.01)
    assert [line["lr"] for line in log.seen] == pytest.approx([0.005, 0.01, 0.01, 0.01 * 2 / 3, 0.01 / 3, 0.0])
    assert all(line["grad/norm"] > 0.01 for line in log.seen)
    assert max(clipped) <= 0.0101


def test_a_schedule_may_move_the_weight_decay() -> None:
    seen: list[tuple[float, list[float]]] = []

    class Look(Callback):
        def on_step(self, state: State) -> None:
            groups = state.optimizer.param_groups
            seen.append((groups[0]["lr"], [group["weight_decay"] for group in groups]))

    state = fit(Look(), schedule=partial(bitnet, cooldown=0.5))
    built = [group["as_built"]["weight_decay"] for group in state.optimizer.param_groups]
    assert any(built)
    for step, (lr, decays) in enumerate(seen):
        assert decays == pytest.approx([decay * lr / 0.01 if step < 3 else 0.0 for decay in built])
    assert [lr for lr, _ in seen[3:]] == pytest.approx([0.01 * 0.5 * factor for factor in (0.904508, 0.345492, 0.0)], abs=1e-6)


def test_a_logged_loss_is_the_mean_since_the_last_log_point() -> None:
    each, every_third = Log(), Log()
    fit(each, log_every=1)
    fit(every_third, log_every=3)
    losses = [line["train/loss"] for line in each.seen]
    assert every_third.seen[2]["train/loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-5)
    assert every_third.seen[5]["train/loss"] == pytest.approx(sum(losses[3:]) / 3, rel=1e-5)


def test_a_few_samples_are_learnt_by_heart() -> None:
    state = fit(dropout=0.0, overfit=16, batch_size=16, steps=150, eval_every=50)
    assert state.progress.metrics["val/acc"] == 1.0


def test_evaluation_covers_the_whole_split_once() -> None:
    torch.manual_seed(0)
    data = digits()
    model = MLP(data.shape, 16, 1, nn.Linear, dropout=0.5).train()
    whole = evaluate(model, data.val, classification, 10_000)
    pieces = evaluate(model, data.val, classification, 7)
    assert whole == pytest.approx(pieces)
    assert model.training, "evaluation leaves the mode as it was"
    hits = (model.eval()(data.val.inputs).argmax(-1) == data.val.targets).float().mean().item()
    assert whole["val/acc"] == pytest.approx(hits)


def test_half_precision_trains_as_well() -> None:
    full, half = fit(steps=60, dropout=0.0), fit(steps=60, dropout=0.0, precision="bf16")
    assert half.progress.metrics["train/loss"] == pytest.approx(full.progress.metrics["train/loss"], rel=0.1)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}, "the weights themselves stay in float32"


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"grad_accum": 13}, "too few samples"), ({"parallel": "ddp"}, "this is one process"), ({"lr": 1}, "lr")],
)
def test_settings_that_do_not_do_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        fit(**settings)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("clip_norm", value) for value in (-1, 0, math.nan)),
        *(("steps", value) for value in (-5, 0, 2.5, True)),
        *((setting, 0) for setting in ("batch_size", "grad_accum", "eval_every", "log_every")),
        *((setting, -1) for setting in ("seed", "overfit")),
        *(("ema", value) for value in (0, 1, 1.5)),
        *((setting, "other") for setting in ("precision", "device", "parallel")),
        *((setting, 2) for setting in ("eval_train", "compile", "checkpoint_activations")),
        *((f"guard.{setting}", 0) for setting in ("policy", "max_skips", "max_rollbacks")),
    ],
)
def test_a_value_out_of_range_is_refused_as_by_the_command_line(setting: str, value: Any) -> None:
    """In the same words: setting, what it takes, the value."""
    owner, _, name = setting.rpartition(".")
    settings: Any = Guard() if owner else Trainer(device="cpu")
    setattr(settings, name, value)  # beartype, which only the tests have, would be the first to complain
    with pytest.raises(ValueError, match=rf"trainer\.{setting} takes .*; got ") as refused:
        settings.__post_init__()
    (mistake,) = find_mistakes([f"trainer.{setting}={value}"], False)
    assert mistake.splitlines()[1].strip() == str(refused.value)


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return last_token(logits, targets).mean()


@pytest.mark.parametrize("wrong", ["loss", "objective", "loss of evaluations"])
def test_a_mean_is_refused_wherever_it_comes_in(wrong: str) -> None:
    model = Transformer(DATA.shape, 16, 1, 2, nn.Linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss: Any = last_token if wrong == "objective" else mean_loss
    objectives: dict[str, Any] = {"objective": Supervised(mean_loss), "loss of evaluations": Supervised(last_token)}
    trainer = Trainer(1, 8, device="cpu")
    with pytest.raises(ValueError, match=r"one number a target.*shape \(\)"):
        trainer.fit(trainer.setup(model, optimizer, cosine, loss, DATA, objective=objectives.get(wrong)))


def test_two_runs_of_one_trainer_do_not_mix() -> None:
    """Both are set up before the first is trained, in fp16, whose scaler counts good steps."""
    trainer = Trainer(6, 12, eval_every=10, precision="fp16", device="cpu")
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Transformer(DATA.shape, 16, 1, 2, nn.Linear)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        states.append(trainer.setup(model, optimizer, cosine, last_token, DATA))
    first, second = (trainer.fit(state) for state in states)
    assert first.scaler.state_dict() == second.scaler.state_dict()
    assert first.scaler.state_dict()["_growth_tracker"] > 0


def test_numpy_numbers_and_classes_of_users_are_taken() -> None:
    @dataclass
    class Own(Trainer):
        extra: "Annotated[int, 3] | None" = None

    assert Own(steps=cast(Any, np.int64(4)), clip_norm=np.float64(0.5)).steps == 4
    with pytest.raises(ValueError, match="steps"):
        Own(steps=cast(Any, np.int64(0)))

    @dataclass
    class Unresolved(Trainer):
        extra: "NotImportedHere | None" = None  # type: ignore[name-defined]

    assert Unresolved(steps=3).steps == 3
