"""Grokfast and AdamW in one pass against the plain version, which filters with torch and calls torch's fused step."""

import copy
import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program import ROOT
from stepping import (
    SHAPES,
    Build,
    Parameters,
    copy_contents,
    fill_gradients,
    is_same,
    make_ema,
    make_ma,
    run_steps,
    step_plain,
)
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from research.kernels.build import find_compiler
from research.optim import fused

needs_c = pytest.mark.skipif(fused.get_library() is None, reason="no C compiler")


def assert_close(ours: Optimizer, theirs: Optimizer, tolerance: float = 1e-6) -> None:
    """Check that parameters and states are close, and states of the same layout."""
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        for p, q in zip(a["params"], b["params"], strict=True):
            way = 1e-2 * q.numel() ** 0.5  # of a step: what rounding is relative to where a parameter ends near zero
            assert torch.linalg.vector_norm(p - q) <= tolerance * (torch.linalg.vector_norm(q) + way)
            state, other = ours.state.get(p, {}), theirs.state.get(q, {})
            assert state.keys() == other.keys()
            for key, value in other.items():
                if isinstance(value, Tensor):
                    assert (state[key].dtype, state[key].shape) == (value.dtype, value.shape)
                    usual = torch.linalg.vector_norm(value) + value.numel() ** 0.5  # gradients are of size 1
                    assert torch.linalg.vector_norm(state[key] - value) <= tolerance * usual, key
                else:
                    assert state[key] == value


GROUPS: dict[str, list[dict[str, Any]]] = {  # what differs between the groups of a model
    "one": [{}],
    "rates": [{"lr": 3e-3}, {"lr": 1e-2, "betas": (0.4, 0.95)}],
    "gains": [{"lamb": 5.0}, {"lamb": 0.0, "weight_decay": 0.0}, {"_on": False, "eps": 1e-4}],
}


FILTERS: dict[str, Build] = {
    "EMA": make_ema,
    "EMA of small alpha": partial(make_ema, alpha=0.3),
    "window": make_ma,
    "window of one": partial(make_ma, window=1),
}


def make_grouped(build: Build, groups: list[dict[str, Any]], base: Any = AdamW, seed: int = 0) -> tuple[nn.Module, Optimizer]:
    model = Parameters(SHAPES, seed)
    optimizer = build(model, partial(base, fused=True))  # type: ignore[call-arg]
    every = [p for group in optimizer.param_groups for p in group["params"]]
    like = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer.param_groups.clear()
    for index, options in enumerate(groups):
        optimizer.add_param_group(like | {"params": every[index :: len(groups)]} | options)
    return model, optimizer


@needs_c
@pytest.mark.parametrize("base", [AdamW, Adam])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("build", FILTERS.values(), ids=FILTERS)
def test_the_fused_step_equals_the_plain_one(build: Build, groups: list[dict[str, Any]], base: type[Optimizer]) -> None:
    steps = 1000 if base is AdamW and groups == [{}] and build in (make_ema, make_ma) else 60
    (model, optimizer), (twin, theirs) = make_grouped(build, groups, base), make_grouped(build, groups, base)
    run_steps(model, optimizer, fused.step, 0, steps)
    run_steps(twin, theirs, step_plain, 0, steps)
    assert_close(optimizer, theirs)
    unfiltered = [p for group in optimizer.param_groups if not (group["lamb"] and group["_on"]) for p in group["params"]]
    assert not any(key.startswith("grokfast") for p in unfiltered for key in optimizer.state[p])


@needs_c
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=5),
    large=st.integers(1, 200_000),
    threads=st.integers(1, 5),
    build=st.sampled_from(sorted(FILTERS)),
)
@settings(max_examples=30)
def test_any_shapes(shapes: list[tuple[int, ...]], large: int, threads: int, build: str) -> None:
    models = [Parameters([*shapes, (large,)]) for _ in range(3)]
    optimizers = [FILTERS[build](model) for model in models]
    torch.set_num_threads(threads)
    run_steps(models[0], optimizers[0], fused.step, 0, 6)
    torch.set_num_threads(1)
    run_steps(models[1], optimizers[1], fused.step, 0, 6)
    run_steps(models[2], optimizers[2], step_plain, 0, 6)
    assert is_same(copy_contents(optimizers[0]), copy_contents(optimizers[1])), "threads change no bit"
    assert_close(optimizers[0], optimizers[2])


