"""The filters against the paper's formulas, and as optimizers."""

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from stepping import EMA, MA, make_gradient, make_model, make_weight
from torch import Tensor, nn
from torch.optim import ASGD, SGD, AdamW, Optimizer, RMSprop

from research.optim import grokfast
from research.optim.ademamix import AdEMAMix
from research.optim.muon import Muon
from research.optim.orthograd import orthograd
from research.optim.param_groups import from_base


def compute_slow_parts(window: int | None, alpha: float, steps: int, *shape: int) -> list[Tensor]:
    """Return the slow part of each gradient in float64: Algorithm 1 with `window`, else Algorithm 2."""
    mu, past, slow = None, list[Tensor](), list[Tensor]()
    for step in range(steps):
        g = make_gradient(step, *shape).double()
        past = [*past, g][-(window or 1) :]
        mu = g if mu is None else alpha * mu + (1 - alpha) * g
        zero = torch.zeros_like(g)
        slow.append(mu if window is None else sum(past, zero) / window if len(past) == window else zero)
    return slow


PAPERS = [(partial(grokfast.ema, alpha=0.98), None), (partial(grokfast.ma, window=100), 100)]


@pytest.mark.parametrize(("build", "window"), PAPERS)
def test_a_thousand_steps_equal_the_papers_formula(build: Any, window: int | None) -> None:
    """2405.20233, Algorithms 1 and 2: the filtered gradient within 1e-6, and SGD's step along it."""
    net, lamb, steps = make_weight(64, 8), 5.0, 1000
    optimizer = build(net, partial(SGD), 1e-3, lamb=lamb)
    (p,) = net.parameters()
    for step, slow in enumerate(compute_slow_parts(window, 0.98, steps, 64, 8)):
        p.grad, before = make_gradient(step, 64, 8), p.detach().clone()
        optimizer.step()
        assert torch.equal(p, before.sub_(p.grad, alpha=1e-3))
        expected = make_gradient(step, 64, 8).double() + lamb * slow
        assert (p.grad.double() - expected).norm() <= 1e-6 * expected.norm(), step


BASES: list[Any] = [partial(AdamW, fused=True), partial(AdamW), partial(SGD, momentum=0.9), partial(Muon)]


