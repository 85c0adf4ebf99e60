"""StableMax against its paper's formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from research import losses


def compute_stablemax_loss(x: Tensor, target: int) -> float:
    """Return -log(s_i / sum s) with s(x) = x + 1 for x >= 0, else 1 / (1 - x) (2501.04697, StableMax)."""
    s = [float(v) + 1 if v >= 0 else 1 / (1 - float(v)) for v in x.double()]
    return -math.log(s[target] / math.fsum(s))


@given(numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=9))
def test_stablemax_equals_the_papers_formula(numbers: list[float]) -> None:
    x = torch.tensor([numbers])
    for target in range(len(numbers)):
        assert losses.stablemax(x, torch.tensor([target])).item() == pytest.approx(
            compute_stablemax_loss(x[0], target), rel=1e-5, abs=1e-5
        )


def test_stablemax_takes_the_positions_of_the_targets() -> None:
    logits = 10 * torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, losses.IGNORE, 0], [4, 2, losses.IGNORE]])
    result = losses.stablemax(logits, targets)
    for row, column in ((0, 0), (0, 2), (1, 0), (1, 1)):
        assert result[row, column].item() == pytest.approx(
            compute_stablemax_loss(logits[row, column], int(targets[row, column])), rel=1e-5
        )
    assert result[0, 1] == result[1, 2] == 0
    at_the_end = losses.stablemax(logits, targets[:, 0])
    assert torch.equal(at_the_end, losses.stablemax(logits[:, -1], targets[:, 0]))
    assert at_the_end[0].item() == pytest.approx(compute_stablemax_loss(logits[0, -1], 1), rel=1e-5)
    assert losses.stablemax(logits.bfloat16(), targets).dtype == torch.float32
    assert losses.stablemax(logits.double(), targets).dtype == torch.float64


def test_the_gradients_of_stablemax() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(4, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.stablemax(x, torch.tensor([0, 1, 4, losses.IGNORE])), x)
    zero = torch.zeros(1, 4, requires_grad=True)  # both branches meet here with slope 1, as softmax
    losses.stablemax(zero, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(zero.grad, torch.tensor([[0.25, -0.75, 0.25, 0.25]]))
    far = torch.tensor([[1e30, -1e30, 0.0, 3.0]]).repeat(4, 1).requires_grad_()
    result = losses.stablemax(far, torch.arange(4))
    result.sum().backward()
    assert result.tolist() == pytest.approx([0, 2 * math.log(1e30), math.log(1e30), math.log(1e30 / 4)], rel=1e-5, abs=1e-5)
    assert torch.isfinite(far.grad).all()  # type: ignore[arg-type]
    sure, soft = torch.tensor([[60.0, -60.0]]), torch.tensor([[0.0, 120.0]])
    assert F.cross_entropy(sure, torch.tensor([0])) == 0, "softmax has no gradient left"
    assert losses.stablemax(sure, torch.tensor([0])) > 1e-4
    assert losses.stablemax(soft, torch.tensor([1])) > 1e-3
