"""Tests of the objectives that the loop trains by; the losses themselves are tested by training."""

import pytest
import torch
from torch import nn

from research.losses import IGNORE, Loss, check_losses, classification, next_token, num_valid_targets
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
