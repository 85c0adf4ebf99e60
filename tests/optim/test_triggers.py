"""A filter is switched on and off by steps and metrics, also over a resume."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from research.callbacks.checkpoint import Checkpoint
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim import grokfast
from research.optim.filter import Filter, is_on
from research.optim.schedules import constant
from research.options.trigger import Trigger, parse_trigger
from research.training.trainer import Trainer


def make_weight() -> nn.Module:
    return nn.ParameterDict({"weight": nn.Parameter(torch.zeros(3))})


def test_a_trigger_is_a_step_or_a_metric() -> None:
    assert parse_trigger(5, "x").fires(5, {})
    assert not parse_trigger(5, "x").fires(4, {})
    assert parse_trigger("val/acc:0.5", "x") == Trigger(metric="val/acc", value=0.5)
    assert [parse_trigger("val/acc:0.5", "x").fires(0, {"val/acc": v}) for v in (0.4, 0.5, 0.6, float("nan"))] == [0, 1, 1, 0]
    assert [parse_trigger("train/loss:0.5", "x").fires(0, {"train/loss": v}) for v in (0.4, 0.5, 0.6)] == [1, 1, 0]
    assert not parse_trigger("val/acc:0.5", "x").fires(9, {})
    for wrong in (0, -1, "val/acc", "val/acc:", "val/acc:x", "val/acc:nan", "acc:0.5", 0.5, True):
        with pytest.raises(ValueError, match=r"optim\.start_when=.* is no trigger\ngive a number of steps, or METRIC:VALUE"):
            inspect.unwrap(parse_trigger)(wrong, "optim.start_when")  # without beartype, which only the tests have


def run_filtered(
    steps: int, folder: Path | None = None, resume: Path | None = None, log_every: int = 1, **options: Any
) -> list[bool]:
    """Return for each step of a small run whether it was filtered; every second step is evaluated."""
    data, seen = modular(p=7), []
    torch.manual_seed(0)
    model = Transformer(data.shape, 16, 1, 2, nn.Linear)
    optimizer = grokfast.ema(model, partial(AdamW), 1e-2, **options)
    optimizer.register_step_pre_hook(lambda *_: seen.append(is_on(optimizer.param_groups[0])))
    trainer = Trainer(steps, 8, eval_every=2, log_every=log_every, device="cpu")
    trainer.fit(
        trainer.setup(
            model, optimizer, constant, last_token, data, [Checkpoint()] if folder else [], folder=folder, resume=resume
        )
    )
    keys = {key for state in optimizer.state.values() for key in state}
    assert ("grokfast_ema" in keys) == seen[-1], "the memory exists exactly while the filter is on"
    return seen


def test_the_filter_is_switched_by_step_and_by_metric() -> None:
    assert run_filtered(6) == [True] * 6
    assert run_filtered(6, start_when=2, stop_when=4) == [False, False, True, True, False, False]
    assert run_filtered(6, start_when="val/acc:0.0") == [False, False, True, True, True, True], "after the first evaluation"
    assert run_filtered(6, start_when="val/loss:-1", stop_when=1) == [False] * 6
    assert run_filtered(5, stop_when="train/loss:100") == [True, False, False, False, False]


def test_a_metric_from_before_the_filter_counts(tmp_path: Path) -> None:
    """Also without a log point between, and when a run resumes between two log points."""
    mixed: dict[str, Any] = {"start_when": 3, "stop_when": "val/acc:0.0", "log_every": 100}
    assert run_filtered(8, **mixed) == [False] * 8
    run_filtered(5, folder=tmp_path, **mixed)
    assert run_filtered(8, folder=tmp_path, resume=tmp_path, **mixed) == [False] * 3


def test_a_filter_without_gain_frees_its_memory() -> None:
    """As when a run resumes with optim.lamb=0: later checkpoints hold no memory either."""
    net = make_weight()
    (p,) = net.parameters()
    optimizer = grokfast.ema(net, partial(SGD), 0.1)
    assert isinstance(optimizer, Filter)
    p.grad = torch.ones(3)
    optimizer.step()
    assert "grokfast_ema" in optimizer.state[p]
    optimizer.param_groups[0]["lamb"] = 0.0
    optimizer.on_step_begin(1, {})
    assert "grokfast_ema" not in optimizer.state[p]


def test_a_checkpoint_without_triggers_resumes() -> None:
    """One of an older version: as if the filter had been on from the first step."""
    net = make_weight()
    optimizer = grokfast.ema(net, partial(SGD), 0.1)
    assert isinstance(optimizer, Filter)
    saved = optimizer.state_dict()
    for key in ("_heeds", "_on", "_over"):
        del saved["param_groups"][0][key]
    optimizer.load_state_dict(saved)
    optimizer.on_step_begin(1, {})
    assert is_on(optimizer.param_groups[0])


def test_alpha_falls_with_the_gap_between_the_losses() -> None:
    """GrokAdamW: alpha exp(-adapt (val - train) / val) of the losses, and no larger than alpha."""
    net = make_weight()
    optimizer = grokfast.ema(net, partial(Adam), 0.1, alpha=0.9, adapt=0.5)
    assert isinstance(optimizer, Filter)
    group = optimizer.param_groups[0]
    for metrics, expected in (
        ({}, 0.9),
        ({"train/loss": 1.0, "val/loss": 3.0}, 0.9 * 0.71653131),
        ({"train/loss": 3.0, "val/loss": 1.0}, 0.9),
    ):
        optimizer.on_step_begin(5, metrics)
        assert group["grokfast_alpha"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"stop_when": 2}, {}, [True] * 4),
        ({"stop_when": 2}, {"stop_when": 6}, [True, True, False, False]),
        ({"start_when": 2}, {"start_when": 6}, [False, False, True, True]),
        ({}, {"start_when": 6}, [False, False, True, True]),
        ({"stop_when": 2}, {"stop_when": 2}, [False] * 4),
        ({"start_when": 2}, {"start_when": 2}, [True] * 4),
    ],
)
def test_triggers_that_are_changed_on_a_resume_take_effect(
    before: dict[str, Any], after: dict[str, Any], expected: list[bool], tmp_path: Path
) -> None:
    """As other settings beside resume= do; the filter begins with an empty memory."""
    run_filtered(4, folder=tmp_path, **before)
    assert run_filtered(8, folder=tmp_path, resume=tmp_path, **after) == expected


def test_triggers_of_one_metric_in_order() -> None:
    for start, stop in (("val/acc:0.5", "val/acc:0.9"), ("val/loss:1.5", "val/loss:0.5"), ("val/acc:0.9", "train/acc:0.5")):
        grokfast.ema(make_weight(), partial(SGD), 0.1, start_when=start, stop_when=stop)
