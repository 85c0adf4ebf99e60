"""Row 3: inputs that quantized and packed layers are not for: refused by name, or computed with the right gradient."""

import json
import os
import re
from collections.abc import Callable
from itertools import product
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program import ROOT, run
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from research.data.spec import Tokens, Vectors
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.packed import Int8Embedding, Int8Linear, Int8Table, PackedLinear, pack_model
from research.nn.tiles import int8_linear, multiply, ternary_linear

# A process of its own: here, jaxtyping's hook would refuse the types first.
REFUSED_INPUTS = """
import json, torch
from research.nn.bitlinear import BitLinear
from research.nn.packed import Int8Embedding, Int8Linear, Int8Table, PackedLinear

settings = {"default": {}, "groups": {"granularity": 4}, "warmup": {"warmup": 3}}
settings["tensor"] = {"activation_granularity": "tensor"}
layers = {name: BitLinear(8, 4, **own) for name, own in settings.items()}
for native in (True, False):
    layers[f"packed {native}"] = PackedLinear.from_bitlinear(layers["default"])
    layers[f"int8 {native}"] = Int8Linear(Int8Table(torch.ones(4, 8)))
    layers[f"packed {native}"].native = layers[f"int8 {native}"].native = native
words = {}
for kind in ("bool", "uint8", "int8", "int16", "int32", "int64", "complex64"):
    inputs = torch.ones(3, 8).to(getattr(torch, kind))
    for name, layer in layers.items():
        try:
            words[f"{kind} into {name}"] = str(layer(inputs).dtype)
        except ValueError as error:
            words[f"{kind} into {name}"] = str(error)
embedding = Int8Embedding(Int8Table(torch.ones(4, 8)))
wrong_tokens = {"mask": [True] * 4, "uint8": torch.ones(4).byte(), "float": [1.0], "-1": [-1], "4": [4]}
for name, tokens in wrong_tokens.items():
    try:
        words[f"{name} into embedding"] = str(embedding(torch.as_tensor(tokens)).shape)
    except (RuntimeError, IndexError):
        words[f"{name} into embedding"] = "refused"
print(json.dumps(words))
"""


