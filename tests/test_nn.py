"""Quantisation, BitLinear, attention and rotary positions against plain references."""

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.dataset import Tokens
from research.models.transformer import Transformer
from research.nn.attention import Attention
from research.nn.bitlinear import BitLinear, packed_bytes, ternary_count
from research.nn.quantize import int8, ternary, ternary_codes
from research.nn.rope import rope_table, rotate


def reference_ternary(w: torch.Tensor) -> torch.Tensor:
    """One weight after the other, in Python's numbers (2402.17764, eq. 1 to 3)."""
    scale = max(sum(abs(v) for v in w.flatten().tolist()) / w.numel(), 1e-5)
    return torch.tensor([max(-1, min(1, round(v / scale))) * scale for v in w.flatten().tolist()]).view_as(w)


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_ternary_agrees_with_the_reference(seed: int, size: float) -> None:
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * size
    torch.testing.assert_close(ternary(w), reference_ternary(w), rtol=1e-5, atol=1e-6)
    assert set(ternary_codes(w).unique().tolist()) <= {-1.0, 0.0, 1.0}


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_int8_has_256_levels_and_errs_by_half_of_one(seed: int, size: float) -> None:
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed)) * size
    step = x.abs().amax(-1, keepdim=True) / 127
    q = int8(x)
    assert ((q - x).abs() <= 0.5001 * step).all()
    torch.testing.assert_close(q / step, (q / step).round(), rtol=0, atol=1e-3)


def reference_int8(x: torch.Tensor) -> torch.Tensor:
    """One number after the other, a scale a token (2504.12285, section 2)."""
    rows = []
    for row in x.flatten(0, -2).tolist():
        scale = 127 / max(*(abs(v) for v in row), 1e-5)
        rows.append([max(-128, min(127, round(v * scale))) / scale for v in row])
    return torch.tensor(rows).view_as(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_agrees_with_the_reference(dtype: torch.dtype) -> None:
    """Of bf16 numbers too, the codes are those that exact arithmetic gives."""
    x = torch.randn(40, 344, generator=torch.Generator().manual_seed(0)).to(dtype)
    step = x.float().abs().amax(-1, keepdim=True) / 127
    codes, expected = ((q / step).round() for q in (int8(x).float(), reference_int8(x.float())))
    clear = ((x.float() / step).abs() % 1 - 0.5).abs() > 1e-4  # at a half float32 and Python's double may round apart
    assert clear.float().mean() > 0.99
    assert torch.equal(codes[clear], expected[clear])


def test_zeros_stay_zeros() -> None:
    assert not ternary(torch.zeros(3, 4)).any()
    assert not int8(torch.zeros(3, 4)).any()


def test_bitlinear_forward_and_gradient() -> None:
    torch.manual_seed(0)
    layer, x = BitLinear(8, 5, bias=False), torch.randn(3, 8, requires_grad=True)
    y = layer(x)
    xq, wq = reference_int8(x.detach()), reference_ternary(layer.weight.detach())
    torch.testing.assert_close(y, xq @ wq.T)
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ wq)  # straight through the rounding of x, but through the rounded w
    torch.testing.assert_close(layer.weight.grad, g.T @ xq)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_agrees_with_a_loop(kv_heads: int) -> None:
    torch.manual_seed(0)
    layer = Attention(32, 4, kv_heads, torch.nn.Linear, torch.nn.Identity())
    x = torch.randn(2, 6, 32)
    cos, sin = rope_table(6, 8)
    split = [p(x).view(2, 6, -1, 8).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    q, k, v = rotate(split[0], cos, sin), rotate(split[1], cos, sin), split[2]
    out = torch.zeros(2, 6, 4, 8)
    for head in range(4):
        shared = head // (4 // kv_heads)
        for i in range(6):
            scores = torch.stack([(q[:, head, i] * k[:, shared, j]).sum(-1) for j in range(i + 1)], -1) / math.sqrt(8)
            out[:, i, head] = (scores.softmax(-1)[..., None] * v[:, shared, : i + 1]).sum(1)
    torch.testing.assert_close(layer(x, cos, sin), layer.o_proj(out.flatten(2)))


def test_rotary_positions_agree_with_complex_numbers() -> None:
    """2104.09864, eq. 34: pair (x_i, x_{i + width/2}) of position m is turned by m theta_i, theta_i = 10000^(-2i/width)."""
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    cos, sin = rope_table(5, 8)
    y = rotate(x, cos, sin)
    for m in range(5):
        for i in range(4):
            turn = cmath.exp(1j * m * 10_000 ** (-2 * i / 8))
            for head in range(2):
                z = complex(x[0, head, m, i], x[0, head, m, i + 4]) * turn
                assert complex(y[0, head, m, i], y[0, head, m, i + 4]) == pytest.approx(z, abs=1e-6)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)
    cos, sin = rope_table(20, 8)

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(q, cos[i : i + 1], sin[i : i + 1]) * rotate(k, cos[j : j + 1], sin[j : j + 1])).sum()

    torch.testing.assert_close(score(3, 1), score(17, 15), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear", [torch.nn.Linear, BitLinear])
def test_the_transformer_does_not_see_the_future(linear: type[torch.nn.Linear]) -> None:
    model = Transformer(Tokens(11, 6), 32, 2, 2, linear, sub_norm=True)
    a = torch.randint(11, (3, 6))
    b = a.clone()
    b[:, 4:] = (b[:, 4:] + 1) % 11
    torch.testing.assert_close(model(a)[:, :4], model(b)[:, :4])
    assert not torch.allclose(model(a)[:, 4:], model(b)[:, 4:])


def test_sizes_are_counted() -> None:
    model = Transformer(Tokens(11, 6), 32, 1, 2, BitLinear, hidden=64)
    ternary_weights = 4 * 32 * 32 + 3 * 32 * 64
    assert ternary_count(model) == ternary_weights
    rest = 11 * 32 + 3 * 32
    assert packed_bytes(model) == ternary_weights // 4 + 4 * (rest + 7)


@pytest.mark.parametrize(("heads", "kv_heads", "words"), [(3, None, "model.heads=3"), (4, 3, "model.kv_heads=3")])
def test_numbers_that_do_not_divide_are_named(heads: int, kv_heads: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Transformer(Tokens(11, 6), 32, 1, heads, torch.nn.Linear, kv_heads=kv_heads)
