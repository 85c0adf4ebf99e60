"""Row 6: latent weights in half precision lose small updates: convert keeps float32 masters, other training warns."""

import logging
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn import bitlinear
from research.nn.bitlinear import BitLinear, bitlinear_layers, cached_quantized_weights, convert_linears

HALVES = [torch.bfloat16, torch.float16]
WARNING = "a BitLinear learns with weights in"


@pytest.fixture(autouse=True)
def warn_anew() -> Iterator[None]:
    bitlinear._log_half_precision.cache_clear()
    yield
    bitlinear._log_half_precision.cache_clear()


def train_and_count_flips(model: nn.Module, dtype: torch.dtype) -> float:
    """Return the share of codes that 300 steps of a small rate change."""
    (layer,) = bitlinear_layers(model).values()
    before = layer.quantizer.quantize_weight(layer.weight.float())[0]
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    target = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    for _ in range(300):
        optimizer.zero_grad()
        (model(x.to(dtype)).float() - target).square().mean().backward()
        optimizer.step()
    return float((layer.quantizer.quantize_weight(layer.weight.float())[0] != before).float().mean())


def test_as_many_codes_change_in_a_half_precision_model_as_in_float32() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 64, bias=False))
    flips = {kind: train_and_count_flips(convert_linears(deepcopy(plain).to(kind)), kind) for kind in (torch.float32, *HALVES)}
    lost = train_and_count_flips(convert_linears(deepcopy(plain)).to(torch.bfloat16), torch.bfloat16)
    assert flips[torch.float32] > 0.02
    assert lost < 0.3 * flips[torch.float32]  # what the masters are for
    for kind in HALVES:
        assert flips[kind] == pytest.approx(flips[torch.float32], rel=0.2)


@pytest.mark.parametrize(("kind", "master"), [*((half, torch.float32) for half in HALVES), (torch.float64, torch.float64)])
def test_masters_are_the_same_parameters(kind: torch.dtype, master: torch.dtype) -> None:
    """An optimizer built before has them, gradients are of their type, frozen ones stay frozen, the head stays as it is."""
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8, bias=False), "head": nn.Linear(8, 2)}).to(kind)
    model["b"].weight.requires_grad_(False)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model["head"](model["a"](torch.randn(3, 8, dtype=kind))).sum().backward()
    convert_linears(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    for name, p in model.named_parameters():
        assert p.dtype == (kind if "head" in name else master)
        assert torch.equal(p, values[name].to(p.dtype))
        assert p.grad is None or p.grad.dtype == p.dtype
    y: Tensor = model["head"](model["b"](model["a"](torch.randn(3, 8, dtype=kind))))
    assert y.dtype == kind
    y.sum().backward()
    optimizer.step()
    assert not torch.equal(parameters["a.weight"], values["a.weight"].to(master))
    assert not model["b"].weight.requires_grad


SETTINGS: list[dict[str, Any]] = [{}, {"granularity": 4}, {"warmup": 4}, {"granularity": "channel"}, {"weight_bits": 4}]


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_masters_change_no_output(settings: dict[str, Any], kind: torch.dtype) -> None:
    """The masters are the half-precision numbers; later updates are what they have more of."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 8)).to(kind)
    with_halves = convert_linears(deepcopy(plain), **settings).to(kind)
    x = torch.randn(2, 5, 16).to(kind)
    for training in (False, True):
        model = convert_linears(deepcopy(plain), **settings).train(training)
        y = model(x)
        assert y.dtype == kind
        expected = with_halves.train(training)(x)
        exact = not (training and "warmup" in settings) and "granularity" not in settings
        torch.testing.assert_close(y, expected, rtol=0 if exact else 0.02, atol=0 if exact else 0.02)
        (layer,) = bitlinear_layers(model).values()
        with cached_quantized_weights([layer]):
            assert torch.equal(model(x), y)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16


def test_a_transformer_in_half_precision_is_converted_and_trains(caplog: pytest.LogCaptureFixture) -> None:
    """What is no BitLinear stays in half precision, and is named where it learns."""
    torch.manual_seed(0)
    frozen, model = (Transformer(Tokens(11, 8), 32, 2, 2, nn.Linear).bfloat16() for _ in range(2))
    convert_linears(frozen.requires_grad_(False), exclude=["head"])
    convert_linears(Transformer(Tokens(11, 8), 32, 2, 2, nn.Linear), exclude=["head"])
    assert not caplog.records
    convert_linears(model, exclude=["head"])
    halves = sum(p.dtype == torch.bfloat16 for p in model.parameters())
    assert f"convert: {halves} parameters learn in half precision, which loses small updates (embed.weight, " in caplog.text
    assert {layer.weight.dtype for layer in bitlinear_layers(model).values()} == {torch.float32}
    assert model.embed.weight.dtype == torch.bfloat16
    y = model(torch.randint(11, (2, 8)))
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())


def test_a_weight_that_another_layer_uses_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "other": nn.Linear(8, 8)}).bfloat16()
    model["other"].weight = model["a"].weight
    convert_linears(model, exclude=["other"])
    model["other"](model["a"](torch.randn(2, 8).bfloat16())).sum().backward()
    assert model["a"].weight.dtype == torch.bfloat16
    assert WARNING in caplog.text


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("settings", [{}, {"granularity": 4}, {"warmup": 3}])
def test_learning_in_half_precision_is_told_once(
    kind: torch.dtype, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """However the weights came to it. An evaluation, frozen weights and float32 say nothing."""
    caplog.set_level(logging.WARNING)
    x = torch.randn(2, 8)
    layer = BitLinear(8, 8, **settings)
    layer(x)
    layer.to(kind).eval()(x.to(kind))
    layer.train().requires_grad_(False)(x.to(kind))
    with torch.no_grad():
        layer.requires_grad_(True)(x.to(kind))
    assert not caplog.records
    for _ in range(3):
        layer(x.to(kind))
        BitLinear(8, 8, dtype=kind, **settings)(x.to(kind))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{WARNING} {kind}, which lose small updates")