def test_inputs_that_are_no_fractions_are_refused_by_name() -> None:
    done = run(["-c", REFUSED_INPUTS], ROOT, dict(os.environ))
    assert done.returncode == 0, done.stderr
    words = json.loads(done.stdout)
    assert len(words) == 7 * 8 + 5
    for case, word in words.items():
        if case.endswith("embedding"):
            assert word == "refused", case
        else:
            kind = case.split()[0]
            assert word == f"a quantized layer takes floating-point input, got torch.{kind}: give x.to(torch.float32)", case


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 4), max_size=2),
    width=st.integers(1, 150),
    out=st.integers(1, 70),
    native=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_a_packed_layer_gives_the_gradient_of_its_bitlinear(
    shape: list[int], width: int, out: int, native: bool, granularity: Any, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = BitLinear(width, out, granularity=granularity, backend="ste")
    packed = PackedLinear.from_bitlinear(layer)
    packed.native = native
    x, direction = torch.randn(*shape, width), torch.randn(*shape, out).to(dtype)
    with torch.no_grad():
        forward = packed(x.to(dtype))
    gradients = []
    for module in (layer, packed):
        own = x.to(dtype).requires_grad_()
        y = module(own)
        y.backward(direction)
        assert own.grad is not None
        gradients.append(own.grad)
    assert torch.equal(y, forward)
    torch.testing.assert_close(*gradients, rtol=0 if dtype != torch.float64 else 1e-6, atol=0)


@pytest.mark.parametrize(("native", "bits"), [*product((True, False), (2, 8))])
def test_the_gradients_of_input_and_scale_are_those_of_dequantized_weights(native: bool, bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 70)
    table, layer = Int8Table(weight), PackedLinear.from_bitlinear(BitLinear(70, 40, bias=False))
    module = layer if bits == 2 else Int8Linear(table, torch.randn(40))
    module.native = native
    owner = layer if bits == 2 else table
    codes = module(torch.eye(70)).detach()
    w = (codes - (0 if bits == 2 else module.bias)).t()  # the rows of the identity give the weights
    x, direction = torch.randn(3, 5, 70, requires_grad=True), torch.randn(3, 5, 40)
    owner.scale.requires_grad_()
    y = module(x)
    y.backward(direction)
    torch.testing.assert_close(x.grad, direction @ w, rtol=1e-5, atol=1e-6)
    values = y.detach() - (0 if bits == 2 else module.bias)
    torch.testing.assert_close(owner.scale.grad, (direction * values).sum((0, 1)) / owner.scale.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("int8_embeddings", [True, False])
def test_what_stands_before_packed_layers_learns_as_before_frozen_ones(native: bool, int8_embeddings: bool) -> None:
    """An adapter: the norms of a transformer, the first layer of a perceptron."""
    torch.manual_seed(0)

    def build(width: int, out: int, bias: bool = True) -> nn.Module:
        return BitLinear(width, out, bias, backend="ste")

    tokens = torch.randint(11, (4, 6))
    pairs = [
        (Transformer(Tokens(11, 8), 32, 2, 2, build, sub_norm=True), tokens),
        (MLP(Vectors(5, 3), 32, 2, build), torch.randn(4, 5)),
    ]
    for model, x in pairs:
        packed = pack_model(model.eval(), int8_embeddings)
        for module in packed.modules():
            if isinstance(module, PackedLinear | Int8Linear):
                module.native = native
        gradients = []
        for net in (model.requires_grad_(False), packed):
            learn = {name: p.requires_grad_() for name, p in net.named_parameters() if "norm" in name or name == "embed.bias"}
            net(x).square().mean().backward()
            gradients.append({name: p.grad for name, p in learn.items()})
        exact = not int8_embeddings
        for name, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-6 if exact else 0.1, atol=1e-7 if exact else 0.02)


def test_a_gradient_is_never_lost_in_silence() -> None:
    """The operators and functions below the layers refuse it; so do derivatives that the layers do not have."""
    layer, table = PackedLinear.from_bitlinear(BitLinear(70, 50)), Int8Table(torch.randn(50, 70))
    x = torch.randn(2, 70, requires_grad=True)
    operators: Any = torch.ops.grokbit
    functions: list[tuple[Any, Any]] = [(operators.ternary_linear, layer), (ternary_linear, layer)]
    functions += [(operators.int8_linear, table), (int8_linear, table)]
    for function, owner in functions:
        with pytest.raises(ValueError, match=r"records no gradient: call research\.nn\.tiles\.multiply"):
            function(x, owner.codes, owner.scale)
        assert multiply(function, x, owner.codes, owner.scale).requires_grad
    for layer.native in (True, False):
        with pytest.raises(RuntimeError, match="functorch"):
            torch.func.grad(lambda x: layer(x).sum())(x.detach())
        first = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0].sum()
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.backward()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # by torch itself, at its first dual_level
def test_a_forward_mode_derivative_is_refused(native: bool, grad_mode: bool) -> None:
    """The packed layers lost it, or gave another one. BitLinear has none either."""
    layer, table = PackedLinear.from_bitlinear(BitLinear(64, 32)), Int8Linear(Int8Table(torch.randn(32, 64)))
    modules: list[Any] = [BitLinear(64, 32), layer, table]
    x, operators, make_dual = torch.randn(2, 64), cast(Any, torch.ops.grokbit), cast(Any, forward_ad.make_dual)
    for module in modules:
        module.native = native
        refuses = pytest.raises((ValueError, NotImplementedError, RuntimeError), match=r"forward.mode|functorch")
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode), refuses:
            module(make_dual(x, x))
        with torch.set_grad_enabled(grad_mode), refuses:
            torch.func.jvp(module, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode"):
        operators.ternary_linear(make_dual(x, x), layer.codes, layer.scale)


@pytest.mark.parametrize(
    "trace", [lambda model, x: torch.export.export(model, (x,)).module(), lambda model, x: make_fx(model)(x)]
)
def test_a_graph_that_was_traced_without_a_gradient_gives_no_wrong_one(trace: Callable[..., Any]) -> None:
    """It has plain operators, whose own gradient is that of the scale alone: 100 % off. None is what it can say."""
    model = nn.Sequential(PackedLinear.from_bitlinear(BitLinear(8, 16)), Int8Linear(Int8Table(torch.randn(5, 16))))
    model[0].native = model[1].native = False  # type: ignore[assignment]
    graph, x = trace(model, torch.randn(2, 8)), torch.randn(2, 8, requires_grad=True)
    y = graph(x)
    assert torch.equal(y, model(x))
    assert not y.requires_grad


@pytest.mark.parametrize("native", [True, False])
def test_exporters_and_compilers_see_a_packed_layer_behind_one_that_learns(native: bool) -> None:
    """As one operator, or as plain ones of torch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 64), PackedLinear.from_bitlinear(BitLinear(64, 32)), Int8Linear(Int8Table(torch.randn(5, 32)))
    )
    model[1].native = model[2].native = native  # type: ignore[assignment]
    exported = torch.export.export(model, (x := torch.randn(2, 8),))
    nodes = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert any("grokbit" in name for name in nodes) == native
    assert not any("wrap" in name for name in nodes)
    with torch.no_grad():
        assert torch.equal(exported.module()(x), model(x))


class Adapter(BitLinear):
    """A low-rank adapter beside the weight: its forward is another one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def add_hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, y: y + 1)


