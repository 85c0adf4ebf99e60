"""Parts of one's own that do not fit each other are refused before a run begins: the part, its value and the fix are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int, Shaped
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from research.data.spec import Dataset, Images, Split, Tokens, Vectors, split_at_random
from research.losses import IGNORE, Loss, classification, last_token, next_token, per_pixel, regression
from research.metrics import Confidence, Metric, RowMetric, select_valid
from research.training.task import balance_classes, check_task

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
