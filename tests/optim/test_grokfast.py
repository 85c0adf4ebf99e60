"""The filters where gradients are not as one likes them: sparse, in half precision, scaled, late, of several processes."""

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
from torch.optim import ASGD, LBFGS, SGD, Adam, AdamW, RMSprop

from research.callbacks.checkpoint import Checkpoint
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim import grokfast
from research.optim.ademamix import AdEMAMix
from research.optim.filter import Filter, is_on
from research.optim.orthograd import orthograd
from research.optim.schedules import constant
from research.training.trainer import Trainer
from research.trigger import Trigger, parse_trigger

EMA, MA = partial(grokfast.ema, alpha=0.9, lamb=2.0), partial(grokfast.ma, window=4, lamb=2.0)


def make_weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = nn.Module()
    net.register_parameter("weight", nn.Parameter(torch.zeros(shape, dtype=dtype)))
    return net


def make_gradient(step: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def compute_slow_parts(window: int | None, alpha: float, steps: int, *shape: int) -> list[Tensor]:
    """The slow part of each gradient as the paper has it, in float64; `window`: Algorithm 1, else Algorithm 2."""
    mu, past, found = None, [], []
    for step in range(steps):
        g = make_gradient(step, *shape).double()
        past = [*past, g][-(window or 1) :]
        mu = g if mu is None else alpha * mu + (1 - alpha) * g
        found.append(mu if window is None else sum(past) / window if len(past) == window else torch.zeros_like(g))
    return found


PAPERS = [(partial(grokfast.ema, alpha=0.98), None), (partial(grokfast.ma, window=100), 100)]


@pytest.mark.parametrize(("build", "window"), PAPERS)
def test_a_thousand_steps_are_the_papers_formula(build: Any, window: int | None) -> None:
    """Within 1e-6 relative at every one of them."""
    net, lamb, steps = make_weight(64, 8), 5.0, 1000
    optimizer = build(net, partial(SGD), 1e-3, lamb=lamb)
    (p,) = net.parameters()
    for step, slow in enumerate(compute_slow_parts(window, 0.98, steps, 64, 8)):
        p.grad = make_gradient(step, 64, 8)
        optimizer.step()
        expected = make_gradient(step, 64, 8).double() + lamb * slow
        assert (p.grad.double() - expected).norm() <= 1e-6 * expected.norm(), step


@pytest.mark.parametrize("build", [EMA, MA])
def test_a_sparse_gradient_is_filtered_whole(build: Any) -> None:
    """Of an embedding that is sparse every row moves as that of a dense one, and p.grad stays the tensor that it was."""
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
    """The slow part of 1 and many small gradients is not lost, and what is saved comes back as it was."""
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
    """With a fused base too, which would take scaled ones; a step that overflows leaves filter and weights alone."""
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
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.1, "no part of the lr is taken away"
    assert "grokfast_ema" not in optimizer.state[net["embed"].weight]
    assert "grokfast_ema" in optimizer.state[net["body"].weight]
    assert torch.equal(net["embed"].weight.grad, torch.ones(4, 3))
    assert torch.equal(net["body"].weight.grad, torch.full((3, 3), 3.0)), "g + 2 mu, with mu = g at first"


@pytest.mark.parametrize("build", [EMA, MA])
def test_the_filtered_gradient_can_be_clipped(build: Any) -> None:
    """Over all groups; trainer.clip_norm is what the raw one is clipped to, before."""
    net = nn.Linear(3, 3)
    optimizer = build(net, partial(SGD), 1.0, weight_decay=0.1, clip_norm=0.5)
    reference = build(twin := nn.Linear(3, 3), partial(SGD), 1.0, weight_decay=0.1)
    for step in range(6):
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            p.grad, q.grad = make_gradient(step, *p.shape), make_gradient(step, *p.shape)
        optimizer.step()
        reference.step()
        clipped, whole = (torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (net, twin))  # type: ignore[union-attr]
        torch.testing.assert_close(clipped, whole * 0.5 / whole.norm())


def test_triggers() -> None:
    assert parse_trigger(5, "x").fires(5, {})
    assert not parse_trigger(5, "x").fires(4, {})
    assert parse_trigger("val/acc:0.5", "x") == Trigger(metric="val/acc", value=0.5)
    assert [parse_trigger("val/acc:0.5", "x").fires(0, {"val/acc": v}) for v in (0.4, 0.5, 0.6, float("nan"))] == [0, 1, 1, 0]
    assert [parse_trigger("train/loss:0.5", "x").fires(0, {"train/loss": v}) for v in (0.4, 0.5, 0.6)] == [1, 1, 0]
    assert not parse_trigger("val/acc:0.5", "x").fires(9, {})
    for wrong in (0, -1, "val/acc", "val/acc:", "val/acc:x", "val/acc:nan", "acc:0.5", 0.5, True):
        with pytest.raises(ValueError, match=r"optim\.start_when=.* is no trigger\ngive a number of steps, or METRIC:VALUE"):
            parse_trigger(wrong, "optim.start_when")


def run_filtered(
    steps: int, folder: Path | None = None, resume: Path | None = None, log_every: int = 1, **options: Any
) -> list[bool]:
    """Whether each step of a small run was filtered; evaluated after every second one."""
    data, seen = modular(p=7), []
    torch.manual_seed(0)
    model = Transformer(data.shape, 16, 1, 2, nn.Linear)
    optimizer = grokfast.ema(model, partial(AdamW), 1e-2, **options)
    optimizer.register_step_pre_hook(lambda *_: seen.append(is_on(optimizer.param_groups[0])))
    trainer = Trainer(steps, 8, eval_every=2, log_every=log_every, device="cpu")
    trainer.fit(model, optimizer, constant, last_token, data, [Checkpoint()] if folder else [], folder=folder, resume=resume)
    keys = {key for state in optimizer.state.values() for key in state}
    assert ("grokfast_ema" in keys) == seen[-1], "there is a memory while it is needed, no longer"
    return seen


def test_the_filter_is_switched_by_step_and_by_metric() -> None:
    assert run_filtered(6) == [True] * 6
    assert run_filtered(6, start_when=2, stop_when=4) == [False, False, True, True, False, False]
    assert run_filtered(6, start_when="val/acc:0.0") == [False, False, True, True, True, True], "after the first evaluation"
    assert run_filtered(6, start_when="val/loss:-1", stop_when=1) == [False] * 6
    assert run_filtered(5, stop_when="train/loss:100") == [True, False, False, False, False]


def test_a_metric_that_was_there_before_the_filter_counts(tmp_path: Path) -> None:
    """Also where no log point comes between, and where a run goes on between two of them."""
    mixed: dict[str, Any] = {"start_when": 3, "stop_when": "val/acc:0.0", "log_every": 100}
    assert run_filtered(8, **mixed) == [False] * 8
    run_filtered(5, folder=tmp_path, **mixed)
    assert run_filtered(8, folder=tmp_path, resume=tmp_path, **mixed) == [False] * 3


def test_a_filter_whose_gain_is_gone_forgets() -> None:
    """As where a run goes on with optim.lamb=0: no memory, and none in the checkpoints to come."""
    net = make_weight(3)
    (p,) = net.parameters()
    optimizer = grokfast.ema(net, partial(SGD), 0.1)
    assert isinstance(optimizer, Filter)
    p.grad = torch.ones(3)
    optimizer.step()
    assert "grokfast_ema" in optimizer.state[p]
    optimizer.param_groups[0]["lamb"] = 0.0
    optimizer.on_step_begin(1, {})
    assert "grokfast_ema" not in optimizer.state[p]


def test_a_checkpoint_without_triggers_resumes() -> None:
    """Of before there were any: as if the filter had been on from the first step."""
    net = make_weight(3)
    optimizer = grokfast.ema(net, partial(SGD), 0.1)
    assert isinstance(optimizer, Filter)
    saved = optimizer.state_dict()
    for key in ("_heeds", "_on", "_over"):
        del saved["param_groups"][0][key]
    optimizer.load_state_dict(saved)
    optimizer.on_step_begin(1, {})
    assert is_on(optimizer.param_groups[0])


def test_alpha_falls_with_the_gap_between_the_losses() -> None:
    """GrokAdamW: alpha exp(-adapt (val - train) / val) of the losses, and no larger than alpha."""
    net = make_weight(3)
    optimizer = grokfast.ema(net, partial(Adam), 0.1, alpha=0.9, adapt=0.5)
    assert isinstance(optimizer, Filter)
    group = optimizer.param_groups[0]
    for metrics, expected in (
        ({}, 0.9),
        ({"train/loss": 1.0, "val/loss": 3.0}, 0.9 * 0.71653131),
        ({"train/loss": 3.0, "val/loss": 1.0}, 0.9),
    ):
        optimizer.on_step_begin(5, metrics)
        assert group["grokfast_alpha"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"stop_when": 2}, {}, [True] * 4),
        ({"stop_when": 2}, {"stop_when": 6}, [True, True, False, False]),
        ({"start_when": 2}, {"start_when": 6}, [False, False, True, True]),
        ({}, {"start_when": 6}, [False, False, True, True]),
        ({"stop_when": 2}, {"stop_when": 2}, [False] * 4),
        ({"start_when": 2}, {"start_when": 2}, [True] * 4),
    ],
)
def test_triggers_that_are_changed_on_a_resume_take_effect(
    before: dict[str, Any], after: dict[str, Any], expected: list[bool], tmp_path: Path
) -> None:
    """As lr=1e-4 beside resume= means that lr; what the filter remembered is not kept for later."""
    run_filtered(4, folder=tmp_path, **before)
    assert run_filtered(8, folder=tmp_path, resume=tmp_path, **after) == expected


