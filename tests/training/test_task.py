"""Parts of one's own that do not fit each other are refused before a run begins: the part, its value and the fix are named."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int, Shaped
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from research.data.spec import Dataset, Images, Split, Tokens, Vectors, split_at_random
from research.losses import IGNORE, Loss, classification, last_token, next_token, per_pixel, regression
from research.metrics import Confidence, Metric, RowMetric, select_valid
from research.training.state import Callback
from research.training.task import balance_classes, check_parts, check_task, warn
from research.training.trainer import Supervised

SHAPE = Vectors(4, 3)
X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 0, 0])


def make_data(shape: Any = SHAPE, x: Tensor = X, y: Tensor = Y, **splits: Any) -> Dataset[Any]:
    split = Split(x, y)
    return Dataset(shape, **{"train": split, "val": split, **splits}, digest="", source="", unit="sample")


def make_untyped_data() -> Dataset[Any]:
    """Return a data set with a test split that the types forbid, as without the hook of the tests."""
    data = make_data()
    object.__setattr__(data, "test", (X, Y))
    return data


def pick(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, 0]


def take_numbers(logits: Float[Tensor, "n c"], targets: Float[Tensor, "n"]) -> Tensor:
    return logits[:, 0]


def take_classes(logits, targets: Int[Tensor, "n"]):  # type: ignore[no-untyped-def]
    return logits[:, 0]


def take_all(logits: Float[Tensor, "n c"], targets: Shaped[Tensor, "n"]) -> Tensor:
    return logits[:, 0]


TOKENS = torch.tensor([[0, 1, 2], [4, 4, 4]])
PIXELS = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ((X, Y), classification, r"data: its function returns a tuple\nreturn a data set, as MemoryDataset"),
        (None, classification, "data: its function returns a NoneType"),
        (partial(make_data, Vectors(5, 3)), classification, r"an input of train has shape \(4,\), that of .* has \(5,\)"),
        (partial(make_data, Images(3, 4, 4, 2), PIXELS, Y[:2]), classification, r"shape \(1, 4, 4\), .* has \(3, 4, 4\)"),
        (
            partial(make_data, Vectors(4, 2)),
            classification,
            r"the targets of train are 0 to 2, .* are 0 to 1\nnumber them from 0",
        ),
        (partial(make_data, y=Y + 1), pick, "the targets of train are 1 to 3"),
        (partial(make_data, y=Y - 1), classification, "the targets of train are -1 to 1"),
        (partial(make_data, Vectors(4, 1)), classification, "or targets.float.. for numbers"),
        (partial(make_data, val=Split(X, Y + 9)), pick, "the targets of val are 9 to 11"),
        (make_untyped_data, pick, r"data: its test is a tuple\ngive a Split"),
        (partial(make_data, Tokens(4, 3), TOKENS, TOKENS), next_token, "the targets of train are 0 to 4"),
        (partial(make_data, Tokens(4, 3, num_classes=9), TOKENS, Y[:2]), last_token, "the inputs of train are 0 to 4"),
        (partial(make_data, y=Y.float()), take_classes, r"its targets are Int.*, the data have float32\ngive a loss for such"),
        (make_data, take_numbers, r"its targets are Float.*, the data have int64"),
        (partial(make_data, y=Y.float()), pick, "monitor=val/acc is not what .* report: their targets are numbers, no classes"),
        (
            partial(split_at_random, Vectors(4, 3), X, Y.float(), 0.5, 0, ""),
            pick,
            r"takes classes, .*float32\ngive targets.long",
        ),
    ],
)
def test_data_and_losses_that_do_not_fit_are_refused(data: Any, loss: Loss, message: str) -> None:
    """A loss of one's own is asked what it says of its targets: their type, no more."""
    with pytest.raises(ValueError, match=message):
        check_task(data() if callable(data) else data, loss, {}, "val/acc")


@pytest.mark.parametrize(
    ("data", "loss"),
    [
        (make_data, take_classes),
        (make_data, take_all),
        (partial(make_data, y=Y.masked_fill(Y == 2, IGNORE)), classification),
        (partial(make_data, y=Y.to(torch.uint8)), take_classes),
        (partial(make_data, y=torch.randn(6, 3)), regression),
        (partial(make_data, Vectors(4, 1), y=Y.float()), take_numbers),
        (partial(make_data, Images(1, 4, 4, 2, per_pixel=True), PIXELS, PIXELS[:, 0]), per_pixel),
        (partial(make_data, Tokens(5, 3), TOKENS, TOKENS), next_token),
    ],
)
def test_data_and_losses_that_fit_pass(data: Callable[..., Any], loss: Loss) -> None:
    check_task(data(), loss, {}, "val/loss")


