"""Grokfast, its cousins and controls: each learns, resumes to the bit, works in bf16, and is its paper's formula."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from program import ROOT
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from research import losses
from research.data.modular import modular
from research.models.transformer import Transformer
from research.optim import grokfast
from research.optim.ademamix import AVERAGES, AdEMAMix, schedule_alpha, schedule_beta3
from research.optim.muon import Muon
from research.optim.orthograd import orthogonalize_gradients, orthograd
from research.optim.param_groups import from_base
from research.preflight.check import find_mistakes
from research.training import nonfinite

DATA = modular(p=7)


class Case(NamedTuple):
    """One row of the table."""

    build: Callable[[nn.Module], Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor] = losses.last_token
    float32_state: tuple[str, ...] = ()  # parts of the state that stay in float32
    max_loss_ratio: float = 0.6  # of the loss, at most


def bind_optimizer(builder: Any, base: Any, lr: float, **settings: Any) -> Callable[[nn.Module], Optimizer]:
    return partial(builder, base=base, lr=lr, weight_decay=0.1, **settings)


ADAMW = partial(AdamW, betas=(0.9, 0.98), fused=True)
CASES = {
    "adamw": Case(bind_optimizer(from_base, ADAMW, 1e-2)),
    "momentum": Case(bind_optimizer(from_base, partial(AdamW, betas=(0.98, 0.98), fused=True), 1e-2)),
    "ademamix": Case(
        bind_optimizer(from_base, partial(AdEMAMix, betas=(0.9, 0.98, 0.99), t_alpha=20, t_beta3=25), 3e-3),
        float32_state=AVERAGES,
    ),
    "orthograd adamw": Case(bind_optimizer(orthograd, ADAMW, 1e-2)),
    "orthograd sgd": Case(bind_optimizer(orthograd, partial(SGD, momentum=0.9), 3e-2), max_loss_ratio=0.8),
    "muon": Case(bind_optimizer(from_base, partial(Muon), 1e-2)),
    "grokfast.ema": Case(bind_optimizer(grokfast.ema, ADAMW, 1e-2), float32_state=("grokfast_ema",)),
    "grokfast.ma": Case(bind_optimizer(grokfast.ma, ADAMW, 1e-2, window=5)),
    "stablemax": Case(bind_optimizer(from_base, ADAMW, 1e-2), losses.stablemax),
}
TYPES = [torch.float32, torch.bfloat16]
all_cases = pytest.mark.parametrize("name", CASES)
all_dtypes = pytest.mark.parametrize("dtype", TYPES, ids=["fp32", "bf16"])


def make_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(DATA.shape, 16, 1, 2, nn.Linear).to(dtype)


def fit(net: nn.Module, optimizer: Optimizer, case: Case, steps: int) -> list[float]:
    """All training samples at once."""
    seen = []
    for _ in range(steps):
        loss = case.loss(net(DATA.train.inputs), DATA.train.targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@all_cases
@all_dtypes
def test_each_lowers_the_loss(name: str, dtype: torch.dtype) -> None:
    case, net = CASES[name], make_model(dtype)
    optimizer = case.build(net)
    seen = fit(net, optimizer, case, 40)
    assert seen[0] > 1.5
    assert seen[-1] < case.max_loss_ratio * seen[0]
    assert all(torch.isfinite(p).all() and p.dtype == dtype for p in net.parameters())
    for p in net.parameters():
        assert all(optimizer.state[p][key].dtype == torch.float32 for key in case.float32_state)


@all_cases
@all_dtypes
def test_each_resumes_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    case, whole, part, later = CASES[name], make_model(dtype), make_model(dtype), make_model(dtype)
    expected = fit(whole, case.build(whole), case, 17)
    first = case.build(part)
    seen = fit(part, first, case, 8)
    torch.save({"model": part.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    later.load_state_dict(saved["model"])
    second = case.build(later)
    second.load_state_dict(saved["optimizer"])
    assert seen + fit(later, second, case, 9) == expected
    assert all(torch.equal(p, q) for p, q in zip(later.parameters(), whole.parameters(), strict=True))
    for p in later.parameters():
        assert all(second.state[p][key].dtype == torch.float32 for key in case.float32_state)


@pytest.mark.parametrize("beta1", [0.9, 0.0])
@pytest.mark.parametrize(("t_alpha", "t_beta3"), [(None, None), (20, 30), (200, 1)])
def test_ademamix_is_the_papers_algorithm(t_alpha: int | None, t_beta3: int | None, beta1: float) -> None:
    """2409.03137, Algorithm 1, with the schedules of its section 3, in NumPy and float64."""
    beta2, beta3, alpha, lr, decay, eps = 0.99, 0.999, 5.0, 0.01, 0.1, 1e-8
    generator = np.random.default_rng(0)
    theta, grads = generator.normal(size=(3, 2)), generator.normal(size=(50, 3, 2))
    p = nn.Parameter(torch.tensor(theta))
    settings = {"alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3, "eps": eps, "weight_decay": decay}
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
        step = (m1 / (1 - beta1**t) + mix * m2) / (np.sqrt(v / (1 - beta2**t)) + eps)
        theta = theta - lr * (step + decay * theta)
        p.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=1e-4 if beta1 == 0 and t_beta3 else 1e-10)
    assert optimizer.state[p]["step"].dtype == torch.float32


@given(t=st.integers(1, 99), beta1=st.floats(0.1, 0.95), beta3=st.floats(0.96, 0.99999))
def test_the_half_life_of_the_slow_average_rises_in_a_straight_line(t: int, beta1: float, beta3: float) -> None:
    def compute_half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta)

    found = compute_half_life(schedule_beta3(t, (beta1, 0.999, beta3), 100))
    assert found == pytest.approx((1 - t / 100) * compute_half_life(beta1) + t / 100 * compute_half_life(beta3), rel=1e-6)
    assert schedule_beta3(100 + t, (beta1, 0.999, beta3), 100) == schedule_beta3(t, (beta1, 0.999, beta3), None) == beta3
    assert schedule_alpha(t, 5.0, 100) == pytest.approx(t / 20)
    assert schedule_alpha(100 + t, 5.0, 100) == schedule_alpha(t, 5.0, None) == 5


def test_ademamix_without_its_slow_average_is_adamw() -> None:
    ours, torchs = make_model(torch.float32), make_model(torch.float32)
    case = CASES["adamw"]
    fit(ours, from_base(ours, partial(AdEMAMix, betas=(0.9, 0.98, 0.999), alpha=0.0), 1e-2, 0.1), case, 20)
    fit(torchs, from_base(torchs, partial(AdamW, betas=(0.9, 0.98)), 1e-2, 0.1), case, 20)
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
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
        ({"betas": (0.9, 0.999)}, r"optim.base.betas=\[0.9, 0.999\]: give three numbers"),
        ({"betas": (0.9, 1.0, 0.9999)}, r"optim.base.betas=.* in \[0, 1\)"),
        ({"betas": (0.9, 0.98, 0.5)}, "optim.base.betas=.* the third"),
        ({"betas": (0.0, 0.98, 0.0)}, "optim.base.betas=.* the third"),
        ({"alpha": -1.0}, "optim.base.alpha=-1.0: give at least 0"),
        ({"alpha": math.nan}, "optim.base.alpha=nan"),
        ({"t_alpha": 0}, "optim.base.t_alpha=0: give at least 1"),
        ({"t_beta3": -5}, "optim.base.t_beta3=-5"),
    ],
)
def test_wrong_settings_of_ademamix(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdEMAMix([nn.Parameter(torch.ones(2))], **wrong)


def apply_orthograd(w: Tensor, g: Tensor) -> Tensor:
    """A gradient as OrthoGrad leaves it: the very tensor."""
    p = nn.Parameter(w.clone())
    p.grad = grad = g.clone()
    orthogonalize_gradients([p])
    assert p.grad is grad
    assert torch.equal(p, w)
    return grad


NUMBERS = st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12)


@given(pairs=PAIRS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_turned_gradient_is_across_the_weights_and_as_long(pairs: list[tuple[float, float]], dtype: torch.dtype) -> None:
    """2501.04697: g - (w.g / w.w) w, at the length of g."""
    w, g = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    perp = g - (w @ g) / (w @ w + 1e-30) * w
    left = float(perp.norm() / g.norm()) if g.any() else 0.0
    found = apply_orthograd(w.to(dtype), g.to(dtype)).double()
    assert torch.isfinite(found).all()
    if left > 1e-2:  # else rounding has a say
        torch.testing.assert_close(found, perp * (g.norm() / perp.norm()), rtol=1e-3, atol=1e-4 * float(g.norm()))
        assert float(found.norm()) == pytest.approx(float(g.norm()), rel=1e-5)
        assert abs(float(found @ w)) <= 1e-4 * float(found.norm() * w.norm())


def test_where_there_is_nothing_to_turn_nothing_is_harmed() -> None:
    w, g = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(apply_orthograd(torch.zeros_like(w), g), g), "weights of zero have no direction"
    assert torch.equal(apply_orthograd(w, torch.zeros_like(g)), torch.zeros_like(g))
    assert not apply_orthograd(w, 3 * w).any(), "what rounding leaves of a gradient along the weights is no direction"
    assert torch.equal(apply_orthograd(torch.ones(1), torch.ones(1)), torch.ones(1)), "a single number has no other direction"
    orthogonalize_gradients([])


@pytest.mark.parametrize("base", [ADAMW, partial(AdamW), partial(SGD, momentum=0.9), Muon, AdEMAMix])
def test_orthograd_is_its_base_after_the_turn(base: Any) -> None:
    """State, hooks and all; a subclass of the base where that is a class."""
    AdamW([nn.Parameter(torch.ones(1))])  # torch wraps a class's step in hooks once a plain object of it was made
    ours, byhand = make_model(torch.float32), make_model(torch.float32)
    optimizer, reference, calls = orthograd(ours, partial(base), 1e-2, 0.1), from_base(byhand, partial(base), 1e-2, 0.1), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    reference.register_step_pre_hook(lambda *_: orthogonalize_gradients(list(byhand.parameters())))
    assert fit(ours, optimizer, CASES["adamw"], 4) == fit(byhand, reference, CASES["adamw"], 4)
    kind = getattr(base, "func", base)
    assert isinstance(optimizer, kind)
    assert type(optimizer).__name__ == f"OrthoGrad{kind.__name__}"
    assert calls == ["before", "after"] * 4


def test_orthograd_leaves_an_update_out_where_a_fused_base_does() -> None:
    net = make_model(torch.float32)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer: Any = orthograd(net, ADAMW, 1e-2)
    assert nonfinite.supports_found_inf(optimizer)
    assert not nonfinite.supports_found_inf(orthograd(net, partial(SGD), 1e-2))
    assert not optimizer._step_supports_amp_scaling, "the scaler is to unscale first"
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    optimizer.found_inf = torch.zeros(())
    fit(net, optimizer, CASES["adamw"], 1)
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_orthograd_wants_an_optimizer_class() -> None:
    for base, told in ((partial(LBFGS), "LBFGS computes gradients"), (partial(from_base), "from_base is no optimizer class")):
        with pytest.raises(ValueError, match=rf"optim.base._target_={told}"):
            orthograd(nn.Linear(2, 2), base, 0.1)


SHARDED = """
import os, sys, torch
from functools import partial
from torch import nn
from torch.distributed import device_mesh, init_process_group
from torch.distributed.tensor import Shard, distribute_tensor
from research.optim.ademamix import AdEMAMix
from research.optim.orthograd import orthograd

