"""OrthoGrad against its paper's formula, over any base."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from research.optim.ademamix import AdEMAMix
from research.optim.muon import Muon
from research.optim.orthograd import orthogonalize_gradients, orthograd
from research.optim.param_groups import from_base
from research.training import nonfinite

ADAMW = partial(AdamW, betas=(0.9, 0.98), fused=True)


def apply_orthograd(w: Tensor, g: Tensor) -> Tensor:
    """Return a gradient after OrthoGrad, which changes it in place."""
    p = nn.Parameter(w.clone())
    p.grad = grad = g.clone()
    orthogonalize_gradients([p])
    assert p.grad is grad
    assert torch.equal(p, w)
    return grad


NUMBERS = st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12)


@given(pairs=PAIRS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_gradient_becomes_orthogonal_and_keeps_its_norm(pairs: list[tuple[float, float]], dtype: torch.dtype) -> None:
    """2501.04697, section 5: g - (w.g / w.w) w, scaled to the norm of g."""
    w, g = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    perp = g - (w @ g) / (w @ w + 1e-30) * w
    left = float(perp.norm() / g.norm()) if g.any() else 0.0
    result = apply_orthograd(w.to(dtype), g.to(dtype)).double()
    assert torch.isfinite(result).all()
    if left > 1e-2:  # else rounding errors count
        torch.testing.assert_close(result, perp * (g.norm() / perp.norm()), rtol=1e-3, atol=1e-4 * float(g.norm()))
        assert float(result.norm()) == pytest.approx(float(g.norm()), rel=1e-5)
        assert abs(float(result @ w)) <= 1e-4 * float(result.norm() * w.norm())


def test_gradients_without_an_orthogonal_part() -> None:
    w, g = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(apply_orthograd(torch.zeros_like(w), g), g), "zero weights have no direction"
    assert torch.equal(apply_orthograd(w, torch.zeros_like(g)), torch.zeros_like(g))
    assert not apply_orthograd(w, 3 * w).any(), "rounding errors are no direction"
    assert torch.equal(apply_orthograd(torch.ones(1), torch.ones(1)), torch.ones(1)), "a single number has no other direction"
    orthogonalize_gradients([])


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def fit(model: nn.Module, optimizer: Optimizer, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4, generator=torch.Generator().manual_seed(step))).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("base", [ADAMW, partial(AdamW), partial(SGD, momentum=0.9), Muon, AdEMAMix])
def test_orthograd_is_its_base_on_orthogonal_gradients(base: Any) -> None:
    """With the same state and hooks; a subclass of the base."""
    AdamW([nn.Parameter(torch.ones(1))])  # torch wraps the step of a class in hooks once it has an instance
    ours, reference_model = make_model(), make_model()
    optimizer, reference = orthograd(ours, partial(base), 1e-2, 0.1), from_base(reference_model, partial(base), 1e-2, 0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    reference.register_step_pre_hook(lambda *_: orthogonalize_gradients(list(reference_model.parameters())))
    assert fit(ours, optimizer, 4) == fit(reference_model, reference, 4)
    kind = getattr(base, "func", base)
    assert isinstance(optimizer, kind)
    assert type(optimizer).__name__ == f"OrthoGrad{kind.__name__}"
    assert calls == ["before", "after"] * 4


def test_orthograd_skips_an_update_as_a_fused_base_does() -> None:
    net = make_model()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer: Any = orthograd(net, ADAMW, 1e-2)
    assert nonfinite.supports_found_inf(optimizer)
    assert not nonfinite.supports_found_inf(orthograd(net, partial(SGD), 1e-2))
    assert not optimizer._step_supports_amp_scaling, "the scaler must unscale first"
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    optimizer.found_inf = torch.zeros(())
    fit(net, optimizer, 1)
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_orthograd_needs_an_optimizer_class() -> None:
    cases: list[tuple[partial[Any], str]] = [
        (partial(LBFGS), "LBFGS computes gradients"),
        (partial(from_base), "from_base is no optimizer class"),
    ]
    for base, words in cases:
        with pytest.raises(ValueError, match=rf"optim.base._target_={words}"):
            orthograd(nn.Linear(2, 2), base, 0.1)