class Own(RowMetric):
    """What `measure` and `compute` return, as a user would have them."""

    def __init__(self, rows: Callable[[Tensor], Any], number: Callable[[Tensor], Any] = Tensor.mean) -> None:
        super().__init__(None)
        self.give_rows, self.give_number = rows, number

    def measure(self, logits, targets):  # type: ignore[no-untyped-def]
        return self.give_rows(select_valid(logits, targets)[0].amax(-1))

    def compute(self, rows):  # type: ignore[no-untyped-def]
        return self.give_number(rows)


def fail(rows: Tensor) -> float:
    raise KeyError("one sample has no such number")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            Own(Tensor.mean),
            r"test_task.Own.measure returned a tensor of shape \(\), which is no row\nreturn a row for each target",
        ),
        (Own(Tensor.tolist), "Own.measure returned a list, which is no row"),
        (
            Own(lambda rows: rows, lambda rows: {"a": 1.0}),
            r"Own.compute returned a dict, which is no number\nreturn one number",
        ),
        (Own(lambda rows: rows, lambda rows: rows.new_zeros(2)), r"Own.compute returned a tensor of shape \(2,\)"),
        (Own(lambda rows: rows, lambda rows: None), "Own.compute returned a NoneType"),
        (Own(lambda rows: rows, fail), ""),  # the evaluation of all samples may have it
        (Own(lambda rows: rows, lambda rows: rows.mean()), ""),
        (Confidence(None), ""),
    ],
)
def test_a_metric_gives_rows_and_a_number(metric: Metric, message: str) -> None:
    if not message:
        return check_task(make_data(), classification, {"own": metric}, "val/acc")
    with pytest.raises(ValueError, match=message):
        check_task(make_data(), classification, {"own": metric}, "val/acc")
    return None


