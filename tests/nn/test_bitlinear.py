"""One layer, three backends: the same codes, outputs and gradients, for any input and on the meta device."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.nn import products
from research.nn.attention import Attention
from research.nn.bitlinear import (
    BitLinear,
    _forward_quantized,
    count_warmup,
    set_warmup_step,
    shared_input_linears,
)
from research.nn.norm import RMSNorm
from research.nn.quantize import Quantizer

BACKENDS = ("ste", "bf16_exact", "int8")


TOLERANCES = {"ste": 1e-5, "int8": 1e-5, "bf16_exact": 2**-7}  # of the largest output: what a bf16 sum and scale leave


SETTINGS: list[dict[str, Any]] = [
    {},
    {"granularity": "channel", "scale_method": "absmax", "weight_bits": 4},
    {"activation_bits": 4},
    {"activation_granularity": "tensor", "weight_bits": 1},
    {"scale_method": "absmedian"},
]


def make_layer(backend: Any, ins: int = 96, outs: int = 40, bias: bool = True, **settings: Any) -> BitLinear:
    torch.manual_seed(0)
    return BitLinear(ins, outs, bias, backend=backend, **settings)


def is_close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether two tensors differ by at most `tolerance` of the largest number."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


def run_backward(layer: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    """Return the output and the gradients of x and of the parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(g.to(y.dtype))
    results = [y.detach(), x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return [tensor for tensor in results if tensor is not None]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_backends_agree(settings: dict[str, Any]) -> None:
    x, g = torch.randn(2, 30, 96), torch.randn(2, 30, 40)
    expected = run_backward(make_layer("ste", **settings), x, g)
    for backend in BACKENDS:
        result = run_backward(make_layer(backend, **settings), x, g)
        assert is_close(result[0], expected[0], TOLERANCES[backend])
        assert backend == "bf16_exact" or torch.equal(result[0], expected[0])
        for one, other in zip(result[1:], expected[1:], strict=True):
            assert one.dtype == torch.float32
            assert is_close(one, other, 2**-6)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_master_weights(backend: Any, dtype: torch.dtype) -> None:
    """Large activations must not overflow in fp16 on the way: 127^2 times as much is in the sum of codes."""
    size = 3e3 if dtype == torch.float16 else 3.0
    x, g = torch.randn(200, 96) * size, torch.randn(200, 40)
    expected = run_backward(make_layer("ste", bias=False), x, g)
    for kind in (torch.float32, dtype):
        with torch.autocast("cpu", dtype):
            layer = make_layer(backend, bias=False)
            y = layer(x.to(kind))
        assert y.dtype == dtype
        assert y.isfinite().all()
        xs = x.detach().to(kind).requires_grad_()
        with torch.autocast("cpu", dtype):
            y = layer(xs)
        y.backward(g.to(dtype))
        assert xs.grad is not None
        assert xs.grad.dtype == kind
        assert layer.weight.grad is not None
        assert layer.weight.grad.dtype == torch.float32
        assert is_close(y.float(), expected[0], 2**-6)
        assert is_close(xs.grad.float(), expected[1], 2**-5)
        assert is_close(layer.weight.grad, expected[2], 2**-5)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_any_shape_works(backend: Any) -> None:
    for shape in [(96,), (1, 96), (3, 1, 96), (0, 96), (129, 96)]:
        layer = make_layer(backend)
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        assert y.shape == (*shape[:-1], 40)
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    odd = make_layer(backend, 7, 3)
    codes, scale = odd.quantizer.quantize_activation(x := torch.randn(5, 7))
    w_codes, w_scale = odd.quantizer.quantize_weight(odd.weight)
    close = {"bf16_exact": 2e-2, "auto": 2e-2}.get(backend, 1e-6)
    torch.testing.assert_close(odd(x), F.linear(codes * scale, w_codes * w_scale, odd.bias), rtol=close, atol=close)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_input_linears_equal_separate_calls(backend: Any) -> None:
    """And the gradient of the shared input is the sum."""
    torch.manual_seed(0)
    several = [BitLinear(96, outs, bias, backend=backend) for outs, bias in ((40, True), (8, False), (24, True))]
    x = torch.randn(4, 10, 96, requires_grad=True)
    separate = [layer(x) for layer in several]
    gs = [torch.randn_like(y) for y in separate]
    expected = torch.autograd.grad(separate, [x, *(layer.weight for layer in several)], gs)
    joined = shared_input_linears(x, *several)
    assert all(torch.equal(one, other) for one, other in zip(joined, separate, strict=True))
    result = torch.autograd.grad(joined, [x, *(layer.weight for layer in several)], gs)
    assert is_close(result[0], expected[0], 1e-5 if backend == "ste" else 2**-6)
    assert all(torch.equal(one, other) for one, other in zip(result[1:], expected[1:], strict=True))


def test_the_choice_is_by_device_and_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "FAST_BF16", True)
    monkeypatch.setattr(products, "FAST_INT8", True)
    large, little = torch.zeros(512, 512), torch.zeros(8, 64)
    assert products.choose_backend(large, 512, needs_grad=True, half_precision=False) == "bf16_exact"
    assert products.choose_backend(little, 64, needs_grad=True, half_precision=False) == "ste"
    assert products.choose_backend(large, 512, needs_grad=False, half_precision=True) == "bf16_exact"
    assert products.choose_backend(large, 512, needs_grad=False, half_precision=False) == "int8", (
        "an evaluation in float32 is exact"
    )
    assert products.choose_backend(large.double(), 512, needs_grad=True, half_precision=False) == "ste"
    assert products.choose_backend(large.to("meta"), 512, needs_grad=True, half_precision=False) == "ste"
    monkeypatch.setattr(products, "FAST_BF16", False)
    assert products.choose_backend(large, 512, needs_grad=True, half_precision=True) == "int8"
    assert products.choose_backward_dtype(large.to(torch.int8)) == torch.float32
    monkeypatch.setattr(products, "FAST_INT8", False)
    assert products.choose_backend(large, 512, needs_grad=True, half_precision=True) == "ste"