rank = 0 if (child := os.fork()) else 1
torch.set_num_threads(1)
init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
mesh = device_mesh.init_device_mesh("cpu", (2,))
for build in (partial(orthograd, base=partial(torch.optim.SGD), lr=0.1),
              lambda net: AdEMAMix(net.parameters(), 0.1, (0.9, 0.98, 0.99), t_alpha=3, t_beta3=3)):
    torch.manual_seed(0)
    whole, spread = nn.Linear(3, 5), nn.Linear(3, 5)
    for name, p in whole.named_parameters():
        setattr(spread, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
    a, b = build(whole), build(spread)
    for step in range(3):
        for p, q in zip(whole.parameters(), spread.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        a.step(), b.step()
    for p, q in zip(whole.parameters(), spread.parameters()):
        torch.testing.assert_close(p.detach(), q.detach().full_tensor())
torch.distributed.destroy_process_group()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


def test_sharded_weights_step_as_whole_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "meet")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]


def compute_stablemax_loss(x: Tensor, target: int) -> float:
    """2501.04697, StableMax: -log(s_i / sum s), s(x) = x + 1 from 0 on, 1 / (1 - x) below."""
    s = [float(v) + 1 if v >= 0 else 1 / (1 - float(v)) for v in x.double()]
    return -math.log(s[target] / math.fsum(s))


