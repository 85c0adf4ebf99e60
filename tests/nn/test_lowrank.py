"""What is fine-tuned inside the rounding merges to the bit, and learns by the chain rule."""

import copy
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from research.nn.bitlinear import BitLinear, bitlinear_layers, convert_linears
from research.nn.lowrank import add_gains, add_low_rank, let_norms_learn, make_gain_quantizer, merge_adapters
from research.nn.packed import PackedLinear, explain_unpackable
from research.options.finetuning import merge_finetuning

GAINS = (-1.0, -2.0, -1 + 1e-6, 0.0, 3.5, -0.9999, 1e4)  # minus one: a gain of 0, negative ones, below the floor of a scale


def add_inside(model: Any, rank: int = 1) -> Any:
    return add_low_rank(model, rank, 2.0, ["*"], [])


def perturb(model: nn.Module) -> None:
    """Give everything that learns other values, gains some of the odd ones."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(torch.randn_like(p))
                if "gain" in name:
                    p[: len(GAINS), 0] = torch.tensor(GAINS)[: len(p)]


@settings(max_examples=40)
@given(
    sizes=st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 5)),
    kind=st.sampled_from([add_inside, add_gains]),
    bits=st.sampled_from([1, 1.58]),
    scale_method=st.sampled_from(["absmean", "absmedian", "absmax"]),
    granularity=st.sampled_from(["tensor", "channel", 1, 4]),
    backend=st.sampled_from(["auto", "ste", "bf16_exact", "int8"]),
    zeros=st.sampled_from([0, 1, 30]),
    seed=st.integers(0, 99),
)
def test_a_merged_layer_gives_the_same_bits(
    sizes: Any, kind: Any, bits: Any, scale_method: Any, granularity: Any, backend: Any, zeros: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ins, outs, rows = sizes
    if isinstance(granularity, int):
        ins, backend = ins * granularity, "auto"
    quantized: dict[str, Any] = {"scale_method": scale_method, "weight_bits": bits, "granularity": granularity}
    model: Any = nn.Sequential(BitLinear(ins, outs, bool(seed % 2), **quantized, backend=backend)).eval()
    with torch.no_grad():
        model[0].weight[:zeros] = 0.0
    base, x = copy.deepcopy(model), torch.randn(rows, ins)
    kind(model)
    assert torch.equal(model(x), base(x)), "it begins as its base"
    perturb(model)
    merged: Any = merge_adapters(copy.deepcopy(model))
    assert type(merged[0]) is BitLinear
    assert torch.equal(merged(x), model(x))
    if not explain_unpackable(merged[0].quantizer):
        reference = copy.deepcopy(merged[0])
        reference.backend = "ste"
        torch.testing.assert_close(PackedLinear.from_bitlinear(merged[0])(x), reference(x), rtol=0, atol=0)


def test_gains_stand_in_the_configuration_as_in_the_layer() -> None:
    granularities: Any = ("tensor", "channel", 4)
    for granularity in granularities:
        layer = BitLinear(8, 4, granularity=granularity)
        linear = {"granularity": granularity, "scale_method": "absmean", "weight_bits": 1.58}
        config: dict[str, Any] = {"finetune": {"_target_": "research.finetune.gains.gains"}, "model": {"linear": linear}}
        merged, made = cast(Any, merge_finetuning(config)), make_gain_quantizer(layer.quantizer)
        assert merged["model"]["linear"] == {key: getattr(made, key) for key in linear}
        assert merged["finetune"] is None
        assert config["model"]["linear"] == linear


def straight_through_gradient(layer: BitLinear, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a plain layer's weight by plain operators, and its rounded weight."""
    plain = cast(Any, merge_adapters(nn.Sequential(copy.deepcopy(layer))))[0].requires_grad_()
    with torch.no_grad():
        codes, scale = plain.quantizer.quantize_weight(plain.weight)
        x_codes, x_scale = plain.quantizer.quantize_activation(x)
    weight = (codes * scale).requires_grad_()
    ((x_codes * x_scale) @ weight.t() * target).sum().backward()
    assert weight.grad is not None
    return weight.grad, weight.detach()


