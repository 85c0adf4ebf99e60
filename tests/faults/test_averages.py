"""Row 9: averages forget the first, random weights, and a schedule that a longer run stretches upwards says so."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting import DATA, fit
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from research.callbacks.checkpoint import Checkpoint
from research.data.digits import digits
from research.losses import classification, last_token
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.optim.param_groups import from_base
from research.optim.schedules import bitnet, constant, cosine, wsd
from research.preflight.check import find_mistakes
from research.training.ema import Average
from research.training.snapshot import load_newest, load_weights
from research.training.state import Callback, State
from research.training.trainer import Trainer


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.999]))
def test_an_average_is_the_sum_of_its_definition(values: list[float], decay: float) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    average, expected = Average(model, decay), 3.0
    for step, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        average.update(step)
        factor = min(decay, (1 + step) / (10 + step))
        expected = factor * expected + (1 - factor) * value
    assert average.averages["weight"].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.99999])
def test_the_first_weights_are_forgotten(decay: float) -> None:
    """After 500 steps a decay of 0.999 kept 0.61 of the random weights."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    average = Average(model, decay)
    nn.init.zeros_(model.weight)
    for step in range(500):
        average.update(step)
    assert 0 <= average.averages["weight"].item() < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_weights_in_16_bits_have_32(dtype: torch.dtype) -> None:
    """They stood still: a step moves them by a thousandth of the way."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    average = Average(model, 0.999)
    nn.init.zeros_(model.weight)
    for step in range(9000, 12_000):
        average.update(step)
    kept = average.averages["weight"]
    assert kept.item() == pytest.approx(0.999**3000, rel=1e-3)
    average.averages["weight"].fill_(1 / 3)
    with average.use_averages():
        assert model.weight.item() == torch.tensor(1 / 3, dtype=dtype).item()
    assert model.weight.item() == 0
    assert kept.item() == torch.tensor(1 / 3).item(), "an evaluation does not round it"
    average.load({"weight": torch.ones(1, 1, dtype=dtype)})  # of a checkpoint before
    assert (kept.dtype, kept.item()) == (torch.float32, 1.0)


def test_a_run_in_16_bits_is_resumed_with_its_averages(tmp_path: Path) -> None:
    def run(folder: Path, *callbacks: Callback, resume: Path | None = None) -> State:
        torch.manual_seed(0)
        model = Transformer(DATA.shape, 8, 1, 2, nn.Linear).bfloat16()
        optimizer = from_base(model, partial(torch.optim.SGD), lr=0.5)
        trainer = Trainer(8, 4, eval_every=3, ema=0.999, device="cpu")
        more = [*callbacks, Checkpoint()]
        return trainer.fit(trainer.setup(model, optimizer, constant, last_token, DATA, more, folder=folder, resume=resume))

    whole = run(tmp_path / "whole")
    run(tmp_path / "part", Stop(5))
    again = run(tmp_path / "part", resume=tmp_path / "part")
    assert again.average
    assert whole.average
    for name, average in whole.average.averages.items():
        assert average.dtype == torch.float32
        assert torch.equal(average, again.average.averages[name])
        assert torch.equal(whole.average.weights[name], again.average.weights[name])
    other = Transformer(DATA.shape, 8, 1, 2, nn.Linear).bfloat16()
    folder, content = load_newest(tmp_path / "part")
    load_weights(other, folder, content)
    assert torch.equal(other.embed.weight, whole.average.averages["embed.weight"].bfloat16())


def fit_digits(ema: float | None) -> float:
    torch.manual_seed(0)
    data = digits()
    model = MLP(data.shape, 32, 1, nn.Linear)
    optimizer = from_base(model, partial(torch.optim.AdamW, fused=True), lr=3e-4, weight_decay=0.1)
    trainer = Trainer(steps=500, batch_size=64, eval_every=500, ema=ema, device="cpu")
    return trainer.fit(trainer.setup(model, optimizer, constant, classification, data)).progress.metrics["val/acc"]


def test_a_short_run_is_not_judged_by_its_first_weights() -> None:
    """Digits, 500 steps: the averaged weights are as good as the last ones."""
    last, averaged = fit_digits(None), fit_digits(0.999)
    assert last > 0.93
    assert averaged == pytest.approx(last, abs=0.02)


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_a_resumed_average_has_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = fit(tmp_path / "whole", ema=0.999, steps=14)
    fit(tmp_path / "part", Stop(stop), ema=0.999, steps=14)
    again = fit(tmp_path / "part", ema=0.999, steps=14, resume=tmp_path / "part")
    assert again.first_step == stop
    assert whole.average
    assert again.average
    for name, average in whole.average.averages.items():
        assert torch.equal(average, again.average.averages[name])


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_gradients(self, state: State) -> None:
        if state.progress.step + 1 == self.step:
            state.stop = "enough"


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_gradients(self, state: State) -> None:
        self.seen.append(state.optimizer.param_groups[0]["lr"])


def fit_scheduled(folder: Path, schedule: Any, steps: int, stop: int = 0, config: Any = None, lr: float = 0.5) -> list[float]:
    torch.manual_seed(0)
    rates, model, resumes = Rates(), Transformer(DATA.shape, 8, 1, 2, nn.Linear), (folder / "checkpoints").exists()
    optimizer = from_base(model, partial(torch.optim.SGD), lr=lr)
    trainer, callbacks = Trainer(steps, 4, eval_every=100, device="cpu"), [rates, Stop(stop), Checkpoint()]
    where: Any = {"folder": folder, "resume": folder if resumes else None, "config": config}
    trainer.fit(trainer.setup(model, optimizer, schedule, last_token, DATA, callbacks, **where))
    return rates.seen


KEEP = "; to keep the end that it had, give +schedule.end=8 with resume=RUN, its folder, not with auto"
LENGTHENED: dict[str, tuple[Any, int, str]] = {  # schedule; the steps, of 8, after which it is resumed; the advice
    "cosine at its end": (cosine, 8, KEEP),
    "wsd at its end": (wsd, 8, ""),
    "wsd above a floor": (partial(wsd, floor=0.2), 8, KEEP),
    "bitnet at its end": (lambda *of: bitnet(*of)[0], 8, ""),
    "own function": (lambda step, steps: 1 - step / steps, 8, ""),
    "cosine on its way": (cosine, 4, KEEP),
}


NOTHING = [
    "  schedule.end=20: the steps after it, up to 30, would have lr=0 and learn nothing",
    "  give steps=20, or leave out schedule.end",
]


@pytest.mark.parametrize("case", LENGTHENED)
def test_a_longer_run_tells_of_the_jump(tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    schedule, stop, advice = LENGTHENED[case]
    config = {"trainer": {"steps": 8}}
    fit_scheduled(tmp_path, schedule, 8, stop, config)
    with caplog.at_level(logging.WARNING):
        rates = fit_scheduled(tmp_path, schedule, 16, config=config)
    before, after = schedule(stop - 1, 8), schedule(stop, 16)
    jump = f"from {before:.3g} to {after:.3g} at step {stop} of 16{advice}"
    assert caplog.messages == [f"resume: the schedule's factor on lr jumps {jump}"]
    assert rates[0] == pytest.approx(0.5 * after), "it does jump"


@pytest.mark.parametrize(("schedule", "stop"), [(wsd, 3), (partial(constant, warmup=3), 8), (constant, 2)])
def test_where_nothing_jumps_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, schedule: Any, stop: int
) -> None:
    fit_scheduled(tmp_path, schedule, 8, stop)
    with caplog.at_level(logging.WARNING):
        fit_scheduled(tmp_path, schedule, 16)
    assert not caplog.messages


@pytest.mark.parametrize("schedule", [cosine, wsd, bitnet])
def test_a_schedule_keeps_its_own_end(tmp_path: Path, caplog: pytest.LogCaptureFixture, schedule: Any) -> None:
    """As the warning says: the factors of the shorter run, then the last one; nothing is logged."""
    short = fit_scheduled(tmp_path, schedule, 8)
    with caplog.at_level(logging.WARNING):
        more = fit_scheduled(tmp_path, partial(schedule, end=8), 12)
    assert not caplog.messages
    assert more == [short[-1]] * 4
    assert [schedule(step, 12, end=8) for step in range(8)] == [schedule(step, 8) for step in range(8)]
    assert {schedule(step, 12, end=8) for step in range(8, 12)} == {schedule(7, 8)}


def test_the_end_that_is_named_is_the_one_that_the_run_had(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It stopped on its way; its configuration, which the checkpoint holds, knows its end."""
    fit_scheduled(tmp_path, cosine, 12, stop=6, config={"trainer": {"steps": 12}, "schedule": {"end": None}})
    with caplog.at_level(logging.WARNING):
        fit_scheduled(tmp_path, cosine, 24, stop=8)
    assert "give +schedule.end=12" in caplog.text


