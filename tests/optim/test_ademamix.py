"""AdEMAMix against its paper's algorithm."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from research.optim.ademamix import AdEMAMix, schedule_alpha, schedule_beta3
from research.optim.param_groups import from_base


@pytest.mark.parametrize("beta1", [0.9, 0.0])
@pytest.mark.parametrize(("t_alpha", "t_beta3"), [(None, None), (20, 30), (200, 1)])
def test_ademamix_equals_the_papers_algorithm(t_alpha: int | None, t_beta3: int | None, beta1: float) -> None:
    """2409.03137, Algorithm 1, with the schedules of its section 3, in NumPy and float64."""
    beta2, beta3, alpha, lr, decay, eps = 0.99, 0.999, 5.0, 0.01, 0.1, 1e-8
    generator = np.random.default_rng(0)
    theta, grads = generator.normal(size=(3, 2)), generator.normal(size=(50, 3, 2))
    p = nn.Parameter(torch.tensor(theta))
    settings: dict[str, Any] = {"alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3, "eps": eps, "weight_decay": decay}
    optimizer = AdEMAMix([p], lr, (beta1, beta2, beta3), **settings)
    m1 = m2 = v = np.zeros((3, 2))
    for t, g in enumerate(grads, start=1):
        mix, slow = alpha, beta3
        if t_alpha:
            mix = min(t * alpha / t_alpha, alpha)
        if t_beta3 and t < t_beta3:
            share, low = t / t_beta3, math.log(beta1 or 1e-300)
            slow = min(math.exp(low * math.log(beta3) / ((1 - share) * math.log(beta3) + share * low)), beta3)
        m1 = beta1 * m1 + (1 - beta1) * g
        m2 = slow * m2 + (1 - slow) * g
        v = beta2 * v + (1 - beta2) * g**2
        update = (m1 / (1 - beta1**t) + mix * m2) / (np.sqrt(v / (1 - beta2**t)) + eps)
        theta = theta - lr * (update + decay * theta)
        p.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=1e-4 if beta1 == 0 and t_beta3 else 1e-10)
    assert optimizer.state[p]["step"].dtype == torch.float32


@given(t=st.integers(1, 99), beta1=st.floats(0.1, 0.95), beta3=st.floats(0.96, 0.99999))
def test_the_half_life_of_the_slow_average_rises_linearly(t: int, beta1: float, beta3: float) -> None:
    def compute_half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta)

    half_life = compute_half_life(schedule_beta3(t, (beta1, 0.999, beta3), 100))
    assert half_life == pytest.approx((1 - t / 100) * compute_half_life(beta1) + t / 100 * compute_half_life(beta3), rel=1e-6)
    assert schedule_beta3(100 + t, (beta1, 0.999, beta3), 100) == schedule_beta3(t, (beta1, 0.999, beta3), None) == beta3
    assert schedule_alpha(t, 5.0, 100) == pytest.approx(t / 20)
    assert schedule_alpha(100 + t, 5.0, 100) == schedule_alpha(t, 5.0, None) == 5


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def test_ademamix_without_its_slow_average_is_adamw() -> None:
    ours, reference = make_model(), make_model()
    optimizers = (
        from_base(ours, partial(AdEMAMix, betas=(0.9, 0.98, 0.999), alpha=0.0), 1e-2, 0.1),
        from_base(reference, partial(AdamW, betas=(0.9, 0.98)), 1e-2, 0.1),
    )
    for step in range(20):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((ours, reference), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_ademamix_counts_each_parameters_own_steps() -> None:
    early, late, alone = (nn.Parameter(torch.ones(3)) for _ in range(3))
    both, one = AdEMAMix([early, late], t_alpha=3, t_beta3=3), AdEMAMix([alone], t_alpha=3, t_beta3=3)
    for step in range(4):
        early.grad, late.grad = torch.ones(3), torch.ones(3) if step >= 2 else None
        both.step()
    for _ in range(2):
        alone.grad = torch.ones(3)
        one.step()
    assert torch.equal(late, alone)
    assert [int(both.state[p]["step"]) for p in (early, late)] == [4, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"betas": (0.9, 0.999)}, r"optim.base.betas=\[0.9, 0.999\]: AdEMAMix has three"),
        ({"betas": (0.9, 1.0, 0.9999)}, r"optim.base.betas takes a list of numbers in \[0, 1\)"),
        ({"betas": (0.9, 0.98, 0.5)}, "optim.base.betas=.* the third"),
        ({"betas": (0.0, 0.98, 0.0)}, "optim.base.betas=.* the third"),
        ({"alpha": -1.0}, "optim.base.alpha takes .* got -1.0"),
        ({"alpha": math.nan}, "optim.base.alpha takes .* got NaN"),
        ({"t_alpha": 0}, "optim.base.t_alpha takes .* got 0"),
        ({"t_beta3": -5}, "optim.base.t_beta3 takes .* got -5"),
    ],
)
def test_wrong_settings_of_ademamix(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdEMAMix([nn.Parameter(torch.ones(2))], **wrong)
