"""The filters against the paper's formulas, and with difficult gradients: sparse, half precision, scaled, late, distributed."""

import copy
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ROOT
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, AdamW, Optimizer, RMSprop

from research.optim import grokfast
from research.optim.ademamix import AdEMAMix
from research.optim.muon import Muon
from research.optim.orthograd import orthograd
from research.optim.param_groups import from_base

EMA, MA = partial(grokfast.ema, alpha=0.9, lamb=2.0), partial(grokfast.ma, window=4, lamb=2.0)


def make_weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = nn.Module()
    net.register_parameter("weight", nn.Parameter(torch.zeros(shape, dtype=dtype)))
    return net


def make_gradient(step: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def compute_slow_parts(window: int | None, alpha: float, steps: int, *shape: int) -> list[Tensor]:
    """Return the slow part of each gradient in float64: Algorithm 1 with `window`, else Algorithm 2."""
    mu, past, slow = None, [], []
    for step in range(steps):
        g = make_gradient(step, *shape).double()
        past = [*past, g][-(window or 1) :]
        mu = g if mu is None else alpha * mu + (1 - alpha) * g
        slow.append(mu if window is None else sum(past) / window if len(past) == window else torch.zeros_like(g))
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


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3))


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


def test_a_late_first_gradient_and_a_missing_one() -> None:
    net = make_model()
    optimizer = grokfast.ema(net, partial(AdamW), 0.01)
    parameters = list(net.parameters())
    for step in range(4):
        for i, p in enumerate(parameters):
            p.grad = make_gradient(step, *p.shape) if step >= 2 or i % 2 else None
        optimizer.step()
    assert all("grokfast_ema" in optimizer.state[p] for p in parameters)


