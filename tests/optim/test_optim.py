"""The filters against the paper's formula, resume, and the schedules."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from research.optim import grokfast
from research.optim.muon import Muon
from research.optim.param_groups import build_param_groups, from_base
from research.optim.schedules import bitnet, constant, cosine, wsd

BASES: list[Any] = [partial(AdamW, fused=True), partial(AdamW), partial(SGD, momentum=0.9), partial(Muon)]
FILTERS: list[Any] = [partial(grokfast.ema, alpha=0.9, lamb=2.0), partial(grokfast.ma, window=4, lamb=2.0)]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3))


def make_gradients(net: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in net.parameters()]


def run(net: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        for p, g in zip(net.parameters(), make_gradients(net, step), strict=True):
            p.grad = g.clone()
        optimizer.step()


def is_same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_ema_is_the_papers_formula() -> None:
    """2405.20233, Algorithm 2, one weight at a time with SGD: w <- w - lr (g + lamb mu)."""
    net, alpha, lamb, lr = make_model(), 0.9, 2.0, 0.1
    expected = [p.detach().clone() for p in net.parameters()]
    mu: list[torch.Tensor] = []
    for step in range(6):
        grads = make_gradients(net, step)
        mu = [alpha * m + (1 - alpha) * g for m, g in zip(mu or grads, grads, strict=True)]
        expected = [w - lr * (g + lamb * m) for w, g, m in zip(expected, grads, mu, strict=True)]
    run(net, grokfast.ema(net, partial(SGD), lr, alpha, lamb), 0, 6)
    for p, e in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


def test_ma_is_the_papers_formula() -> None:
    """2405.20233, Algorithm 1, off until the window is full: w <- w - lr (g + lamb mean of the last w gradients)."""
    net, window, lamb, lr = make_model(), 3, 5.0, 0.1
    expected, past = [p.detach().clone() for p in net.parameters()], []
    for step in range(11):
        past = [*past, make_gradients(net, step)][-window:]
        for i, g in enumerate(past[-1]):
            slow = sum(p[i] for p in past) / window if len(past) == window else 0
            expected[i] = expected[i] - lr * (g + lamb * slow)
    run(net, grokfast.ma(net, partial(SGD), lr, window, lamb), 0, 11)
    for p, e in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("build", FILTERS)
def test_resume_is_exact_to_the_bit(base: Any, build: Any, tmp_path: Any) -> None:
    whole, part = make_model(), make_model()
    run(whole, build(whole, base, 0.01, weight_decay=0.1), 0, 13)
    first = build(part, base, 0.01, weight_decay=0.1)
    run(part, first, 0, 7)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = build(part, base, 0.01, weight_decay=0.1)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(part, second, 7, 13)
    assert is_same(whole, part)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("build", [partial(grokfast.ema, lamb=0.0), partial(grokfast.ma, lamb=0.0)])
def test_lamb_zero_is_the_base(base: Any, build: Any) -> None:
    a, b = make_model(), make_model()
    filtered = build(a, base, 0.01, weight_decay=0.1)
    run(a, filtered, 0, 5)
    run(b, from_base(b, base, 0.01, weight_decay=0.1), 0, 5)
    assert is_same(a, b)
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
        for i, g in enumerate(make_gradients(net, step)):
            slow = (g + make_gradients(net, step - 1)[i]) / 2 if step > 5 else 0
            expected[i] = expected[i] - lr * (g + lamb * slow)
    run(net, optimizer, 5, 8)
    for p, e in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


@pytest.mark.parametrize("build", FILTERS)
def test_hooks_are_called_once_a_step(build: Any) -> None:
    """torch wraps a class's step once a plain object of it was made: ours must not be wrapped twice."""
    net = make_model()
    AdamW(net.parameters())
    optimizer, calls = build(net, partial(AdamW), 0.01), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    run(net, optimizer, 0, 1)
    assert calls == ["before", "after"]


def test_a_late_first_gradient_and_a_missing_one() -> None:
    net = make_model()
    optimizer = grokfast.ema(net, partial(AdamW), 0.01)
    parameters = list(net.parameters())
    for step in range(4):
        for i, (p, g) in enumerate(zip(parameters, make_gradients(net, step), strict=True)):
            p.grad = g if step >= 2 or i % 2 else None
        optimizer.step()
    assert all("grokfast_ema" in optimizer.state[p] for p in parameters)


def test_weight_decay_skips_norms_and_biases() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(3, 4), "norm": nn.RMSNorm(4), "head": nn.Linear(4, 3)})
    decayed, skipped = build_param_groups(net, 0.5, ["norm", "bias"])
    assert [n for n, _ in decayed["params"]] == ["embed.weight", "head.weight"]
    assert [n for n, _ in skipped["params"]] == ["norm.weight", "head.bias"]
    assert (decayed["weight_decay"], skipped["weight_decay"]) == (0.5, 0.0)


@given(step=st.integers(0, 999), warmup=st.integers(0, 50))
def test_schedules_stay_in_range_and_end_low(step: int, warmup: int) -> None:
    for schedule in (constant, cosine, wsd):
        assert 0 <= schedule(step, 1000, warmup) <= 1
    assert cosine(999, 1000, warmup, 0.1) == pytest.approx(0.1)
    assert wsd(999, 1000, warmup) == pytest.approx(0, abs=0.01)
    assert wsd(step, 1000, 0, decay=0.0) == 1
    assert constant(0, 1000, 10) == pytest.approx(0.1)


def test_schedules_have_the_values_of_their_formulas() -> None:
    assert [wsd(step, 10, 2, decay=0.5) for step in range(10)] == pytest.approx([0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])
    assert [cosine(step, 5, 0, floor=0.0) for step in range(5)] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert [constant(step, 5, 2) for step in range(3)] == pytest.approx([0.5, 1, 1])
    lrs, decays = zip(*(bitnet(step, 9, 0, middle=0.5, cooldown=0.4) for step in range(9)), strict=True)
    assert lrs == pytest.approx([1, 0.961940, 0.853553, 0.691342, 0.4, 0.341421, 0.2, 0.058579, 0], abs=1e-6)
    assert decays == (*lrs[:4], 0, 0, 0, 0, 0), "a cosine too, and none in the second stage"
    assert bitnet(0, 9, 4)[0] == pytest.approx(0.25)
    assert bitnet(0, 9, 4)[1] == 1, "the warm-up is of lr alone"


@given(middle=st.floats(0.01, 0.99), cooldown=st.floats(0.01, 0.99), steps=st.integers(2, 200))
def test_the_second_stage_never_raises_the_rate(middle: float, cooldown: float, steps: int) -> None:
    lrs = [bitnet(step, steps, 0, middle, cooldown)[0] for step in range(steps)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(lrs))
    assert lrs[0] == 1
    assert lrs[-1] == pytest.approx(0, abs=1e-12)
