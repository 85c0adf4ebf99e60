"""Attention, rotary positions, norms and sizes against plain references."""

import cmath
import math
from typing import Any

import pytest
import torch

from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.attention import Attention
from research.nn.bitlinear import BitLinear
from research.nn.blocks import find_blocks
from research.nn.norm import RMSNorm
from research.nn.rope import build_rope_table, rotate


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_agrees_with_a_loop(kv_heads: int) -> None:
    torch.manual_seed(0)
    layer = Attention(32, 4, kv_heads, torch.nn.Linear, torch.nn.Identity())
    x = torch.randn(2, 6, 32)
    cos, sin = build_rope_table(6, 8)
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
    """2104.09864, eq. 34: pair (x_i, x_{i + d/2}) of position m is rotated by m theta_i, theta_i = 10000^(-2i/d)."""
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    cos, sin = build_rope_table(5, 8)
    y = rotate(x, cos, sin)
    for m in range(5):
        for i in range(4):
            rotation = cmath.exp(1j * m * 10_000 ** (-2 * i / 8))
            for head in range(2):
                z = complex(x[0, head, m, i], x[0, head, m, i + 4]) * rotation
                assert complex(y[0, head, m, i], y[0, head, m, i + 4]) == pytest.approx(z, abs=1e-6)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)
    cos, sin = build_rope_table(20, 8)

    def compute_score(i: int, j: int) -> torch.Tensor:
        return (rotate(q, cos[i : i + 1], sin[i : i + 1]) * rotate(k, cos[j : j + 1], sin[j : j + 1])).sum()

    torch.testing.assert_close(compute_score(3, 1), compute_score(17, 15), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_norm_and_its_gradient_agree_with_torch(kind: torch.dtype, rtol: float) -> None:
    """With a bf16 x, as under autocast, the weight stays float32, and so does the result."""
    torch.manual_seed(0)
    layer = RMSNorm(48).to(torch.promote_types(kind, torch.float32))
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(3, 5, 48, dtype=torch.float64).to(kind).requires_grad_()
    result: list[Any] = []
    expected: list[Any] = []
    for y, values in (
        (layer(x), result),
        (torch.nn.functional.rms_norm(x.double(), (48,), layer.weight.double(), 1e-5), expected),
    ):
        y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y))
        values.extend((y, x.grad, layer.weight.grad))
        x.grad = layer.weight.grad = None
    assert result[0].dtype == layer.weight.dtype
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=20 * rtol)


@pytest.mark.parametrize("linear", [torch.nn.Linear, BitLinear])
def test_the_transformer_does_not_see_the_future(linear: type[torch.nn.Linear]) -> None:
    model = Transformer(Tokens(11, 6), 32, 2, 2, linear, sub_norm=True)
    a = torch.randint(11, (3, 6))
    b = a.clone()
    b[:, 4:] = (b[:, 4:] + 1) % 11
    torch.testing.assert_close(model(a)[:, :4], model(b)[:, :4])
    assert not torch.allclose(model(a)[:, 4:], model(b)[:, 4:])


def test_blocks_are_listed_at_any_depth_but_not_within_another() -> None:
    inner = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(1, 1)), torch.nn.Linear(1, 1)])
    relu = torch.nn.ReLU()
    model = torch.nn.ModuleDict({"net": torch.nn.ModuleDict({"layers": inner}), "tail": torch.nn.Sequential(relu)})
    assert find_blocks(model) == {"net.layers.0": inner[0], "net.layers.1": inner[1], "tail.0": relu}


@pytest.mark.parametrize(("heads", "kv_heads", "words"), [(3, None, "model.heads=3"), (4, 3, "model.kv_heads=3")])
def test_heads_that_do_not_divide_are_refused(heads: int, kv_heads: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Transformer(Tokens(11, 6), 32, 1, heads, torch.nn.Linear, kv_heads=kv_heads)