@needs_c
@pytest.mark.parametrize("build", FILTERS.values(), ids=FILTERS)
def test_fused_and_plain_steps_continue_from_each_other(build: Build) -> None:
    models = [Parameters(SHAPES, seed) for seed in range(4)]
    optimizers = [build(model) for model in models]
    run_steps(models[0], optimizers[0], step_plain, 0, 8)
    for number, step in enumerate([fused.step, step_plain, fused.step], start=1):
        models[number].load_state_dict(models[number - 1].state_dict())
        optimizers[number].load_state_dict(copy.deepcopy(optimizers[number - 1].state_dict()))
        run_steps(models[number], optimizers[number], step, 8 * number, 8 * (number + 1))
    twin = Parameters(SHAPES)
    theirs = build(twin)
    run_steps(twin, theirs, step_plain, 0, 32)
    assert_close(optimizers[3], theirs)


@needs_c
@pytest.mark.parametrize("build", FILTERS.values(), ids=FILTERS)
def test_a_resume_changes_no_bit(build: Build, tmp_path: Path) -> None:
    models = [Parameters(SHAPES, seed) for seed in (0, 0, 1)]
    optimizers = [build(model) for model in models]
    for model, optimizer in zip(models[:2], optimizers[:2], strict=True):
        run_steps(model, optimizer, fused.step, 0, 9)
    assert is_same(copy_contents(optimizers[0]), copy_contents(optimizers[1])), "two runs"
    torch.save([models[0].state_dict(), optimizers[0].state_dict()], tmp_path / "saved.pt")
    weights, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    models[2].load_state_dict(weights)
    optimizers[2].load_state_dict(state)
    for model, optimizer in zip(models, optimizers, strict=True):
        run_steps(model, optimizer, fused.step, 9, 21)
    assert is_same(copy_contents(optimizers[0]), copy_contents(optimizers[1]))
    assert is_same(copy_contents(optimizers[0]), copy_contents(optimizers[2]))


@needs_c
def test_a_copy_steps_independently() -> None:
    model, optimizer = make_grouped(make_ema, [{}])
    run_steps(model, optimizer, fused.step, 0, 3)
    twin, theirs = copy.deepcopy((model, optimizer))
    before = copy_contents(theirs)
    run_steps(model, optimizer, fused.step, 3, 5)
    assert is_same(copy_contents(theirs)[1], before[1])
    run_steps(twin, theirs, fused.step, 3, 5)
    assert is_same(copy_contents(theirs), copy_contents(optimizer))


@needs_c
@pytest.mark.parametrize("build", [make_ema, make_ma])
def test_tensors_may_be_replaced_between_steps(build: Build) -> None:
    models = [Parameters(SHAPES) for _ in range(2)]
    optimizers = [build(model) for model in models]
    for number in range(12):
        for p in models[0].parameters():
            p.data = p.data.clone()
            optimizers[0].state[p] = {key: copy.deepcopy(value) for key, value in optimizers[0].state.get(p, {}).items()}
        for model, optimizer in zip(models, optimizers, strict=True):
            run_steps(model, optimizer, fused.step, number, number + 1)
    assert is_same(copy_contents(optimizers[0]), copy_contents(optimizers[1]))


@needs_c
@pytest.mark.parametrize("build", [make_ema, make_ma])
def test_the_gradient_is_not_written(build: Build) -> None:
    model = Parameters(SHAPES)
    optimizer = build(model)
    for number in range(7):
        fill_gradients(model, number)
        grads = [p.grad for p in model.parameters()]
        copies = copy.deepcopy(grads)
        assert fused.step(optimizer)
        assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
        assert is_same(copies, grads)