def test_a_group_that_is_added_later_is_filtered_as_the_others() -> None:
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


def test_without_a_gain_a_sparse_gradient_stays_as_it_is() -> None:
    net = nn.Embedding(5, 2, sparse=True)
    optimizer = grokfast.ema(net, partial(SGD), 0.1, lamb=0.0)
    net(torch.tensor([1, 1])).sum().backward()
    assert net.weight.grad is not None
    before = net.weight.grad._values().clone()
    optimizer.step()
    assert torch.equal(net.weight.grad._values(), before)
    assert not optimizer.state[net.weight].keys() & {"grokfast_ema"}


def test_a_window_tells_its_memory_before_it_takes_it(caplog: pytest.LogCaptureFixture) -> None:
    net = make_weight(1000, 1000)
    optimizer = grokfast.ma(net, partial(SGD), 0.1, window=100)
    assert "keeps the last 100 gradients: 404.0 MB" in caplog.text
    assert not optimizer.state


def test_a_closure_gives_the_loss() -> None:
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
    with pytest.raises(ValueError, match=r"optim\.base\._target_=.*\ngive optim\.base\._target_=torch\.optim\.AdamW"):
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


def test_triggers_of_one_metric_in_order() -> None:
    for start, stop in (("val/acc:0.5", "val/acc:0.9"), ("val/loss:1.5", "val/loss:0.5"), ("val/acc:0.9", "train/acc:0.5")):
        grokfast.ema(make_weight(3), partial(SGD), 0.1, start_when=start, stop_when=stop)


