"""Losses, their settings, and the objectives that the loop trains by."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fitting import fit
from omegaconf import OmegaConf
from torch import Tensor, nn

from research.data.digits import digits
from research.data.spec import Dataset
from research.load import explain_missing, instantiate
from research.losses import (
    IGNORE,
    Loss,
    check_losses,
    classification,
    last_token,
    make_plain,
    next_token,
    num_valid_targets,
    per_pixel,
    regression,
)
from research.training.evaluate import evaluate
from research.training.task import check_task
from research.training.trainer import Supervised

MODEL = nn.Linear(4, 3)
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, IGNORE])


def test_supervised_returns_one_loss_per_target() -> None:
    losses = Supervised(classification)(MODEL, X, Y)
    assert losses.shape == Y.shape
    assert losses.requires_grad
    torch.testing.assert_close(losses, classification(MODEL(X), Y))
    assert losses[-1] == 0
    assert num_valid_targets(Y) == 4


def test_supervised_keeps_the_positions_of_a_sequence() -> None:
    model = nn.Embedding(7, 7)
    tokens = torch.arange(6).view(2, 3)
    assert Supervised(next_token)(model, tokens, tokens).shape == (2, 3)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (nn.functional.cross_entropy, "()"),
        (lambda logits, targets: logits, "(5, 3)"),
        (lambda logits, targets: classification(logits, targets).sum()[None], "(1,)"),
    ],
)
def test_a_loss_of_another_shape_is_refused(loss: Loss, shape: str) -> None:
    with pytest.raises(ValueError, match="one number a target") as error:
        check_losses(Supervised(loss)(MODEL, X, Y), Y)
    message = str(error.value)
    assert f"shape {shape}" in message
    assert "(5,)" in message
    assert 'reduction="none"' in message


SETTINGS: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.01, "class_weights": [1.0, 0.5, 2.0, 3.0, 0.25]}
SHAPES = [(classification, (6, 5), (6,)), (last_token, (6, 3, 5), (6,)), (next_token, (6, 3, 5), (6, 3)),
          (per_pixel, (2, 5, 3, 4), (2, 3, 4))]  # fmt: skip


def make_task(logits: tuple[int, ...], targets: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(5, targets, generator=generator)
    y.view(-1)[1] = IGNORE
    return torch.randn(logits, generator=generator), y


@pytest.mark.parametrize(("loss", "logits", "targets"), SHAPES)
@pytest.mark.parametrize("names", [(), ("label_smoothing",), ("class_weights",), ("z_loss",), tuple(SETTINGS)])
def test_settings_are_those_of_torch(
    loss: Loss, logits: tuple[int, ...], targets: tuple[int, ...], names: tuple[str, ...]
) -> None:
    """Every loss is torch's cross entropy with its settings, and z_loss times log^2 Z beside it; IGNORE costs nothing."""
    x, y = make_task(logits, targets)
    settings = {name: SETTINGS[name] for name in names}
    losses = partial(loss, **settings)(x, y)
    rows = x[:, -1] if loss is last_token else x.movedim(-1, 1) if loss is next_token else x
    weights = torch.tensor(SETTINGS["class_weights"]) if "class_weights" in names else None
    smoothing = settings.get("label_smoothing", 0.0)
    expected = F.cross_entropy(rows, y, weights, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing)
    expected = expected + settings.get("z_loss", 0.0) * rows.exp().sum(1).log() ** 2 * (y != IGNORE)
    torch.testing.assert_close(losses, expected)
    assert losses.view(-1)[1] == 0
    assert losses.shape == y.shape


@pytest.mark.parametrize(("loss", "logits", "targets"), SHAPES)
def test_evaluations_judge_by_the_plain_loss(loss: Loss, logits: tuple[int, ...], targets: tuple[int, ...]) -> None:
    x, y = make_task(logits, targets)
    assert torch.equal(make_plain(partial(loss, **SETTINGS))(x, y), loss(x, y))
    assert make_plain(loss) is loss


