"""Every setting of the quantizer against plain Python, number by number; its gradient; and the warm-up."""

import itertools
import math
import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear, bitlinear_layers, set_warmup_step
from research.nn.quantize import EPS, LEVELS, TERNARY, Quantizer
from research.optim.schedules import constant
from research.options.signature import read_signature
from research.ranges import describe_mistake
from research.training.state import Callback, State
from research.training.trainer import Trainer

SCALE_METHODS, BITS, GRANULARITIES = ("absmean", "absmedian", "absmax"), (1, 1.58, 2, 4, 8), ("tensor", "channel", 4)
WEIGHTS = list(itertools.product(SCALE_METHODS, BITS, GRANULARITIES))
ACTIVATIONS: list[tuple[Any, Any]] = list(itertools.product((8, 4), ("token", "tensor")))
BACKENDS = ("ste", "bf16_exact", "int8")


def draw_tensor(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size


def measure_size(values: list[float], scale_method: str) -> float:
    sizes = [abs(v) for v in values]
    measures: dict[str, Callable[[list[float]], float]] = {
        "absmean": statistics.fmean,
        "absmedian": statistics.median_low,
        "absmax": max,
    }
    return max(measures[scale_method](sizes), EPS)


def quantize_values(values: list[float], scale_method: str, bits: float) -> list[float]:
    """Return quantized values, which share a scale."""
    low, high = LEVELS[bits]
    scale = measure_size(values, scale_method) / (high if scale_method == "absmax" else math.sqrt(high))
    if bits == 1:
        mean = statistics.fmean(values)
        return [scale if v > mean else -scale for v in values]
    return [min(high, max(low, round(v / scale))) * scale for v in values]


def quantize_weight(w: Tensor, scale_method: str, bits: float, granularity: str | int) -> Tensor:
    """Quantize a weight, whose scale is shared by all numbers, a row, or so many numbers of a row."""
    share = w.numel() if granularity == "tensor" else w.shape[1] if granularity == "channel" else int(granularity)
    groups = w.reshape(-1, share).tolist()
    return torch.tensor([quantize_values(group, scale_method, bits) for group in groups], dtype=w.dtype).view_as(w)


def quantize_activation(x: Tensor, bits: int, granularity: str) -> Tensor:
    """2504.12285, section 2 for 8 bits; 2411.04965, section 2 for 4."""
    out = []
    for values in x.reshape(-1, x.numel() if granularity == "tensor" else x.shape[-1]).tolist():
        if bits == 8:
            scale = measure_size(values, "absmax") / 127
            out.append([max(-128, min(127, round(v / scale))) * scale for v in values])
        else:
            scale = measure_size(values, "absmean") / math.sqrt(7)
            out.append([max(-8, min(7, round(v / scale))) * scale for v in values])
    return torch.tensor(out, dtype=x.dtype).view_as(x)


@pytest.mark.parametrize(("scale_method", "bits", "granularity"), WEIGHTS)
def test_weights_agree_with_the_reference(scale_method: Any, bits: float, granularity: Any) -> None:
    quantizer = Quantizer(scale_method, bits, granularity)
    for size in (1.0, 1e-3, 300.0, 1e-9):
        w = draw_tensor(6, 8, size=size)
        codes, scale = quantizer.quantize_weight(w)
        torch.testing.assert_close(codes * scale, quantize_weight(w, scale_method, bits, granularity), rtol=1e-12, atol=0)
        assert set(codes.unique().tolist()) <= set(range(LEVELS[bits][0], LEVELS[bits][1] + 1))
        small, same = quantizer.quantize_weight(w, torch.bfloat16)
        assert torch.equal(small.double(), codes), "codes are exact in bf16"
        assert torch.equal(same, scale)


@pytest.mark.parametrize(("bits", "granularity"), ACTIVATIONS)
def test_activations_agree_with_the_reference(bits: Any, granularity: Any) -> None:
    quantizer = Quantizer(activation_bits=bits, activation_granularity=granularity)
    for size in (1.0, 1e-3, 300.0, 1e-9):
        x = draw_tensor(2, 5, 16, size=size)
        codes, scale = quantizer.quantize_activation(x)
        torch.testing.assert_close(codes * scale, quantize_activation(x, bits, granularity), rtol=1e-12, atol=0)
        assert codes.abs().max() <= (127 if bits == 8 else 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_of_half_precision_equal_exact_arithmetic(dtype: torch.dtype) -> None:
    x = draw_tensor(40, 344).to(dtype)
    codes, scale = TERNARY.quantize_activation(x)
    assert codes.dtype == scale.dtype == torch.float32
    exact = x.double() / (x.double().abs().amax(-1, keepdim=True) / 127)
    clear = (exact.abs() % 1 - 0.5).abs() > 1e-4  # at a half float32 and double may round differently
    assert clear.float().mean() > 0.99
    assert torch.equal(codes[clear].double(), exact.round()[clear])


@pytest.mark.parametrize(("scale_method", "bits", "granularity"), WEIGHTS)
def test_the_gradient_is_straight_through(scale_method: Any, bits: float, granularity: Any) -> None:
    """It ignores the quantization of x and w, and multiplies with their quantized values."""
    for activation_bits, activation_granularity in ACTIVATIONS:
        layer = BitLinear(8, 5, True, scale_method, bits, granularity, activation_bits, activation_granularity).double()
        x, g = draw_tensor(2, 3, 8, seed=1).requires_grad_(), draw_tensor(2, 3, 5, seed=2)
        xq = quantize_activation(x.detach(), activation_bits, activation_granularity)
        wq = quantize_weight(layer.weight.detach(), scale_method, bits, granularity)
        y = layer(x)
        torch.testing.assert_close(y, F.linear(xq, wq, layer.bias))
        y.backward(g)
        torch.testing.assert_close(x.grad, g @ wq)
        torch.testing.assert_close(layer.weight.grad, g.flatten(0, 1).T @ xq.flatten(0, 1))
        torch.testing.assert_close(layer.bias.grad, g.sum((0, 1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_stay_zeros(backend: Any) -> None:
    layer = BitLinear(8, 5, bias=False, backend=backend)
    x = torch.randn(4, 8)
    x[1] = 0
    x[2] = 1e-40  # denormal
    x.requires_grad_()
    y = layer(x)
    assert not y[1:3].any()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    torch.nn.init.zeros_(layer.weight)
    assert not layer(x).any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nonfinite_numbers_reach_the_outputs(backend: Any, value: float) -> None:
    """One in a token makes all its outputs nonfinite; one in a weight, all outputs that share its scale."""
    for (scale_method, bits, granularity), (activation_bits, activation_granularity) in itertools.product(WEIGHTS, ACTIVATIONS):
        if isinstance(granularity, int) and backend != "ste":
            continue  # the other backends refuse groups
        settings: dict[str, Any] = {"scale_method": scale_method, "weight_bits": bits, "granularity": granularity}
        settings |= {"activation_bits": activation_bits, "activation_granularity": activation_granularity}
        layer = BitLinear(8, 5, False, backend=backend, **settings)
        x = torch.randn(4, 8)
        x[2, 3] = value
        seen = layer(x).isfinite()
        assert not seen[2].any()
        assert seen[[0, 1, 3]].all() == (activation_granularity == "token")
        with torch.no_grad():
            layer.weight[1, 3] = value
        seen = layer(torch.randn(4, 8)).isfinite()
        assert not seen[:, 1].any()
        assert seen[:, [0, 2, 3, 4]].all() == (granularity != "tensor")


@given(st.integers(0, 10_000), st.sampled_from(WEIGHTS), st.integers(-8, 8))
def test_codes_do_not_depend_on_the_unit_and_err_by_half_a_scale(
    seed: int, setting: tuple[Any, float, Any], power: int
) -> None:
    scale_method, bits, granularity = setting
    quantizer, w = Quantizer(scale_method, bits, granularity), draw_tensor(3, 8, seed=seed)
    codes, scale = quantizer.quantize_weight(w)
    again, larger = quantizer.quantize_weight(w * 2.0**power)
    assert torch.equal(codes, again)
    torch.testing.assert_close(larger, scale * 2.0**power, rtol=1e-12, atol=0)
    if bits > 1:
        low, high = (edge * scale for edge in LEVELS[bits])
        assert ((codes * scale - w.clamp(low, high)).abs() <= 0.5000001 * scale).all()


@given(st.integers(0, 10_000), st.sampled_from(ACTIVATIONS), st.floats(1e-3, 1e3))
def test_activations_err_by_half_a_scale_and_mirror(seed: int, setting: tuple[Any, Any], size: float) -> None:
    quantizer, x = (
        Quantizer(activation_bits=setting[0], activation_granularity=setting[1]),
        draw_tensor(4, 9, seed=seed, size=size).float(),
    )
    codes, scale = quantizer.quantize_activation(x)
    inside = codes.abs() < (128 if setting[0] == 8 else 7)
    assert (((codes * scale - x).abs() <= 0.5001 * scale) | ~inside).all()
    mirrored, same = quantizer.quantize_activation(-x)
    assert torch.equal(same, scale)
    assert torch.equal(mirrored[inside], -codes[inside])


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("scale_method", "mean", "absmean, absmedian, absmax; got"),
        ("weight_bits", 3, "a number in {1, 1.58, 2, 4, 8}; got 3"),
        ("activation_bits", 2, "8, 4; got 2"),
        ("activation_granularity", "row", "token, tensor; got"),
        ("granularity", 0, "tensor, channel or a whole number in [1, inf); got 0"),
        ("granularity", "row", 'tensor, channel or a whole number in [1, inf); got "row"'),
    ],
)
def test_an_unknown_value_is_refused(setting: str, value: Any, words: str) -> None:
    quantizer = Quantizer()
    object.__setattr__(quantizer, setting, value)  # beartype, which only the tests have, would be the first to complain
    with pytest.raises(ValueError, match=re.escape(f"model.linear.{setting} takes {words}")):
        quantizer.__post_init__()


def test_the_command_line_takes_the_bit_widths_of_the_quantizer() -> None:
    signature = read_signature("research.nn.bitlinear.BitLinear")
    assert signature is not None
    (takes,) = (parameter for parameter in signature.parameters if parameter.name == "weight_bits")
    assert not any(describe_mistake("bits", bits, takes.value_types) for bits in LEVELS)
    assert all(describe_mistake("bits", bits, takes.value_types) for bits in (0, 1.5, 3, 16, "1.58", None, True))


def test_the_warm_up_goes_from_full_precision_to_quantized_values() -> None:
    layer, plain, x = BitLinear(8, 5, warmup=4), BitLinear(8, 5), torch.randn(3, 8)
    plain.load_state_dict(layer.state_dict())
    set_warmup_step([layer, plain], 0)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)), "full precision, to the bit"
    set_warmup_step([layer, plain], 1)
    codes, x_scale = TERNARY.quantize_activation(x)
    w_codes, w_scale = TERNARY.quantize_weight(layer.weight)
    xq, wq = x.lerp(codes * x_scale, 0.25), layer.weight.lerp(w_codes * w_scale, 0.25)
    torch.testing.assert_close(layer(x), F.linear(xq, wq, layer.bias))
    layer.eval()
    assert torch.equal(layer(x), plain(x)), "evaluation uses quantized values"
    layer.train()
    for step in (4, 5, 1000):
        set_warmup_step([layer, plain], step)
        assert torch.equal(layer(x), plain(x))


def test_the_loop_sets_the_warm_up_step() -> None:
    data, mixes = modular(p=7), []

    class Look(Callback):
        def on_gradients(self, state: State) -> None:
            mixes.append([float(layer.mix) for layer in bitlinear_layers(state.model).values()])

    def make_linear(ins: int, outs: int, bias: bool) -> BitLinear:
        return BitLinear(ins, outs, bias, warmup=4)

    model = Transformer(data.shape, 16, 1, 2, make_linear)
    trainer = Trainer(6, 8, eval_every=6, device="cpu")
    state = trainer.setup(model, torch.optim.AdamW(model.parameters()), constant, last_token, data, [Look()], monitor="val/acc")
    trainer.fit(state)
    assert mixes == [[mix] * 7 for mix in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_quantized_in_float32(dtype: torch.dtype) -> None:
    zeros, _ = Quantizer().quantize_weight(torch.zeros(4, 4, dtype=dtype))
    assert not zeros.any()
    w = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, scale = Quantizer().quantize_weight(w)
    wide, wide_scale = Quantizer().quantize_weight(w.float())
    assert codes.dtype == dtype
    assert torch.equal(codes.float(), wide)
    assert scale == wide_scale
