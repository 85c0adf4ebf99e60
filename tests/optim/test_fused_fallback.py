"""The fused step leaves to the plain one, with nothing changed, what it cannot do."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import SHAPES, Build, Parameters, copy_contents, fill_gradients, is_same, make_ema, make_ma, run_steps, step_plain
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from research.optim import fused, grokfast
from research.optim.transform import combine_classes

Spoil = Callable[[nn.Module, Optimizer], object]  # makes a step one that only the plain version can do


class CustomAdamW(AdamW):
    """A user's subclass, which may compute anything."""


class CustomFilter(grokfast.EMA):
    """A user's filter, which inherits `one_pass` but may compute anything."""


CUSTOM_FILTER: Any = combine_classes(CustomFilter, AdamW)


class TensorSubclass(Tensor):
    """A tensor of another class."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()


def set_option(**options: Any) -> Spoil:
    return lambda model, optimizer: optimizer.param_groups[-1].update(options)


def change_parameter(change: Callable[[nn.Parameter, Optimizer], object]) -> Spoil:
    return lambda model, optimizer: change(list(model.parameters())[5], optimizer)


def change_gradient(change: Callable[[Tensor], Tensor]) -> Spoil:
    def replace_gradient(p: nn.Parameter, optimizer: Optimizer) -> None:
        p.grad = change(p.grad)  # type: ignore[arg-type]

    return change_parameter(replace_gradient)


def change_state(key: str, change: Callable[[Tensor], Any]) -> Spoil:
    return change_parameter(lambda p, optimizer: optimizer.state[p].update({key: change(optimizer.state[p][key])}))


def transpose_memory(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def halve_precision(p: nn.Parameter, optimizer: Optimizer) -> None:
    p.grad, p.data = None, p.data.bfloat16()
    p.grad = torch.randn_like(p)


REASONS: dict[str, Spoil] = {
    "not fused": set_option(fused=None),
    "amsgrad": set_option(amsgrad=True),
    "maximize": set_option(maximize=True),
    "capturable": set_option(capturable=True),
    "differentiable": set_option(differentiable=True),
    "lr is a tensor": set_option(lr=torch.tensor(1e-2)),
    "clipped": set_option(clip_norm=1.0),
    "all clipped": lambda model, optimizer: optimizer.defaults.update(clip_norm=1.0),
    "overflow is watched": lambda model, optimizer: setattr(optimizer, "found_inf", torch.zeros(())),
    "scaled": lambda model, optimizer: setattr(optimizer, "grad_scale", torch.ones(())),
    "half precision": change_parameter(halve_precision),
    "parameter not contiguous": change_parameter(lambda p, optimizer: setattr(p, "data", transpose_memory(p.data))),
    "gradient not contiguous": change_gradient(transpose_memory),
    "gradient sparse": change_gradient(Tensor.to_sparse),
    "gradient of another kind": change_gradient(lambda grad: grad.as_subclass(TensorSubclass)),
}


STATE_REASONS: dict[str, Spoil] = {
    "average in half precision": change_state("exp_avg", Tensor.bfloat16),
    "square in half precision": change_state("exp_avg_sq", Tensor.bfloat16),
    "step as int": change_state("step", Tensor.long),
    "step as number": change_state("step", float),
    "moment missing": change_parameter(lambda p, optimizer: optimizer.state[p].pop("exp_avg_sq")),
    "moment of another size": change_state("exp_avg", lambda x: x[:1]),
}


EMA_REASONS = {
    "EMA in double precision": change_state("grokfast_ema", Tensor.double),
    "EMA not contiguous": change_state("grokfast_ema", transpose_memory),
}


MA_REASONS = {
    "ring in half precision": change_state("grokfast_ring", Tensor.bfloat16),
    "sum cut": change_state("grokfast_sum", lambda x: x[:1]),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("build", "spoil", "has_stepped"),
    [pytest.param(build, spoil, later, id=f"{build.__name__}: {name}, {'later' if later else 'at once'}")
     for build, own in ((make_ema, EMA_REASONS), (make_ma, MA_REASONS))
     for later, reasons in ((False, REASONS), (True, REASONS | STATE_REASONS | own)) for name, spoil in reasons.items()],
)  # fmt: skip
def test_cases_for_the_plain_version_change_nothing(build: Build, spoil: Spoil, has_stepped: bool) -> None:
    model = Parameters(SHAPES)
    optimizer = build(model)
    if has_stepped:
        run_steps(model, optimizer, step_plain, 0, 7)
    fill_gradients(model, 7)
    spoil(model, optimizer)
    before = copy_contents(optimizer)
    assert not fused.step(optimizer)
    assert is_same(before, copy_contents(optimizer))


@pytest.mark.parametrize(
    "optimizer",
    [
        make_ema(Parameters(SHAPES), partial(SGD)),
        make_ema(Parameters(SHAPES), partial(NAdam)),
        make_ema(Parameters(SHAPES), partial(CustomAdamW, fused=True)),
        make_ema(Parameters(SHAPES), partial(AdamW)),
        CUSTOM_FILTER(make_ema(Parameters(SHAPES)).param_groups, fused=True),
        make_ema(nn.ParameterList([torch.zeros(3, dtype=torch.complex64)])),
        make_ema(nn.ParameterList([torch.zeros(3, dtype=torch.float64)])),
        AdamW(Parameters(SHAPES).parameters(), fused=True),
        Adam(Parameters(SHAPES).parameters(), fused=True),
    ],
    ids=lambda optimizer: f"{type(optimizer).__name__}-{optimizer.param_groups[0]['params'][0].dtype}",
)
def test_other_optimizers_are_left_alone(optimizer: Optimizer) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    before = copy_contents(optimizer)
    assert not fused.step(optimizer)
    assert is_same(before, copy_contents(optimizer))


def test_found_inf_on_the_device_needs_the_gpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "has_triton", lambda _: True)
    model = Parameters(SHAPES)
    optimizer = make_ema(model)
    fill_gradients(model, 0)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())  # type: ignore[attr-defined]  # as nonfinite.py does
    jobs = fused.collect_jobs(optimizer)
    assert jobs
    assert fused.choose_kernel(torch.device("cuda", 0), optimizer, jobs) is fused.step_on_gpu
    assert fused.choose_kernel(torch.device("cpu"), optimizer, jobs) is None
    optimizer.grad_scale = torch.ones(())  # type: ignore[attr-defined]
    assert fused.collect_jobs(optimizer) is None


def test_without_a_compiler_the_step_is_plain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name, value in {"PATH": "", "CC": "", "GROKBIT_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert fused.get_library.__wrapped__() is None
    assert "no C kernel, so Grokfast's step uses torch, which is slower: there is no C compiler" in caplog.text
    monkeypatch.setattr(fused, "get_library", lambda: None)
    model = Parameters(SHAPES)
    optimizer = make_ema(model)
    fill_gradients(model, 0)
    before = copy_contents(optimizer)
    assert not fused.step(optimizer)
    assert is_same(before, copy_contents(optimizer))
