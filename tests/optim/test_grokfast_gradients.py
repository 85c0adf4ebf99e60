"""Filters of difficult gradients: sparse, half precision, scaled, late, missing, of several processes."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from program import run_ranks
from stepping import EMA, MA, make_gradient, make_model, make_weight
from torch import nn
from torch.optim import SGD, AdamW

from research.optim import grokfast


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
    optimizers = [build(net, partial(SGD), 1e-30) for net in nets]
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
    again = build(nets[0], partial(SGD), 1e-30)
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
        for net, optimizer, is_scaled in zip(nets, optimizers, (False, True), strict=True):
            (p,) = net.parameters()
            factor = make_gradient(step, 6) * (torch.inf if step == 3 else 1.0)
            loss = (p * factor).sum()
            optimizer.zero_grad()
            (scaler.scale(loss) if is_scaled else loss).backward()
            if is_scaled:
                scaler.step(optimizer)
                scaler.update()
            elif step != 3:
                optimizer.step()
    (plain,), (scaled,) = (list(net.parameters()) for net in nets)
    assert torch.equal(plain, scaled)


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


def test_a_step_without_any_gradient() -> None:
    net = make_weight(3)
    before = next(net.parameters()).clone()
    grokfast.ema(net, partial(SGD), 0.1, clip_norm=1.0).step()
    assert torch.equal(next(net.parameters()), before)


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
    for done in run_ranks([str(program)], tmp_path, dict(os.environ)):
        assert "all the same" in done.stdout, done.stderr[-3000:]
