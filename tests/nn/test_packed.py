"""Packed layers give the same bits as the plain reference, on every instruction set of this machine and in torch."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research.kernels import ternary
from research.nn.bitlinear import BitLinear
from research.nn.packed import (
    Int8Linear,
    Int8Table,
    PackedLinear,
)
from research.nn.tiles import int8_linear, pack, ternary_linear, unpack

LIBRARY = ternary.get_library()


ISAS = list(LIBRARY.isas) if LIBRARY else []


needs_c = pytest.mark.skipif(LIBRARY is None, reason="no C compiler")


Reference = partial(BitLinear, backend="ste")


SPECIALS = (None, 0.0, 1e-40, float("nan"), float("inf"), -float("inf"))


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    if LIBRARY:
        LIBRARY.use(ISAS[0])


def run_backends(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bits: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the product by torch and by each instruction set of this machine."""
    yield "torch", (ternary_linear if bits == 2 else int8_linear)(x, codes, scale)
    for isa in ISAS:
        assert LIBRARY
        LIBRARY.use(isa)
        yield isa, LIBRARY.linear(x, codes, scale, bits)


def assert_same(y: torch.Tensor, expected: torch.Tensor, finite: torch.Tensor, backend: str) -> None:
    """Check that finite rows have the same bits, and that the others have no finite number."""
    assert torch.equal(y[finite], expected[finite]), backend
    assert not y[~finite].isfinite().any(), backend