@needs_c
def test_autograd_refuses_a_graph_that_saved_a_weight() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_ema(model)
    loss = model(torch.randn(4, 3, requires_grad=True)).square().sum()
    loss.backward(retain_graph=True)
    assert fused.step(optimizer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_without_gradients_changes_nothing() -> None:
    model = Parameters([(3,)])
    optimizer = make_ema(model)
    before = copy_contents(optimizer)
    assert fused.step(optimizer)
    assert is_same(before, copy_contents(optimizer))


@needs_c
def test_each_instruction_set_and_no_openmp_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results, build_library = [], fused.get_library.__wrapped__
    for command in ("", " -DGROKBIT_PORTABLE", " -fno-openmp"):
        with monkeypatch.context() as patch:
            patch.setenv("CC", " ".join(find_compiler()) + command)
            patch.setenv("GROKBIT_CACHE", str(tmp_path))
            library = build_library()
        monkeypatch.setattr(fused, "get_library", lambda library=library: library)
        for build in (make_ema, make_ma):
            model, optimizer = make_grouped(build, GROUPS["gains"])
            run_steps(model, optimizer, fused.step, 0, 9)
            results.append(copy_contents(optimizer))
    assert len(list(tmp_path.glob("*/adamw.so"))) == 3
    assert is_same(results[:2], results[2:4])
    assert is_same(results[:2], results[4:])


PROGRAM = """
from functools import partial

import torch
from torch import nn
from torch.optim import Adam, AdamW

from research.optim import fused, grokfast

device = torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu").device
assert fused.has_triton(device)


def build(base):
    torch.manual_seed(0)
    model = nn.ParameterList([torch.randn(shape) for shape in ((), (1,), (7,), (0, 3), (3, 5), (170, 101))]).to(device)
    return model, grokfast.ema(model, partial(base, fused=True), 1e-2, 0.9, 2.0, 0.1, unfiltered=("2", "5"))


def one_pass(optimizer):
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")  # the host must not wait
        assert fused.step(optimizer)
        torch.cuda.set_sync_debug_mode("default")
    else:
        jobs = fused.collect_jobs(optimizer)
        with torch.no_grad():
            states = [optimizer.state.get(job[3]) or fused.init_state(optimizer, job[3]) for job in jobs]
            fused.step_on_gpu(optimizer, jobs, states)


def compare(base, on_device, bad):
    # bad steps are judged on the device or not; a parameter and the averages of two others begin late
    (model, optimizer), (twin, theirs) = build(base), build(base)
    for number in range(9):
        for index, (p, q) in enumerate(zip(model, twin)):
            q.grad = torch.randn_like(q) if index != 4 or number > 2 else None
            if q.grad is not None and number in bad:
                q.grad.view(-1)[index % 3 :: 3] = (torch.nan, torch.inf, -torch.inf)[(index + number) % 3]
            p.grad = None if q.grad is None else q.grad.clone()
        before = [p.detach().clone() for p in model]
        for one in (optimizer, theirs):
            one.param_groups[1]["lamb"] = 0.0 if number in (0, 4, 5) else 2.0
            if on_device:
                one.grad_scale, one.found_inf = None, torch.tensor(float(number in bad), device=device)
        one_pass(optimizer)
        step, fused.step = fused.step, lambda _: False
        theirs.step()
        fused.step = step
        for p, q, old in zip(model, twin, before):
            assert p.isfinite().all()
            assert number not in bad or torch.equal(p, old)
            torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)
            assert optimizer.state[p].keys() == theirs.state[q].keys()
            for key, value in theirs.state[q].items():
                assert key != "step" or torch.equal(optimizer.state[p][key], value)
                torch.testing.assert_close(optimizer.state[p][key], value, rtol=2e-6, atol=2e-6)


for base, bad in ((Adam, (2, 5, 8)), (AdamW, (0, 1, 3, 6, 7))):
    compare(base, on_device=False, bad=())
    compare(base, on_device=True, bad=bad)
print("compared")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
def test_triton_gives_the_same_numbers() -> None:
    """In its own process: Triton reads the source of kernels, which beartype would hide."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "compared", done.stderr
