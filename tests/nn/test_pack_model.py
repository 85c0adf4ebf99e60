"""Whole models are packed: the same outputs, tied weights, huge pages, size and export."""

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from research.data.spec import Tokens, Vectors
from research.kernels import ternary
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.packed import Int8Embedding, Int8Linear, PackedLinear, count_packed_bytes, pack_model
from research.nn.tiles import INS

needs_c = pytest.mark.skipif(ternary.get_library() is None, reason="no C compiler")
Reference = partial(BitLinear, backend="ste")


def list_packed(model: torch.nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


REFUSED = [("weight_bits", 2.0), ("weight_bits", 4.0), ("weight_bits", 8.0), ("granularity", 8), ("activation_bits", 4)]


@pytest.mark.parametrize(("setting", "value"), [*REFUSED, ("activation_granularity", "tensor")])
def test_settings_that_two_bits_cannot_hold_are_refused(setting: str, value: object) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), BitLinear(8, 8, **{setting: value}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"pack: 1 has linear\.{setting}={value}; a packed layer needs .*: train with"):
        pack_model(model)


def test_a_model_without_bitlinear_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no BitLinear; train one with model=bitnet"):
        pack_model(torch.nn.Linear(8, 8))


def make_transformer(**settings: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Tokens(101, 32), 48, 2, 4, Reference, **{"kv_heads": 2, "sub_norm": True} | settings).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_a_packed_model_equals_the_model(activation: str) -> None:
    model, tokens = make_transformer(activation=activation), torch.randint(101, (3, 20))
    with torch.no_grad():
        assert torch.equal(pack_model(model, int8_embeddings=False)(tokens), model(tokens))


def test_packing_does_not_change_the_model_and_keeps_no_float_weight() -> None:
    model, before = make_transformer(), copy.deepcopy(make_transformer().state_dict())
    packed = pack_model(model.train())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert len(list_packed(packed)) == 14
    assert not packed.training
    kinds = {t.dtype for name, t in packed.state_dict().items() if t.dim() > 1 and "norm" not in name}
    assert kinds == {torch.uint8, torch.int8}
    assert not any(p.requires_grad for p in packed.parameters())


def test_weights_in_huge_pages_lie_side_by_side_and_are_saved_alone(tmp_path: Path) -> None:
    """With more weights than one huge page holds."""
    model = torch.nn.Sequential(*(Reference(1100, 1100, bias=False) for _ in range(9))).eval()
    packed, x = pack_model(model), torch.randn(2, 1100)
    addresses = [layer.codes.data_ptr() for layer in list_packed(packed)]
    if sys.platform == "linux":
        assert all(
            b - a == layer.codes.nbytes for a, b, layer in zip(addresses, addresses[1:], packed.children(), strict=False)
        )
        assert addresses[0] % (1 << 21) == 0
    with torch.no_grad():
        assert torch.equal(packed(x), model(x))
    first = list_packed(packed)[0]
    torch.save(first.state_dict(), tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 1.1 * first.codes.nbytes + 20_000
    copied = copy.deepcopy(packed)
    del packed, first
    with torch.no_grad():
        assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_int8_embeddings(tie_embeddings: bool) -> None:
    """Tied weights stay tied; the error of a symbol is at most half a scale."""
    model = make_transformer(tie_embeddings=tie_embeddings)
    packed = pack_model(model)
    embed, head = packed.get_submodule("embed"), packed.get_submodule("head")
    assert isinstance(embed, Int8Embedding)
    assert isinstance(head, Int8Linear)
    assert (embed.table is head.table) == tie_embeddings
    assert embed.table.codes.shape[1] % INS == 0
    tokens = torch.arange(101)
    error = (embed(tokens) - model.embed(tokens)).abs().amax(1)
    assert (error <= 0.5001 * embed.table.scale).all()
    with torch.no_grad():
        torch.testing.assert_close(packed(tokens[None, :32]), model(tokens[None, :32]), rtol=0, atol=0.05)


def test_a_model_of_vectors() -> None:
    model = MLP(Vectors(64, 10), 32, 2, Reference).eval()
    x = torch.randn(5, 64)
    with torch.no_grad():
        assert torch.equal(pack_model(model, int8_embeddings=False)(x), model(x))
        torch.testing.assert_close(pack_model(model)(x), model(x), rtol=0, atol=0.05)


@needs_c
@pytest.mark.parametrize("native", [True, False])
def test_export_sees_the_layer(native: bool) -> None:
    """As one operator, or as operators of torch; for any batch size."""
    packed = pack_model(make_transformer())
    for module in packed.modules():
        if isinstance(module, PackedLinear | Int8Linear):
            module.native = native
    tokens = torch.randint(101, (2, 9))
    dynamic = ({0: torch.export.Dim.DYNAMIC}, None)
    exported = torch.export.export(packed, (tokens, None), dynamic_shapes=dynamic)
    assert ("grokbit" in str(exported.graph)) == native
    y, expected = exported.module()(tokens.repeat(3, 1), None), packed(tokens.repeat(3, 1))
    torch.testing.assert_close(y, expected, rtol=0, atol=0.05)  # the decomposed norm moves a few numbers to the next code


@pytest.mark.parametrize("settings", [{}, {"tie_embeddings": False, "activation": "relu2"}, {"dim": 36, "ffn_dim": 100}])
def test_count_packed_bytes_equals_the_size_of_the_packed_model(settings: dict[str, Any]) -> None:
    model = Transformer(
        Tokens(33, 8), heads=2, depth=2, linear=BitLinear, sub_norm=True, **{"dim": 64, "ffn_dim": 128} | settings
    )
    packed = pack_model(model)
    tensors = {id(t): t.nbytes for t in packed.parameters()} | {
        id(b): b.nbytes for n, b in packed.state_dict(keep_vars=True).items()
    }
    assert count_packed_bytes(model) == sum(tensors.values())


def test_a_layer_that_cannot_be_packed_counts_in_float32() -> None:
    model = Transformer(Tokens(33, 8), 64, 1, 2, partial(BitLinear, weight_bits=4), tie_embeddings=False)
    rest = sum(p.numel() for p in model.parameters()) - 2 * 33 * 64
    assert count_packed_bytes(model) == 4 * rest + 2 * 33 * (64 + 4)