@pytest.mark.parametrize("kind", [add_inside, add_gains])
def test_the_gradient_is_the_chain_rule_behind_straight_through(kind: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(BitLinear(12, 9, bias=False, backend="ste"))
    kind(model, *([3] if kind is add_inside else []))
    perturb(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5 if p.requires_grad else 1.0)
    x, target = torch.randn(7, 12), torch.randn(7, 9)
    (model(x) * target).sum().backward()
    gradient, rounded = straight_through_gradient(model[0], x, target)
    part: Any = parametrize.type_before_parametrizations(model[0]) and model[0].parametrizations.weight[0]
    if kind is add_inside:
        torch.testing.assert_close(part.lora_a.grad, part.scaling * part.lora_b.t() @ gradient)
        torch.testing.assert_close(part.lora_b.grad, part.scaling * gradient @ part.lora_a.t())
    else:
        base = model[0].parametrizations.weight.original  # codes times scale
        torch.testing.assert_close(part.gain_minus_one.grad, (gradient * base).sum(1, keepdim=True))
        torch.testing.assert_close(rounded, base * (1 + part.gain_minus_one))
    assert [p.grad for p in model.parameters() if not p.requires_grad] == [None]


def test_a_frozen_weight_is_quantized_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, counted = BitLinear(8, 4), [0]
    original = type(layer.quantizer).quantize_weight
    x = torch.randn(2, 8, requires_grad=True)

    def count(self: Any, *arguments: Any) -> Any:
        counted[0] += 1
        return original(self, *arguments)

    monkeypatch.setattr(type(layer.quantizer), "quantize_weight", count)
    layer(x), layer(x)
    assert counted[0] == 2, "a weight that learns may change in each step"
    layer.requires_grad_(False)
    before = [layer(x) for _ in range(3)]
    assert counted[0] == 3
    with torch.no_grad():
        layer.weight.neg_()
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=0, atol=0)
    assert not torch.equal(layer(x), before[0])


def test_no_adapter_of_a_copy_is_lost_when_the_original_is_merged() -> None:
    model = add_inside(nn.Sequential(BitLinear(8, 4)))
    twin = copy.deepcopy(model)
    merge_adapters(model)
    assert isinstance(twin[0].weight, Tensor)
    assert list(bitlinear_layers(twin)) == ["0"]


def make_tied() -> nn.Module:
    model = nn.Sequential(BitLinear(8, 8), BitLinear(8, 8))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (nn.Sequential(nn.Linear(8, 4)), {}, "no ternary layer.*\ngive finetune=full"),
        (nn.Sequential(BitLinear(8, 4)), {"rank": 5}, r"finetune.rank=5: 0 has 8 inputs and 4 outputs\ngive at most 4"),
        (nn.Sequential(BitLinear(8, 4)), {"include": ["q_*"]}, r"finetune.include: the pattern q_\* matches no layer"),
        (nn.Sequential(BitLinear(8, 4)), {"exclude": ["9"]}, "finetune.exclude: the pattern 9 matches no layer"),
        (nn.Sequential(BitLinear(8, 4)), {"exclude": ["*"]}, "leave no layer"),
        (nn.Sequential(BitLinear(8, 4, warmup=3)), {}, "model.linear.warmup=3: finetune=inside keeps ternary weights"),
        (make_tied(), {}, "0 and 1 share one weight"),
        (add_gains(nn.Sequential(BitLinear(8, 4))), {}, "0 has hooks, a computed weight"),
    ],
)
def test_what_cannot_be_fine_tuned_inside_is_refused_by_name(model: Any, settings: Any, message: str) -> None:
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        add_low_rank(model, **{"rank": 1, "alpha": 1.0, "include": ["*"], "exclude": []} | settings)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_gains_are_of_ternary_weights() -> None:
    with pytest.raises(ValueError, match=r"weight_bits=4.*\ngive finetune=inside"):
        add_gains(nn.Sequential(BitLinear(8, 4, weight_bits=4)))


def test_norms_learn_where_they_are_let() -> None:
    model = add_inside(convert_linears(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))))
    let_norms_learn(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n} == {"1.weight", "1.bias"}