def run(net: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        for index, p in enumerate(net.parameters()):
            p.grad = make_gradient(100 * step + index, *p.shape)
        optimizer.step()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("build", [partial(grokfast.ema, lamb=0.0), partial(grokfast.ma, lamb=0.0)])
def test_lamb_zero_is_the_base(base: Any, build: Any) -> None:
    a, b = make_model(), make_model()
    filtered = build(a, base, 0.01, weight_decay=0.1)
    run(a, filtered, 0, 5)
    run(b, from_base(b, base, 0.01, weight_decay=0.1), 0, 5)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not any("grokfast" in key for state in filtered.state.values() for key in state)


def test_the_filter_is_an_optimizer_and_never_rebinds_gradients() -> None:
    net = make_model()
    optimizer = grokfast.ema(net, partial(AdamW, fused=True), 0.01)
    assert isinstance(optimizer, AdamW)
    assert type(optimizer).__name__ == "GrokfastAdamW"
    net(torch.randn(2, 4)).sum().backward()
    before = [p.grad for p in net.parameters()]
    optimizer.step()
    assert all(p.grad is g for p, g in zip(net.parameters(), before, strict=True))


def test_another_window_begins_empty() -> None:
    """2405.20233, Algorithm 1, after a resume with window 2 instead of 4: off for one step, then the mean of two."""
    net, lamb, lr = make_model(), 5.0, 0.1
    optimizer = grokfast.ma(net, partial(SGD), lr, 4, lamb)
    run(net, optimizer, 0, 5)
    for group in optimizer.param_groups:
        group["window"] = 2
    expected = [p.detach().clone() for p in net.parameters()]
    for step in range(5, 8):
        for i, p in enumerate(expected):
            g = make_gradient(100 * step + i, *p.shape)
            slow = (g + make_gradient(100 * (step - 1) + i, *p.shape)) / 2 if step > 5 else 0
            expected[i] = expected[i] - lr * (g + lamb * slow)
    run(net, optimizer, 5, 8)
    for p, e in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


@pytest.mark.parametrize("build", [EMA, MA])
def test_hooks_are_called_once_a_step(build: Any) -> None:
    """torch wraps the step of a class once it has an instance: ours must not be wrapped twice."""
    net = make_model()
    AdamW(net.parameters())
    optimizer, calls = build(net, partial(AdamW), 0.01), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    run(net, optimizer, 0, 1)
    assert calls == ["before", "after"]


def test_a_group_can_be_left_unfiltered_and_has_no_memory() -> None:
    embed, body = nn.Embedding(4, 3), nn.Linear(3, 3)
    net = nn.ModuleDict({"embed": embed, "body": body})
    optimizer = EMA(net, partial(SGD), 0.1, unfiltered=["embed"])
    other = SGD(net.parameters(), 0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.1, "the lr is not divided by 1 + lamb"
    assert "grokfast_ema" not in optimizer.state[embed.weight]
    assert "grokfast_ema" in optimizer.state[body.weight]
    assert embed.weight.grad is not None
    assert body.weight.grad is not None
    assert torch.equal(embed.weight.grad, torch.ones(4, 3))
    assert torch.equal(body.weight.grad, torch.full((3, 3), 3.0)), "g + 2 mu, with mu = g at first"


@pytest.mark.parametrize("build", [EMA, MA])
def test_the_filtered_gradient_can_be_clipped(build: Any) -> None:
    """By its norm over all groups; trainer.clip_norm clips the raw gradient before."""
    net = nn.Linear(3, 3)
    optimizer = build(net, partial(SGD), 1.0, weight_decay=0.1, clip_norm=0.5)
    reference = build(other := nn.Linear(3, 3), partial(SGD), 1.0, weight_decay=0.1)
    for step in range(6):
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            p.grad, q.grad = make_gradient(step, *p.shape), make_gradient(step, *p.shape)
        optimizer.step()
        reference.step()
        clipped, full = (torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (net, other))  # type: ignore[union-attr]
        torch.testing.assert_close(clipped, full * 0.5 / full.norm())


def test_a_group_that_is_added_later_is_filtered_too() -> None:
    optimizer = grokfast.ema(make_weight(3), partial(SGD), 0.1, alpha=0.5, lamb=3.0)
    optimizer.add_param_group({"params": [("late", p := nn.Parameter(torch.zeros(2)))]})
    p.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(p.grad, torch.full((2,), 4.0))


@pytest.mark.parametrize("build", [EMA, orthograd])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_is_the_same_optimizer(copied: Any, build: Any) -> None:
    net = make_weight(4)
    optimizer = build(net, partial(AdamW, fused=True), 0.1)
    (p,) = net.parameters()
    p.grad = make_gradient(0, 4)
    optimizer.step()
    again = copied(optimizer)
    (q,) = again.param_groups[0]["params"]
    assert type(again) is type(optimizer)
    assert again.supports_found_inf
    for step in (1, 2):
        p.grad, q.grad = make_gradient(step, 4), make_gradient(step, 4)
        optimizer.step()
        again.step()
    assert torch.equal(p, q)


def test_a_closure_returns_the_loss() -> None:
    net = nn.Linear(2, 1)
    optimizer: Any = EMA(net, partial(SGD), 0.1)  # torch types a closure's loss as a float; a tensor is usual

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    first, second = (optimizer.step(closure).item() for _ in range(2))
    assert 0 < second < first


@pytest.mark.parametrize("base", [partial(RMSprop, alpha=0.7), partial(ASGD), partial(AdEMAMix, alpha=8.0)])
def test_a_base_has_its_own_alpha(base: Any) -> None:
    """The base's alpha and the filter's do not mix, with a gain or without."""
    for lamb in (0.0, 2.0):
        plain, filtered = make_weight(3), make_weight(3)
        one, other = base(plain.parameters(), lr=0.1), grokfast.ema(filtered, base, 0.1, alpha=0.5, lamb=lamb)
        mu = None
        for step in range(5):
            g = make_gradient(step, 3)
            mu = g if mu is None else mu.lerp(g, 0.5)
            next(plain.parameters()).grad, next(filtered.parameters()).grad = g + lamb * mu, g.clone()
            one.step()
            other.step()
        assert torch.equal(next(plain.parameters()), next(filtered.parameters()))