@given(numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=9))
def test_stablemax_is_the_papers_formula(numbers: list[float]) -> None:
    x = torch.tensor([numbers])
    for target in range(len(numbers)):
        assert losses.stablemax(x, torch.tensor([target])).item() == pytest.approx(
            compute_stablemax_loss(x[0], target), rel=1e-5, abs=1e-5
        )


def test_stablemax_judges_what_each_kind_of_task_asks() -> None:
    logits = 10 * torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, losses.IGNORE, 0], [4, 2, losses.IGNORE]])
    found = losses.stablemax(logits, targets)
    for row, column in ((0, 0), (0, 2), (1, 0), (1, 1)):
        assert found[row, column].item() == pytest.approx(
            compute_stablemax_loss(logits[row, column], int(targets[row, column])), rel=1e-5
        )
    assert found[0, 1] == found[1, 2] == 0
    at_the_end = losses.stablemax(logits, targets[:, 0])
    assert torch.equal(at_the_end, losses.stablemax(logits[:, -1], targets[:, 0]))
    assert at_the_end[0].item() == pytest.approx(compute_stablemax_loss(logits[0, -1], 1), rel=1e-5)
    assert losses.stablemax(logits.bfloat16(), targets).dtype == torch.float32
    assert losses.stablemax(logits.double(), targets).dtype == torch.float64