@pytest.mark.parametrize("build", [EMA, MA])
def test_a_sparse_gradient_is_filtered_as_a_dense_one(build: Any) -> None:
    """Every row of a sparse embedding moves as in a dense one, and p.grad stays the same tensor."""
    nets = [nn.Embedding(7, 3, sparse=sparse) for sparse in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [build(net, partial(SGD), 0.1) for net in nets]
    for step in range(9):
        index = torch.tensor([step % 7, 2, 2])
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(index).square().sum().backward()
            before = net.weight.grad
            optimizer.step()
            assert net.weight.grad is before
    assert nets[1].weight.grad is not None
    assert nets[1].weight.grad.is_sparse
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [EMA, MA])
def test_half_precision_is_filtered_in_float32(build: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """The slow part of 1 and many small gradients is not lost, and the saved state is restored exactly."""
    nets = [make_weight(5, dtype=dtype), make_weight(5)]
    optimizers = [build(net, partial(SGD), 0.0) for net in nets]
    for step in range(30):
        for net, optimizer in zip(nets, optimizers, strict=True):
            (p,) = net.parameters()
            p.grad = (make_gradient(step, 5) if step else torch.ones(5)).to(dtype).to(p.dtype)
            optimizer.step()
    (half,), (full,) = (list(net.parameters()) for net in nets)
    assert half.grad is not None
    assert full.grad is not None
    assert half.grad.dtype == dtype
    assert torch.equal(half.grad, full.grad.to(dtype)), "rounded once, at the end"
    memory, reference = optimizers[0].state[half], optimizers[1].state[full]
    torch.save(optimizers[0].state_dict(), tmp_path / "state.pt")
    again = build(nets[0], partial(SGD), 0.0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for key in ("grokfast_ema",) if build is EMA else ("grokfast_ring", "grokfast_sum"):
        assert memory[key].dtype == torch.float32
        assert torch.equal(memory[key], reference[key])
        assert torch.equal(again.state[half][key], memory[key])


def test_gradients_are_filtered_after_the_scaler_has_unscaled_them() -> None:
    """With a fused base too, which takes scaled ones; a step that overflows changes neither filter nor weights."""
    nets = [make_weight(6), make_weight(6)]
    optimizers = [EMA(net, partial(AdamW, fused=True), 0.1) for net in nets]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    for step in range(8):
        for net, optimizer, scaled in zip(nets, optimizers, (False, True), strict=True):
            (p,) = net.parameters()
            factor = make_gradient(step, 6) * (torch.inf if step == 3 else 1.0)
            loss = (p * factor).sum()
            optimizer.zero_grad()
            (scaler.scale(loss) if scaled else loss).backward()
            if scaled:
                scaler.step(optimizer)
                scaler.update()
            elif step != 3:
                optimizer.step()
    (plain,), (scaled,) = (list(net.parameters()) for net in nets)
    assert torch.equal(plain, scaled)


def test_a_group_can_be_left_unfiltered_and_has_no_memory() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(4, 3), "body": nn.Linear(3, 3)})
    optimizer = EMA(net, partial(SGD), 0.1, unfiltered=["embed"])
    other = SGD(net.parameters(), 0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.1, "the lr is not divided by 1 + lamb"
    assert "grokfast_ema" not in optimizer.state[net["embed"].weight]
    assert "grokfast_ema" in optimizer.state[net["body"].weight]
    assert torch.equal(net["embed"].weight.grad, torch.ones(4, 3))
    assert torch.equal(net["body"].weight.grad, torch.full((3, 3), 3.0)), "g + 2 mu, with mu = g at first"


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


def test_sparse_gradients_can_be_clipped() -> None:
    net = nn.Embedding(5, 2, sparse=True)
    optimizer = EMA(net, partial(SGD), 0.1, clip_norm=0.5)
    (100 * net(torch.tensor([1, 3]))).square().sum().backward()
    optimizer.step()
    assert net.weight.grad is not None
    assert net.weight.grad.to_dense().norm() == pytest.approx(0.5, rel=1e-4)


def test_without_a_gain_a_sparse_gradient_does_not_change() -> None:
    net = nn.Embedding(5, 2, sparse=True)
    optimizer = grokfast.ema(net, partial(SGD), 0.1, lamb=0.0)
    net(torch.tensor([1, 1])).sum().backward()
    assert net.weight.grad is not None
    before = net.weight.grad._values().clone()
    optimizer.step()
    assert torch.equal(net.weight.grad._values(), before)
    assert not optimizer.state[net.weight].keys() & {"grokfast_ema"}


def test_a_window_warns_of_its_memory_before_it_allocates_it(caplog: pytest.LogCaptureFixture) -> None:
    net = make_weight(1000, 1000)
    optimizer = grokfast.ma(net, partial(SGD), 0.1, window=100)
    assert "stores the last 100 gradients: 404.0 MB" in caplog.text
    assert not optimizer.state


def test_a_closure_returns_the_loss() -> None:
    net = nn.Linear(2, 1)
    optimizer = EMA(net, partial(SGD), 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    first, second = (optimizer.step(closure).item() for _ in range(2))
    assert 0 < second < first


@pytest.mark.parametrize("base", [partial(LBFGS), partial(torch.relu), partial(nn.Linear)])
def test_a_base_that_cannot_be_filtered_is_refused(base: Any) -> None:
    with pytest.raises(ValueError, match=r"optim\.base\._target_=.*: give one as torch\.optim\.AdamW"):
        grokfast.ema(make_weight(3), base, 0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 1.0},
        {"alpha": -0.1},
        {"lamb": -1.0},
        {"lamb": float("nan")},
        {"stop_when": "x"},
        {"unfiltered": ["nowhere"]},
        {"unfiltered": "weight"},
        {"unfiltered": [""]},
        {"stop_when": 5, "start_when": 5},
        {"stop_when": "val/acc:0.5", "start_when": "val/acc:0.9"},
        {"stop_when": "val/loss:0.5", "start_when": "val/loss:0.5"},
        {"start_when": "val/acc:95"},
        {"start_when": 0},
        {"stop_when": ""},
        {"clip_norm": -1.0},
        {"adapt": -1.0},
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    key = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"optim\.{key}="):
        grokfast.ema(make_weight(3), partial(SGD), 0.1, **wrong)


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


def test_a_base_with_a_setting_of_the_filters_is_refused() -> None:
    class Lamb(SGD):
        def __init__(self, params: Any, lr: float = 0.1, lamb: float = 1.0) -> None:
            super().__init__(params, lr)

    with pytest.raises(ValueError, match=r"Lamb has a setting lamb, as the filter has"):
        grokfast.ema(make_weight(3), partial(Lamb), 0.1)


def test_a_step_without_any_gradient() -> None:
    net = make_weight(3)
    before = next(net.parameters()).clone()
    grokfast.ema(net, partial(SGD), 0.1, clip_norm=1.0).step()
    assert torch.equal(next(net.parameters()), before)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.window=0"):
        grokfast.ma(make_weight(3), partial(SGD), 0.1, window=0)


RANKS = """
import sys, torch
import torch.distributed as dist
from functools import partial
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from research.optim import grokfast
from research.optim.filter import Filter, is_on
from research.training.sharding import full_tensor

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()

def train(wrap, build, x, steps=9):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    net = wrap(model)
    optimizer = build(model, partial(AdamW, fused=True), 0.01, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        net(x[step]).square().mean().backward()
        optimizer.step()
    memory = [value for p in model.parameters() for key, value in sorted(optimizer.state[p].items())
              if key in ("grokfast_ema", "grokfast_sum")]
    return [full_tensor(t.detach()) for t in (*model.parameters(), *memory)]

x = torch.randn(9, 4, 6, generator=torch.Generator().manual_seed(1))
own = x[:, rank::world]
ddp = partial(DistributedDataParallel, gradient_as_bucket_view=True)
for name, build in {"ema": partial(grokfast.ema, alpha=0.9), "ma": partial(grokfast.ma, window=3)}.items():
    alone = train(lambda model: model, build, x)
    for kind, wrap in {"ddp": ddp, "fsdp": fully_shard}.items():
        both = train(wrap, build, own)
        for a, b in zip(alone, both, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        theirs = [[torch.empty_like(t) for _ in range(world)] for t in both]
        for tensor, copies in zip(both, theirs, strict=True):
            dist.all_gather(copies, tensor)
            assert torch.equal(copies[0], copies[1]), (kind, name)
dist.destroy_process_group()
print("all the same")
"""


def test_two_ranks_are_bitwise_the_same_and_as_one_process(tmp_path: Path) -> None:
    """FSDP2, and DDP with gradients that are views of its buckets: there a rebound p.grad would silently be wrong."""
    (program := tmp_path / "program.py").write_text(RANKS)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*start, "--rdzv-endpoint", "localhost:0", str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.count("all the same") == 2, done.stderr[-3000:]