def test_the_settings_of_ones_own_loss_stay_in_evaluations() -> None:
    def own(logits: Tensor, targets: Tensor, *, z_loss: float, power: float = 2.0, label_smoothing: float = 0.0) -> Tensor:
        return logits[:, 0] * 0 + z_loss + power + label_smoothing

    x, y = make_task((6, 5), (6,))
    assert make_plain(partial(own, z_loss=5.0, power=3.0, label_smoothing=0.5))(x, y).tolist() == [8.0] * 6


def test_weights_are_not_rounded_in_half_precision() -> None:
    x, y = make_task((6, 5), (6,))
    weighted = classification(x.bfloat16(), y, class_weights=[0.1] * 5)
    torch.testing.assert_close(weighted, 0.1 * F.cross_entropy(x.bfloat16().float(), y, reduction="none"))


@pytest.mark.parametrize(("kind", "expected"), [("mse", [4.0, 0.25]), ("mae", [2.0, 0.5]), ("huber", [1.5, 0.125])])
def test_regression_keeps_numbers(kind: str, expected: list[float]) -> None:
    outputs, targets = torch.tensor([[3.0], [0.5]]), torch.tensor([1.0, 1.0])
    assert regression(outputs, targets, kind=kind).tolist() == expected  # type: ignore[arg-type]
    both = regression(torch.cat((outputs, outputs), 1), torch.ones(2, 2), kind=kind)  # type: ignore[arg-type]
    assert both.tolist() == [[number] * 2 for number in expected]


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2), r"outputs of shape \(2, 3\) and targets of \(2,\) do not fit"),
        (
            torch.zeros(2, 1),
            torch.zeros(2, dtype=torch.int64),
            r"targets are int64, this loss takes numbers\ngive targets.float",
        ),
    ],
)
def test_regression_refuses_what_is_no_pair_of_numbers(outputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regression(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        (partial(classification, class_weights=[1.0, 2.0]), digits(), r"class_weights has 2 numbers, the data have 10 classes"),
        (partial(classification, label_smoothing=1.0), digits(), r"loss.label_smoothing takes a number in \[0, 1\); got 1.0"),
        (
            partial(classification, class_weights=[1.0, 0.0]),
            digits(),
            r"loss.class_weights takes a list of numbers in \(0, inf\)",
        ),
        (regression, digits(), "this loss takes numbers"),
    ],
)
def test_a_loss_that_does_not_fit_the_data_is_refused(loss: Loss, data: Dataset[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task(data, loss, {}, "val/loss")


def test_a_loss_that_is_called_when_it_is_built_is_answered() -> None:
    node = OmegaConf.create({"_target_": "research.losses.regression", "kind": "mae"})
    with pytest.raises(
        ValueError, match=r"research.losses.regression: .*missing .* required.*\n.* needs _partial_: true in its yaml"
    ):
        instantiate(node, key="loss")


def test_what_a_data_set_or_a_model_lacks_is_answered() -> None:
    text = "TypeError: MemoryDataset.__init__() missing 3 required positional arguments: 'digest', 'source', and 'unit'"
    assert "digest: a text that changes with the samples" in explain_missing("data", text, "'digest', 'source', and 'unit'")
    expected = "give width where it is called, a value in the yaml below 'model', or a default"
    assert explain_missing("model", "Net() missing", "'width'") == expected


def test_the_training_loss_is_minimised_and_the_plain_one_reported(tmp_path: Path) -> None:
    smooth, plain = (fit(tmp_path / name, loss=loss, steps=1, log_every=1, eval_every=1)
                     for name, loss in (("a", partial(last_token, z_loss=1.0)), ("b", last_token)))  # fmt: skip
    assert smooth.progress.metrics["train/loss"] > 2 * plain.progress.metrics["train/loss"]
    judged = evaluate(smooth.net, smooth.val, last_token, 50)
    assert smooth.progress.metrics["val/loss"] == pytest.approx(judged["val/loss"], abs=1e-6)