def make_rows(count: int, width: int, size: float, special: float | None, seed: int) -> torch.Tensor:
    """Return random rows; with `special`, some numbers and some rows are that number."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=random) * size
    if special is not None:
        x[torch.rand(count, 1, generator=random) * torch.ones(1, width) < 0.3] = special  # whole rows
        x[torch.rand(count, width, generator=random) < 0.01] = special
    return x


SHAPES = {
    "count": st.integers(1, 40),
    "width": st.integers(1, 300),
    "out": st.integers(1, 300),
    "size": st.integers(-38, 38).map(lambda e: 10.0**e),
    "special": st.sampled_from(SPECIALS),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=700)
@given(**SHAPES)
def test_a_packed_layer_equals_the_reference(
    count: int, width: int, out: int, size: float, special: float | None, seed: int
) -> None:
    x = make_rows(count, width, size, special, seed)
    layer = Reference(width, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(make_rows(out, width, 1.0, None, seed + 1))
        expected = layer(x)
    packed = PackedLinear.from_bitlinear(layer)
    for backend, y in run_backends(x, packed.codes, packed.scale, 2):
        assert_same(y, expected, x.isfinite().all(1), backend)


@settings(max_examples=300)
@given(**SHAPES)
def test_an_int8_layer_equals_integer_arithmetic(
    count: int, width: int, out: int, size: float, special: float | None, seed: int
) -> None:
    x = make_rows(count, width, size, special, seed)
    table = Int8Table(make_rows(out, width, 1.0, None, seed + 1))
    finite = x.isfinite().all(1)
    q, x_scale = BitLinear(1, 1).quantizer.quantize_activation(x[finite])
    sums = q.long() @ table.codes[:, :width].long().T
    expected = torch.full((count, out), float("nan"))
    expected[finite] = sums.float() * (x_scale * table.scale)
    for backend, y in run_backends(x, table.codes, table.scale, 8):
        assert_same(y, expected, finite, backend)


@pytest.mark.parametrize(
    ("count", "width", "out"), [(1, 5000, 40), (40, 9000, 50), (65, 2049, 33), (33, 1100, 600), (0, 8, 8), (9, 64, 1)]
)
def test_long_rows_and_several_threads(count: int, width: int, out: int) -> None:
    """Rows longer than float32 sums exactly for int8 products; partial tiles; no rows at all."""
    torch.set_num_threads(2)
    x, table = torch.randn(count, width), Int8Table(torch.ones(out, width))
    layer = PackedLinear.from_bitlinear(Reference(width, out))
    for codes, scale, bits in ((layer.codes, layer.scale, 2), (table.codes, table.scale, 8)):
        expected = ternary_linear(x, codes, scale) if bits == 2 else int8_linear(x, codes, scale)
        for backend, y in run_backends(x, codes, scale, bits):
            assert torch.equal(y, expected), backend


@given(st.integers(1, 70), st.integers(1, 200), st.integers(0, 1000))
def test_packing_keeps_the_codes(out: int, width: int, seed: int) -> None:
    codes = torch.randint(-1, 2, (out, width), generator=torch.Generator().manual_seed(seed)).float()
    packed = pack(codes)
    assert packed.shape == (-(-out // 16), -(-width // 64), 256)
    assert torch.equal(unpack(packed, out, width).float(), codes)


@pytest.mark.parametrize(
    "settings", [{}, {"granularity": "channel"}, {"scale_method": "absmedian"}, {"weight_bits": 1.0}, {"bias": True}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_packed_layer_replaces_its_bitlinear(settings: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Reference(70, 50, **{"bias": False} | settings)
    x = torch.randn(2, 3, 70).to(dtype)
    with torch.no_grad():
        expected = layer(x)
    packed = PackedLinear.from_bitlinear(layer)
    for packed.native in (True, False):
        y = packed(x)
        assert (y.dtype, y.shape) == (dtype, expected.shape)
        torch.testing.assert_close(y, expected, rtol=0 if dtype == torch.float32 else 1e-5, atol=0)
    assert packed(x[0, 0]).shape == (50,)
    assert packed(x[:, :0]).shape == (2, 0, 50)


def test_a_nonfinite_weight_gives_nonfinite_outputs() -> None:
    layer = Reference(8, 8, bias=False)
    with torch.no_grad():
        layer.weight[2, 3] = float("nan")
    packed = PackedLinear.from_bitlinear(layer)
    for packed.native in (True, False):
        assert packed(torch.randn(2, 8)).isnan().all()


def test_operators_pass_the_checks_of_torch() -> None:
    layer, table = PackedLinear.from_bitlinear(Reference(70, 50)), Int8Table(torch.randn(50, 70))
    x = torch.randn(2, 3, 70)
    torch.library.opcheck(torch.ops.grokbit.ternary_linear, (x, layer.codes, layer.scale))
    torch.library.opcheck(torch.ops.grokbit.int8_linear, (x, table.codes, table.scale))


@pytest.mark.parametrize("width", [6400, 60, 10])
def test_inputs_of_another_width_are_refused(width: int) -> None:
    """Else C would read past the end of the weights."""
    layer, x = PackedLinear.from_bitlinear(BitLinear(64, 32, bias=False)), torch.randn(1, width)
    with pytest.raises(ValueError, match=f"input has {width} features"):
        layer(x)
    table = Int8Table(torch.randn(5, 64))
    with pytest.raises(ValueError, match=f"input has {width} features"):
        Int8Linear(table)(x)
    if width > 64:
        with pytest.raises(ValueError, match="do not fit a layer"):
            torch.ops.grokbit.ternary_linear(x, layer.codes, layer.scale)
        with pytest.raises(ValueError, match="do not fit a layer"):
            torch.ops.grokbit.int8_linear(x, table.codes, table.scale)


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_c), False])
@pytest.mark.parametrize("width", [200, 3000])
def test_autocast_changes_nothing(width: int, native: bool) -> None:
    """Sums of int8 products have more bits than bf16."""
    layer, x = PackedLinear.from_bitlinear(Reference(width, 50, bias=False)), torch.randn(5, width)
    head = Int8Linear(Int8Table(torch.randn(40, width)))
    layer.native = head.native = native
    expected = layer(x), head(x)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x), head(x)
    assert all(torch.equal(*pair) for pair in zip(expected, result, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_layer_in_another_type(dtype: torch.dtype) -> None:
    layer = PackedLinear.from_bitlinear(BitLinear(64, 32, bias=True)).to(dtype)
    x = torch.randn(3, 64, dtype=dtype)
    plain = copy.deepcopy(layer)
    plain.native = False
    torch.testing.assert_close(layer(x), plain(x))
    assert layer(x).dtype == dtype
    assert layer(x).abs().max() > 0.01
