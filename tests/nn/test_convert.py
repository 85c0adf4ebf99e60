"""Models are converted to BitLinears in place, or are not changed at all."""

from typing import Any

import pytest
import torch
from torch import nn

from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import (
    BitLinear,
    bitlinear_layers,
    convert_linears,
)


def test_convert_keeps_the_same_parameters() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), "head": nn.Linear(8, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = dict(model.named_parameters())
    model.get_submodule("body.2").eval()
    assert convert_linears(model, activation_bits=4) is model
    layers = bitlinear_layers(model)
    assert sorted(layers) == ["body.0", "body.2"]
    assert type(model["head"]) is nn.Linear
    assert not layers["body.2"].training
    assert all(p is before[name] for name, p in model.named_parameters())
    old = layers["body.0"].weight.detach().clone()
    y = model["head"](model["body"](torch.randn(3, 8)))
    y.sum().backward()
    optimizer.step()
    assert not torch.equal(layers["body.0"].weight, old)
    assert layers["body.0"].quantizer.activation_bits == 4


def test_convert_takes_patterns() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q_proj", "k_proj", "gate", "embed_in")})
    convert_linears(model, include=["*_proj", "gate"], exclude=["k_*"])
    assert sorted(bitlinear_layers(model)) == ["gate", "q_proj"]


class CustomLinear(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("model", "kwargs", "words"),
    [
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"include": ["k"]}, r"include=\['k'\].*the model has nn.Linear: q"),
        (nn.ModuleDict({"head": nn.Linear(8, 8)}), {}, "no layer matches"),
        (nn.ModuleDict({"q": nn.Conv1d(8, 8, 1)}), {}, "has no nn.Linear"),
        (nn.ModuleDict({"q": CustomLinear(8, 8)}), {}, "has no nn.Linear"),
        (nn.Linear(8, 8), {}, "the model has nn.Linear: itself"),
        (
            nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(6, 8)}),
            {"granularity": 4},
            "model.linear.granularity=4 does not divide the 6",
        ),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"include": ["q", "k*"]}, r"the pattern k\* matches no module; layers are q"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"exclude": "typo"}, "the pattern typo matches no module"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"scal": "absmean"}, "unexpected keyword argument 'scal'"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"warmup": -1}, "model.linear.warmup takes .* got -1"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"granularity": True}, "model.linear.granularity takes tensor.* got true"),
        (
            nn.ModuleDict({"q": nn.Linear(8, 8)}),
            {"granularity": 4, "backend": "int8"},
            r"model.linear.backend=int8 .*model.linear.granularity=4.*\ngive model.linear.backend=auto",
        ),
        (nn.ModuleDict({"q": nn.Conv1d(8, 8, 1), "head": nn.Linear(8, 8)}), {}, "head; its other weights are in Conv1d, not"),
    ],
)
def test_a_refused_conversion_changes_nothing(model: nn.Module, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        convert_linears(model, **kwargs)
    assert not bitlinear_layers(model)


def test_a_converted_model_starts_where_it_was_with_a_warm_up() -> None:
    """A mix of 0 is full precision, for fine-tuning from pretrained weights."""
    torch.manual_seed(0)
    model = Transformer(Tokens(11, 6), 32, 1, 2, nn.Linear, sub_norm=True)
    tokens = torch.randint(11, (3, 6))
    before = model(tokens)
    convert_linears(model, warmup=10)
    assert torch.equal(model(tokens), before)
    assert not torch.equal(model.eval()(tokens), before)


def test_a_shared_layer_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1] = model[0]
    convert_linears(model)
    assert model[0] is model[1]
    assert type(model[0]) is BitLinear


def test_a_layer_tied_to_an_embedding_stays() -> None:
    table, heads = nn.Embedding(5, 4), nn.ModuleList([nn.Linear(4, 4)])
    model = nn.ModuleDict({"table": table, "out": nn.Linear(4, 5, bias=False), "heads": heads})
    model["out"].weight = table.weight
    convert_linears(model)
    assert [type(module) for module in (model["out"], heads[0])] == [nn.Linear, BitLinear]


def test_evaluation_of_an_encoder_layer_uses_quantized_weights() -> None:
    torch.manual_seed(0)
    model = convert_linears(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), backend="ste").eval()
    x = torch.randn(2, 3, 16)
    expected = model(x.requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_an_encoder_takes_a_mask_of_padding() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = convert_linears(nn.TransformerEncoder(layer, 2), backend="ste").eval()
    x, padding = torch.randn(2, 3, 16), torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad():
        alone = model(x[:1, :2])
        torch.testing.assert_close(model(x, src_key_padding_mask=padding)[:1, :2], alone)


def test_one_pattern_needs_no_list() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "lm": nn.Linear(4, 4)})
    convert_linears(model, exclude="lm")
    assert [type(module) for module in model.values()] == [BitLinear, nn.Linear]


def test_hooks_and_computed_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="convert: 0 has hooks"):
        convert_linears(model)
    assert type(model[0]) is nn.Linear
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"convert: 1 has hooks or a computed weight"):
        convert_linears(model)
    assert type(model[0]) is nn.Linear
