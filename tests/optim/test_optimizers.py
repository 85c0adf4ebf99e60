"""Every optimizer learns, resumes to the bit, works in bf16 and on sharded weights, and is checked by the preflight."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from program import run
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from research import losses
from research.data.modular import modular
from research.models.transformer import Transformer
from research.optim import grokfast
from research.optim.ademamix import MOMENTS, AdEMAMix
from research.optim.muon import Muon
from research.optim.orthograd import orthograd
from research.optim.param_groups import build_param_groups, from_base
from research.preflight.check import find_mistakes

DATA = modular(p=7)


class Case(NamedTuple):
    """One row of the table."""

    build: Callable[[nn.Module], Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor] = losses.last_token
    float32_state: tuple[str, ...] = ()  # state entries that stay in float32
    max_loss_ratio: float = 0.6  # last loss over first loss, at most


def bind_optimizer(builder: Any, base: Any, lr: float, **settings: Any) -> Callable[[nn.Module], Optimizer]:
    return partial(builder, base=base, lr=lr, weight_decay=0.1, **settings)


ADAMW = partial(AdamW, betas=(0.9, 0.98), fused=True)
CASES = {
    "adamw": Case(bind_optimizer(from_base, ADAMW, 1e-2)),
    "momentum": Case(bind_optimizer(from_base, partial(AdamW, betas=(0.98, 0.98), fused=True), 1e-2)),
    "ademamix": Case(
        bind_optimizer(from_base, partial(AdEMAMix, betas=(0.9, 0.98, 0.99), t_alpha=20, t_beta3=25), 3e-3),
        float32_state=MOMENTS,
    ),
    "orthograd adamw": Case(bind_optimizer(orthograd, ADAMW, 1e-2)),
    "orthograd sgd": Case(bind_optimizer(orthograd, partial(SGD, momentum=0.9), 3e-2), max_loss_ratio=0.8),
    "muon": Case(bind_optimizer(from_base, partial(Muon), 1e-2)),
    "grokfast.ema": Case(bind_optimizer(grokfast.ema, ADAMW, 1e-2), float32_state=("grokfast_ema",)),
    "grokfast.ma": Case(bind_optimizer(grokfast.ma, ADAMW, 1e-2, window=5)),
    "grokfast.ema plain": Case(bind_optimizer(grokfast.ema, partial(AdamW), 1e-2)),
    "grokfast.ema muon": Case(bind_optimizer(grokfast.ema, partial(Muon), 1e-2)),
    "grokfast.ma sgd": Case(bind_optimizer(grokfast.ma, partial(SGD, momentum=0.9), 1e-2, window=4), max_loss_ratio=0.9),
    "stablemax": Case(bind_optimizer(from_base, ADAMW, 1e-2), losses.stablemax),
}
TYPES = [torch.float32, torch.bfloat16]
all_cases = pytest.mark.parametrize("name", CASES)
all_dtypes = pytest.mark.parametrize("dtype", TYPES, ids=["fp32", "bf16"])


def make_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(DATA.shape, 16, 1, 2, nn.Linear).to(dtype)


def fit(net: nn.Module, optimizer: Optimizer, case: Case, steps: int) -> list[float]:
    """Train on all samples at once; return the losses."""
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
    case, uninterrupted, part, later = CASES[name], make_model(dtype), make_model(dtype), make_model(dtype)
    expected = fit(uninterrupted, case.build(uninterrupted), case, 17)
    first = case.build(part)
    seen = fit(part, first, case, 8)
    torch.save({"model": part.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    later.load_state_dict(saved["model"])
    second = case.build(later)
    second.load_state_dict(saved["optimizer"])
    assert seen + fit(later, second, case, 9) == expected
    assert all(torch.equal(p, q) for p, q in zip(later.parameters(), uninterrupted.parameters(), strict=True))
    for p in later.parameters():
        assert all(second.state[p][key].dtype == torch.float32 for key in case.float32_state)


def test_weight_decay_skips_norms_and_biases() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(3, 4), "norm": nn.RMSNorm(4), "head": nn.Linear(4, 3)})
    decayed, skipped = build_param_groups(net, 0.5, ["norm", "bias"])
    assert [n for n, _ in decayed["params"]] == ["embed.weight", "head.weight"]
    assert [n for n, _ in skipped["params"]] == ["norm.weight", "head.bias"]
    assert (decayed["weight_decay"], skipped["weight_decay"]) == (0.5, 0.0)


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
    plain, sharded = nn.Linear(3, 5), nn.Linear(3, 5)
    for name, p in plain.named_parameters():
        setattr(sharded, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
    a, b = build(plain), build(sharded)
    for step in range(3):
        for p, q in zip(plain.parameters(), sharded.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        a.step(), b.step()
    for p, q in zip(plain.parameters(), sharded.parameters()):
        torch.testing.assert_close(p.detach(), q.detach().full_tensor())
torch.distributed.destroy_process_group()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


def test_sharded_weights_step_as_plain_ones(tmp_path: Path) -> None:
    done = run(["-c", SHARDED, str(tmp_path / "store")], tmp_path, dict(os.environ), timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["optim=ademamix", "optim.base.alpha=-1"], ["optim.base.alpha takes a number in [0, inf)", "got -1"]),
        (["optim=ademamix", "optim.base.t_alpha=0"], ["optim.base.t_alpha takes a whole number in [1, inf) or null"]),
        (["optim=ademamix", "optim.base.eps=0"], ["no key 'optim.base.eps'"]),
        (["optim=orthograd", "optim.weight_decay=-1"], ["optim.weight_decay takes a number in [0, inf)"]),
        (["data=modular", "loss=classification"], ["data=modular has logits [batch seq vocab] and targets [batch]"]),
    ],
)
def test_the_command_line_refuses_wrong_settings(overrides: list[str], messages: list[str]) -> None:
    text = "\n".join(find_mistakes(overrides, False))
    assert all(message in text for message in messages)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim=ademamix", "optim.base.t_alpha=null"],
        ["optim=orthograd", "optim.base._target_=torch.optim.RAdam", "~optim.base.fused"],
        ["optim=momentum"],
        ["data=modular", "loss=stablemax"],
        ["data=text", "loss=stablemax"],
        ["model=mlp", "data=digits", "loss=stablemax"],
    ],
)
def test_the_command_line_accepts_right_settings(overrides: list[str]) -> None:
    assert not find_mistakes(overrides, False)