def test_without_an_int8_product_the_sum_does_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices that are neither a CPU nor CUDA."""
    x, w = (torch.full(shape, 127, dtype=torch.int8) for shape in ((2, 96), (3, 96)))
    assert products._has_int8_matmul(x, w)
    assert not products._has_int8_matmul(x.to("meta"), w.to("meta"))
    monkeypatch.setattr(products, "_has_int8_matmul", lambda x, w: False)
    assert torch.equal(products.scaled_matmul(x, w, torch.ones(()), torch.float32), torch.full((2, 3), 96 * 127.0**2))


@pytest.mark.parametrize("settings", [{}, {"granularity": 32}, {"warmup": 4}, {"backend": "int8"}], ids=str)
def test_on_the_meta_device_there_are_shapes(settings: dict[str, Any]) -> None:
    layer = BitLinear(96, 40, device=torch.device("meta"), **settings)
    y = layer(torch.empty(2, 3, 96, device="meta"))
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 40), torch.float32, "meta")


@pytest.mark.parametrize("warmup", [0, 4])
def test_a_layer_filled_from_a_checkpoint_is_the_same(warmup: int) -> None:
    """Built on the meta device: `set_warmup_step` sets the mix, which checkpoints do not hold."""
    torch.manual_seed(0)
    layer, x = BitLinear(8, 4, warmup=warmup), torch.randn(3, 8)
    later = BitLinear(8, 4, warmup=warmup, device=torch.device("meta")).to_empty(device="cpu")
    later.load_state_dict(layer.state_dict())
    for step in (0, 2, 4):
        set_warmup_step([layer, later], step)
        assert torch.equal(later(x), layer(x))


def test_a_warmup_may_be_a_share_of_the_steps() -> None:
    """It is counted once the steps are known, and counted again for others."""
    layer = BitLinear(8, 4, warmup=0.25)
    with pytest.raises(ValueError, match=r"warmup=0.25 is a share of the steps: call count_warmup"):
        set_warmup_step([layer], 0)
    for steps, at_two in ((10, 2 / 3), (16, 0.5)):
        count_warmup([layer], steps)
        set_warmup_step([layer], 2)
        assert float(layer.mix) == pytest.approx(at_two)
    with pytest.raises(ValueError, match=r"model.linear.warmup=1 does not end within trainer.steps=1"):
        count_warmup([layer], 1)
    with pytest.raises(ValueError, match=r"model.linear.warmup takes a whole number .* or a number in \(0, 1\); got 1.5"):
        BitLinear(8, 4, warmup=1.5)


@pytest.mark.parametrize(("ins", "outs"), [(0, 8), (8, 0)])
def test_a_layer_without_weights_is_refused(ins: int, outs: int) -> None:
    with pytest.raises(ValueError, match=f"a BitLinear of {ins} inputs and {outs} outputs has no weight to quantize"):
        BitLinear(ins, outs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_integer_input_is_refused(dtype: torch.dtype, autocast: bool) -> None:
    joint = inspect.unwrap(_forward_quantized)  # without beartype, which only the tests have
    words = rf"got {dtype}: give x.to\(torch.float32\)"
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match=words):
        joint(torch.ones(3, 96).to(dtype), [make_layer("ste")])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_output_has_the_type_of_the_input(dtype: torch.dtype) -> None:
    layer, x = make_layer("ste"), torch.randn(3, 96).bfloat16()
    y = layer(x.to(dtype).requires_grad_())
    assert y.dtype == dtype
    assert is_close(y, layer(x.float()).to(dtype), 2**-7)
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_shared_input_linears_take_layers_of_any_kind() -> None:
    x = torch.randn(4, 96)
    mixed = [nn.Linear(96, 8), make_layer("ste"), make_layer("auto", granularity=32), make_layer("ste", activation_bits=4)]
    for y, layer in zip(shared_input_linears(x, *mixed), mixed, strict=True):
        assert torch.equal(y, layer(x))


def test_an_attention_quantizes_its_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = Quantizer.quantize_activation

    def count(self: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return real(self, x)

    monkeypatch.setattr(Quantizer, "quantize_activation", count)
    attention = Attention(32, 4, 2, BitLinear, nn.Identity())
    attention(torch.randn(2, 6, 32), torch.ones(6, 4), torch.zeros(6, 4))
    assert len(seen) == 2, "once for q, k and v, and once for o"


@pytest.mark.parametrize("backend", BACKENDS)
def test_activations_are_saved_as_int8(backend: Any) -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    layer = make_layer(backend, bias=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(64, 96, requires_grad=True))
    assert [tensor.dtype for tensor in saved if tensor.shape == (64, 96)] == [torch.int8]
    assert sum(tensor.nbytes for tensor in saved if tensor.shape != (40, 96)) <= 64 * 96 + 64 * 4 + 4


def test_a_subclass_or_a_hooked_layer_is_called_by_itself() -> None:
    class Zero(BitLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0

    x, seen = torch.randn(3, 8), []
    hooked, plain = BitLinear(8, 4), Zero(8, 4)
    hooked.register_forward_hook(lambda *args: seen.append(args))
    one, other = shared_input_linears(x, hooked, plain)
    assert len(seen) == 1
    assert torch.equal(one, hooked(x))
    assert not other.any()


def test_a_second_derivative_raises() -> None:
    for layer in (BitLinear(8, 4), RMSNorm(8)):
        x = torch.randn(3, 8, requires_grad=True)
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_the_input_may_be_a_vector() -> None:
    for layer in (BitLinear(8, 8), RMSNorm(8), nn.RMSNorm(8)):
        x = torch.randn(8, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (8,)