def test_the_gradients_of_stablemax() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(4, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.stablemax(x, torch.tensor([0, 1, 4, losses.IGNORE])), x)
    zero = torch.zeros(1, 4, requires_grad=True)  # both branches meet here, at slope 1: as softmax's
    losses.stablemax(zero, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(zero.grad, torch.tensor([[0.25, -0.75, 0.25, 0.25]]))
    far = torch.tensor([[1e30, -1e30, 0.0, 3.0]]).repeat(4, 1).requires_grad_()
    found = losses.stablemax(far, torch.arange(4))
    found.sum().backward()
    assert found.tolist() == pytest.approx([0, 2 * math.log(1e30), math.log(1e30), math.log(1e30 / 4)], rel=1e-5, abs=1e-5)
    assert torch.isfinite(far.grad).all()  # type: ignore[arg-type]
    sure, soft = torch.tensor([[60.0, -60.0]]), torch.tensor([[0.0, 120.0]])
    assert F.cross_entropy(sure, torch.tensor([0])) == 0, "softmax has nothing left to teach"
    assert losses.stablemax(sure, torch.tensor([0])) > 1e-4
    assert losses.stablemax(soft, torch.tensor([1])) > 1e-3


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["optim=ademamix", "optim.base.alpha=-1"], ["optim.base.alpha takes a number in [0, inf)", "got -1"]),
        (["optim=ademamix", "optim.base.t_alpha=0"], ["optim.base.t_alpha takes a whole number in [1, inf) or null"]),
        (["optim=ademamix", "optim.base.eps=0"], ["no key 'optim.base.eps'"]),
        (["optim=orthograd", "optim.weight_decay=-1"], ["optim.weight_decay takes a number in [0, inf)"]),
        (["data=modular", "loss=classification"], ["loss=classification does not fit data=modular"]),
    ],
)
def test_the_command_line_refuses_wrong_settings(overrides: list[str], messages: list[str]) -> None:
    found = "\n".join(find_mistakes(overrides, False))
    assert all(text in found for text in messages)


@pytest.mark.parametrize(
    "right",
    [
        ["optim=ademamix", "optim.base.t_alpha=null"],
        ["optim=orthograd", "optim.base._target_=torch.optim.RAdam", "~optim.base.fused"],
        ["optim=momentum"],
        ["data=modular", "loss=stablemax"],
        ["data=text", "loss=stablemax"],
        ["model=mlp", "data=digits", "loss=stablemax"],
    ],
)
def test_the_command_line_takes_right_ones(right: list[str]) -> None:
    assert not find_mistakes(right, False)