def test_another_lr_is_no_jump_of_the_schedule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_scheduled(tmp_path, cosine, 12, stop=6)
    with caplog.at_level(logging.WARNING):
        rates = fit_scheduled(tmp_path, cosine, 12, lr=0.1)
    assert not caplog.messages
    assert rates[0] == pytest.approx(0.1 * cosine(6, 12))


@pytest.mark.parametrize("name", ["cosine", "wsd", "bitnet"])
def test_the_command_line_takes_the_advice(name: str) -> None:
    """But not where the steps beyond would learn nothing: only the cosine ends above 0."""
    assert find_mistakes([f"schedule={name}", "+schedule.end=20", "steps=20"], False) == []
    beyond = find_mistakes([f"schedule={name}", "+schedule.end=20", "steps=30"], False)
    assert [line.splitlines()[1:] for line in beyond] == ([] if name == "cosine" else [NOTHING])
    assert find_mistakes(["schedule=wsd", "+schedule.end=20", "schedule.floor=0.1"], False) == []
    assert find_mistakes([f"schedule={name}", "+schedule.end=20", "epochs=3"], False) == []
    (mistake,) = find_mistakes([f"schedule={name}", "+schedule.end=0"], False)
    assert "schedule.end takes a whole number in [1, inf) or null; got 0" in mistake
