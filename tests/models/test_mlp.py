"""The multi-layer perceptron predicts classes, or one number."""

import pytest
import torch
from torch import nn

from research.data.spec import Vectors
from research.models.mlp import MLP
from research.nn.bitlinear import BitLinear


@pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_the_head_has_an_output_for_each_class_or_one_number(linear: type[nn.Linear], num_classes: int) -> None:
    torch.manual_seed(0)
    model = MLP(Vectors(5, num_classes), 8, 2, linear)
    logits = model(torch.randn(4, 5))
    assert logits.shape == (4, num_classes)
    (logits - 1).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