MORE: dict[str, tuple[str, Callable[[Any], Any]]] = {  # what is done to a model, and the layer that the message names
    "a class": ("0.b", lambda model: model[0].update({"b": Adapter(8, 8)})),
    "a hook": ("0.b", lambda model: add_hook(model[0]["b"])),
    "a hook before": ("0.b", lambda model: model[0]["b"].register_forward_pre_hook(lambda module, args: (2 * args[0],))),
    "a hook on the head": ("0.head", lambda model: add_hook(model[0]["head"])),
    "a hook on the embedding": ("0.embed", lambda model: add_hook(model[0]["embed"])),
    "a forward of its own": ("0.b", lambda model: setattr(model[0]["b"], "forward", lambda x: x)),
    "a largest norm": ("0.embed", lambda model: setattr(model[0]["embed"], "max_norm", 0.1)),
}


@pytest.mark.parametrize("kind", MORE)
def test_a_layer_that_computes_more_than_a_packed_one_is_refused_by_name(kind: str) -> None:
    """It was packed without that, and gave other numbers."""
    layers: dict[str, nn.Module] = {"embed": nn.Embedding(5, 8), "b": BitLinear(8, 8), "head": nn.Linear(8, 5)}
    model = nn.Sequential(nn.ModuleDict(layers))
    pack_model(model)
    name, change = MORE[kind]
    change(model)
    with pytest.raises(ValueError, match=rf"^pack: {re.escape(name)} (is an? Adapter|has hooks|has max_norm=0\.1)"):
        pack_model(model)
    if name != "0.b":
        assert pack_model(model, int8_embeddings=False) is not model, "the layer stays as it is"


def test_a_computed_weight_and_hooks_of_what_stays_are_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(BitLinear(8, 8), nn.ReLU()).eval()
    nn.utils.parametrizations.weight_norm(model[0])
    add_hook(model[1])
    add_hook(model)
    x = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(pack_model(model)(x), model(x))


SHAPES = [(0, 16), (3, 0, 16), (0, 3, 16)]


@pytest.mark.parametrize("settings", [{}, {"granularity": 8}, {"warmup": 5}, {"granularity": "channel", "backend": "int8"}])
def test_no_rows_give_no_rows(settings: dict[str, Any]) -> None:
    """With every setting of the activations, forward and backward."""
    for bits, granularity, dtype, shape in product((8, 4), ("token", "tensor"), (torch.float32, torch.bfloat16), SHAPES):
        layer = BitLinear(16, 4, activation_bits=bits, activation_granularity=granularity, dtype=dtype, **settings)  # type: ignore[arg-type]
        x = torch.zeros(shape, dtype=dtype, requires_grad=True)
        y = layer(x)
        assert (y.shape, y.dtype) == ((*shape[:-1], 4), dtype)
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == shape
        assert not layer.weight.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("native", [True, False])
def test_no_rows_in_packed_layers(native: bool) -> None:
    layer, table = PackedLinear.from_bitlinear(BitLinear(16, 4)), Int8Table(torch.randn(4, 16))
    modules: list[Any] = [layer, Int8Linear(table)]
    for module in modules:
        module.native = native
        x: Tensor = torch.zeros(0, 16, requires_grad=True)
        module(x).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (0, 16)
    assert Int8Embedding(table)(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 16)