@pytest.mark.parametrize("base", [partial(RMSprop, alpha=0.7), partial(ASGD), partial(AdEMAMix, alpha=8.0)])
def test_a_base_has_its_own_alpha(base: Any) -> None:
    """Without a gain the filter is the base, whose alpha stays what it was; with one both are in force."""
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

    with pytest.raises(ValueError, match=r"Lamb has a setting lamb, which is the filter's"):
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

def trained(wrap, build, x, steps=9):
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
mine = x[:, rank::world]
ddp = partial(DistributedDataParallel, gradient_as_bucket_view=True)
for name, build in {"ema": partial(grokfast.ema, alpha=0.9), "ma": partial(grokfast.ma, window=3)}.items():
    alone = trained(lambda model: model, build, x)
    for how, wrap in {"ddp": ddp, "fsdp": fully_shard}.items():
        both = trained(wrap, build, mine)
        for a, b in zip(alone, both, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        theirs = [[torch.empty_like(t) for _ in range(world)] for t in both]
        for tensor, place in zip(both, theirs, strict=True):
            dist.all_gather(place, tensor)
            assert torch.equal(place[0], place[1]), (how, name)
dist.destroy_process_group()
print("all the same")
"""


def test_two_ranks_are_bitwise_the_same_and_as_one_process(tmp_path: Path) -> None:
    """DDP with gradients that are views of its buckets, where a rebound p.grad would go wrong unseen; FSDP2."""
    (program := tmp_path / "program.py").write_text(RANKS)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*start, "--rdzv-endpoint", "localhost:0", str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.count("all the same") == 2, done.stderr[-3000:]