def test_balanced_class_weights_are_those_of_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the training split, whatever the others hold; its inputs are left alone."""
    monkeypatch.setattr(Split, "__getitem__", lambda split, index: pytest.fail("inputs are read"))
    data = make_data(y=torch.tensor([0, 1, 2, 0, IGNORE, 0]), val=Split(X, torch.zeros_like(Y)))
    loss = balance_classes(partial(classification, class_weights="balanced", z_loss=0.1), data)
    assert isinstance(loss, partial)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[0, 1, 2, 0, 0])
    assert loss.keywords == {"class_weights": pytest.approx(expected.tolist()), "z_loss": 0.1}
    pixels = make_data(Images(1, 4, 4, 2, per_pixel=True), PIXELS, (torch.arange(32) > 23).long().view(2, 4, 4))
    weighted = balance_classes(partial(per_pixel, class_weights="balanced"), pixels)
    assert json.dumps(weighted.keywords) == '{"class_weights": [%.16f, 2.0]}' % (32 / 48)  # type: ignore[attr-defined]
    assert balance_classes(classification, data) is classification


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        (make_data(Vectors(4, 5)), classification, r"balanced: the training split has no target of class 3, 4\ngive a list"),
        (replace(make_data(Vectors(4, 4)), classes=("a", "b", "c", "d")), classification, r"no target of class 3 d\n"),
        (make_data(Tokens(5, 3), TOKENS, TOKENS), next_token, "balanced counts classes, and these data have none"),
    ],
)
def test_weights_that_cannot_be_balanced_are_refused(data: Dataset[Any], loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task(data, partial(loss, class_weights="balanced"), {}, "val/loss")


NUMBERS = make_data(Vectors(4, 1), y=torch.arange(6.0))


def broadcast(logits: Tensor, targets: Tensor) -> Tensor:
    return ((logits - targets) ** 2).mean(1)  # [b, 1] - [b] is [b, b]


def squeeze(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.squeeze(1) - targets) ** 2


def contrast(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, 0].softmax(0)


def take_pairs(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits[:, 0] - logits[:, 3]) * targets  # another model's outputs


def drop(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, 0] * torch.rand(len(logits))


@pytest.mark.parametrize(
    ("data", "loss", "words"),
    [
        (NUMBERS, broadcast, "targets [batch]: take logits.squeeze(1)"),
        (make_data(), contrast, "right for a contrastive loss"),
        (NUMBERS, squeeze, ""),
        (make_data(), partial(pick), ""),
        (make_data(), take_pairs, ""),
        (make_data(), drop, ""),
        (make_data(y=torch.zeros_like(Y)), pick, ""),
    ],
)
def test_a_loss_that_mixes_samples_is_told(data: Any, loss: Loss, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn.cache_clear()
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    check_task(data, loss, {}, "val/loss")
    check_task(data, loss, {}, "val/loss")
    told = capsys.readouterr().err
    assert torch.equal(torch.randn(3), expected)
    assert (words in told, bool(told)) == (True, bool(words))
    name = getattr(loss, "__name__", "")
    assert not words or told.count(f"test_task.{name} ({__file__}:") == 1


def cut(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, 0].detach()


def need(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return logits[:, 0]


def test_a_loss_without_a_gradient_or_of_more_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss: .*test_task.cut \(.*test_task.py:\d+\): its numbers have no gradient"):
        check_task(make_data(), cut, {}, "val/loss")
    check_task(make_data(), cut, {}, "val/loss", tries_loss=False)
    with pytest.raises(ValueError, match=r"test_task.need .*with \(logits, targets\): missing .*'reduction'"):
        check_task(make_data(), need, {}, "val/loss")  # type: ignore[arg-type]
    check_task(make_data(), partial(need, reduction="sum"), {}, "val/loss")


class Foreign(Callback):
    def on_train_end(self, trainer: Any) -> None: ...


def of_one(step: int) -> float:
    return 1.0


def decay(step: int, steps: int, power: float = 1.0) -> float:
    return float((1 - step / steps) ** power)


DOUBLE = make_data(x=X.double())


@pytest.mark.parametrize(
    ("model", "schedule", "callback", "data", "message"),
    [
        (
            nn.Linear(4, 3),
            of_one,
            Callback(),
            make_data(),
            r"schedule: .*of_one .*with \(step, steps\): too many",
        ),
        (nn.Linear(4, 3), 3e-4, Callback(), make_data(), "schedule: a float is no function of step and steps"),
        (nn.Linear(4, 3), decay, object(), make_data(), "callbacks: builtins.object is no Callback\nderive it"),
        (nn.Linear(4, 3), decay, Foreign(), make_data(), "Foreign .* has on_train_end, which is never called\n.* on_gradients"),
        (nn.Linear(4, 3), decay, Callback(), DOUBLE, "the inputs are float64, .*\ngive inputs.float"),
        (nn.Linear(4, 3).double(), decay, Callback(), DOUBLE, ""),
        (nn.Linear(4, 3), partial(decay, power=2.0), Callback(), make_data(), ""),
    ],
)
def test_parts_that_do_not_fit_a_run_are_refused(model: Any, schedule: Any, callback: Any, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_parts(model, schedule, [callback], data)


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None: ...


class Fill(nn.Module):
    """Logits of one shape, whatever the inputs."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), *self.shape)


@pytest.mark.parametrize(
    ("model", "shape", "loss", "message"),
    [
        (Silent(), Vectors(4, 3), classification, r"model: .*test_task.Silent \(.*:\d+\) returns a NoneType"),
        (Fill(2), Vectors(4, 3), classification, "Fill .* returns 2 logits, the data have 3 classes\ntake their number"),
        (Fill(5), Vectors(4, 3), classification, "returns 5 logits, the data have 3 classes"),
        (Fill(5), Vectors(4, 3), pick, ""),
        (Fill(3), Vectors(4, 3), classification, ""),
        (Fill(4, 7), Tokens(7, 4), last_token, ""),
        (Fill(1, 8), Tokens(7, 4), last_token, ""),  # a vocabulary that is rounded up
        (Fill(4, 6), Tokens(7, 4), last_token, "returns 6 logits, the data have 7 tokens"),
        (Fill(4, 8), Tokens(7, 4, num_classes=3), last_token, "returns 8 logits, the data have 3 classes"),
    ],
)
def test_a_model_gives_a_logit_a_class(model: nn.Module, shape: Any, loss: Loss, message: str) -> None:
    run = partial(Supervised(loss, shape), model, torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        assert run().shape == (2,)
