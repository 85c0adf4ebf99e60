"""One layer, three back ends: the same codes, outputs and gradients; and all that a linear layer has to live with."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program import ROOT
from torch import Tensor, nn

from research.data.modular import modular
from research.data.spec import Tokens
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn import products
from research.nn.attention import Attention
from research.nn.bitlinear import (
    BitLinear,
    _forward_quantized,
    bitlinear_layers,
    cached_quantized_weights,
    convert_linears,
    set_warmup_step,
    shared_input_linears,
)
from research.nn.norm import RMSNorm
from research.nn.quantize import Quantizer
from research.optim.schedules import constant
from research.training.evaluate import evaluate
from research.training.trainer import Trainer

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
    """By the largest number: a small one among large ones has few digits."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


def run_backward(layer: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    """Output and gradients of x and of the parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(g.to(y.dtype))
    found = [y.detach(), x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_back_ends_agree(settings: dict[str, Any]) -> None:
    x, g = torch.randn(2, 30, 96), torch.randn(2, 30, 40)
    expected = run_backward(make_layer("ste", **settings), x, g)
    for backend in BACKENDS:
        found = run_backward(make_layer(backend, **settings), x, g)
        assert is_close(found[0], expected[0], TOLERANCES[backend])
        assert backend == "bf16_exact" or torch.equal(found[0], expected[0])
        for one, other in zip(found[1:], expected[1:], strict=True):
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
def test_any_shape_goes(backend: Any) -> None:
    for shape in [(96,), (1, 96), (3, 1, 96), (0, 96), (129, 96)]:
        layer = make_layer(backend)
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        assert y.shape == (*shape[:-1], 40)
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    odd = make_layer(backend, 7, 3)
    codes, steps = odd.quantizer.quantize_activation(x := torch.randn(5, 7))
    w_codes, step = odd.quantizer.quantize_weight(odd.weight)
    close = {"bf16_exact": 2e-2, "auto": 2e-2}.get(backend, 1e-6)
    torch.testing.assert_close(odd(x), F.linear(codes * steps, w_codes * step, odd.bias), rtol=close, atol=close)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_input_linears_equal_separate_calls(backend: Any) -> None:
    """And the gradient of the shared input is the sum."""
    torch.manual_seed(0)
    several = [BitLinear(96, outs, bias, backend=backend) for outs, bias in ((40, True), (8, False), (24, True))]
    x = torch.randn(4, 10, 96, requires_grad=True)
    apart = [layer(x) for layer in several]
    gs = [torch.randn_like(y) for y in apart]
    expected = torch.autograd.grad(apart, [x, *(layer.weight for layer in several)], gs)
    joined = shared_input_linears(x, *several)
    assert all(torch.equal(one, other) for one, other in zip(joined, apart, strict=True))
    found = torch.autograd.grad(joined, [x, *(layer.weight for layer in several)], gs)
    assert is_close(found[0], expected[0], 1e-5 if backend == "ste" else 2**-6)
    assert all(torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True))


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
def test_weights_that_come_later_make_the_same_layer(warmup: int) -> None:
    """Made on the meta device, filled from a checkpoint: `begin_step` fills in lambda, which checkpoints do not hold."""
    torch.manual_seed(0)
    layer, x = BitLinear(8, 4, warmup=warmup), torch.randn(3, 8)
    later = BitLinear(8, 4, warmup=warmup, device=torch.device("meta")).to_empty(device="cpu")
    later.load_state_dict(layer.state_dict())
    for step in (0, 2, 4):
        set_warmup_step([layer, later], step)
        assert torch.equal(later(x), layer(x))


@pytest.mark.parametrize(("ins", "outs"), [(0, 8), (8, 0)])
def test_a_layer_without_weights_is_refused(ins: int, outs: int) -> None:
    with pytest.raises(ValueError, match=f"a BitLinear of {ins} inputs and {outs} outputs has no weight to round"):
        BitLinear(ins, outs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_whole_numbers_are_no_input(dtype: torch.dtype, autocast: bool) -> None:
    joint = inspect.unwrap(_forward_quantized)  # without the tests' own checks of types, which users do not have
    told = rf"its input is {dtype}: give x.to\(torch.float32\)"
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match=told):
        joint(torch.ones(3, 96).to(dtype), [make_layer("ste")])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_floating_point_type_is_that_of_the_output(dtype: torch.dtype) -> None:
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


def test_an_attention_rounds_its_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = Quantizer.quantize_activation
    monkeypatch.setattr(Quantizer, "quantize_activation", lambda self, x: seen.append(x) or real(self, x))
    attention = Attention(32, 4, 2, BitLinear, nn.Identity())
    attention(torch.randn(2, 6, 32), torch.ones(6, 4), torch.zeros(6, 4))
    assert len(seen) == 2, "of q, k and v together, and of o"


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


@pytest.fixture
def roundings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a weight was rounded."""
    count = [0]
    real = Quantizer.quantize_weight

    def count_weight(self: Quantizer, w: Tensor, dtype: torch.dtype | None = None) -> Any:
        count[0] += 1
        return real(self, w, dtype)

    monkeypatch.setattr(Quantizer, "quantize_weight", count_weight)
    return count


DATA = modular(p=7)


def make_model(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(DATA.shape, 16, 1, 2, lambda ins, outs, bias: BitLinear(ins, outs, bias, **settings))


@pytest.mark.parametrize(
    "settings",
    [{"backend": name} for name in ("auto", *BACKENDS)] + [{"granularity": "channel"}, {"granularity": 8}, {"warmup": 4}],
    ids=str,
)
def test_weights_are_rounded_once_a_step(roundings: list[int], settings: dict[str, Any]) -> None:
    """However many micro-batches it has: the same bits as when each rounds them."""
    model, gradients = make_model(**settings), []
    trainer = Trainer(5, 16, grad_accum=4, eval_every=5, device="cpu")
    bits = list(bitlinear_layers(model).values())
    set_warmup_step(bits, 3)
    x, y = DATA.train[torch.arange(16)]
    for keeps in (False, True):
        roundings[0] = 0
        with cached_quantized_weights(bits) if keeps else cached_quantized_weights([]):
            for part in range(4):
                last_token(model(x[4 * part : 4 * part + 4]), y[4 * part : 4 * part + 4]).sum().backward()
        assert roundings[0] == (7 if keeps else 4 * 7)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    assert torch.equal(*gradients)
    assert all(layer.cached_weight is None for layer in bits)
    roundings[0] = 0
    trainer.fit(model, torch.optim.AdamW(model.parameters()), constant, last_token, DATA, monitor="val/acc")
    assert roundings[0] == 5 * 7 + 7, "each step, and the evaluation after the last"


def test_an_evaluation_rounds_once_and_forgets(roundings: list[int]) -> None:
    model = make_model()
    evaluate(model, DATA.val, last_token, 4)
    assert roundings[0] == 7
    assert all(layer.cached_weight is None for layer in bitlinear_layers(model).values())
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, DATA.val, last_token, 4, poll=raise_error)
    assert all(layer.cached_weight is None for layer in bitlinear_layers(model).values())


def raise_error() -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_activations_give_the_same_gradients(backend: Any) -> None:
    found = []
    for again in (False, True):
        model = make_model(backend=backend)
        trainer = Trainer(2, 16, eval_every=2, device="cpu", checkpoint_activations=again)
        trainer.fit(model, torch.optim.SGD(model.parameters(), lr=0.1), constant, last_token, DATA, monitor="val/acc")
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*found)


COMPILED = """
import torch
from contextlib import nullcontext
from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear, bitlinear_layers, cached_quantized_weights
torch.set_num_threads(1)
torch.manual_seed(0)
net = Transformer(Tokens(11, 6), 32, 1, 2, BitLinear, sub_norm=True)
x, bits = torch.randint(11, (8, 6)), list(bitlinear_layers(net).values())

def passed(keeps, autocast):
    with cached_quantized_weights(bits) if keeps else nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = net(x).float().square().mean()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    net.zero_grad()
    return loss.detach(), gradient

ways = [(False, False), (True, True)]  # weights kept, autocast
expected = [passed(*way) for way in ways]
net.compile(fullgraph=True, backend="aot_eager")
for again in range(2):
    with torch.compiler.set_stance("fail_on_recompile" if again else "default"):
        for (loss, gradient), way in zip(expected, ways):
            found, other = passed(*way)
            assert (found - loss).abs() < 1e-3 * loss.abs(), (way, found, loss)
            assert (other - gradient).abs().max() < 0.05 * gradient.abs().max(), way
"""


def test_compiled_it_is_one_graph_for_all_steps() -> None:
    """Forward and backward, weights kept or not, under autocast or not: traced whole, and once.

    In a process of its own: torch.compile cannot see through beartype.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.training import sharding as shards
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(8, 32)

def build():
    torch.manual_seed(1)
    block = lambda: torch.nn.Sequential(BitLinear(32, 64, backend="bf16_exact"), torch.nn.SiLU(), BitLinear(64, 32))
    return torch.nn.Sequential(torch.nn.ModuleList([block(), block()])[0], block())

def gradient(net, x):
    net(x).square().mean().backward()
    return torch.cat([shards.full_tensor(p.grad).flatten() for p in net.parameters()])

alone = gradient(build(), x)
spread = build()
from torch.distributed.fsdp import fully_shard
for part in spread: fully_shard(part)
fully_shard(spread)
for net in (torch.nn.parallel.DistributedDataParallel(build()), spread):
    found = gradient(net, x[4 * rank : 4 * rank + 4])
    worst = (found - alone).abs().max() / alone.abs().max()
    assert worst < 2e-2, (type(net).__name__, worst)
dist.destroy_process_group()
"""


def test_two_processes_average_the_same_gradient(tmp_path: Path) -> None:
    """Under DDP, and with the weights spread by FSDP2."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES]
    both = [
        subprocess.Popen([*start, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in both:
        _, told = process.communicate(timeout=100)
        assert process.returncode == 0, told


def test_convert_keeps_the_very_weights() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), "head": nn.Linear(8, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = dict(model.named_parameters())
    model["body"][2].eval()
    assert convert_linears(model, activation_bits=4) is model
    assert sorted(bitlinear_layers(model)) == ["body.0", "body.2"]
    assert type(model["head"]) is nn.Linear
    assert not model["body"][2].training
    assert all(p is before[name] for name, p in model.named_parameters())
    old = model["body"][0].weight.detach().clone()
    y = model["head"](model["body"](torch.randn(3, 8)))
    y.sum().backward()
    optimizer.step()
    assert not torch.equal(model["body"][0].weight, old)
    assert model["body"][0].quantizer.activation_bits == 4


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
        (nn.ModuleDict({"head": nn.Linear(8, 8)}), {}, "no layer fits"),
        (nn.ModuleDict({"q": nn.Conv1d(8, 8, 1)}), {}, "has no nn.Linear"),
        (nn.ModuleDict({"q": CustomLinear(8, 8)}), {}, "has no nn.Linear"),
        (nn.Linear(8, 8), {}, "the model has nn.Linear: itself"),
        (
            nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(6, 8)}),
            {"granularity": 4},
            "model.linear.granularity=4 does not divide the 6",
        ),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"include": ["q", "k*"]}, r"the pattern k\* fits no module; layers are q"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"exclude": "typo"}, "the pattern typo fits no module"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"scal": "absmean"}, "unexpected keyword argument 'scal'"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"warmup": -1}, "model.linear.warmup=-1: give a number of steps"),
        (nn.ModuleDict({"q": nn.Linear(8, 8)}), {"granularity": True}, "model.linear.granularity=True: give tensor"),
        (
            nn.ModuleDict({"q": nn.Linear(8, 8)}),
            {"granularity": 4, "backend": "int8"},
            "with model.linear.granularity=4 there is ste only",
        ),
        (nn.ModuleDict({"q": nn.Conv1d(8, 8, 1), "head": nn.Linear(8, 8)}), {}, "head; its other weights are in Conv1d, not"),
    ],
)
def test_what_convert_cannot_do_changes_nothing(model: nn.Module, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        convert_linears(model, **kwargs)
    assert not bitlinear_layers(model)


def test_a_converted_model_starts_where_it_was_with_a_warm_up() -> None:
    """lambda = 0 is full precision: what a fine-tuning from pretrained weights needs."""
    torch.manual_seed(0)
    model = Transformer(Tokens(11, 6), 32, 1, 2, nn.Linear, sub_norm=True)
    tokens = torch.randint(11, (3, 6))
    before = model(tokens)
    convert_linears(model, warmup=10)
    assert torch.equal(model(tokens), before)
    assert not torch.equal(model.eval()(tokens), before)


def test_a_layer_that_somebody_has_changed_is_called_by_itself() -> None:
    class Zero(BitLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0

    x, seen = torch.randn(3, 8), []
    hooked, plain = BitLinear(8, 4), Zero(8, 4)
    hooked.register_forward_hook(lambda *told: seen.append(told))
    one, other = shared_input_linears(x, hooked, plain)
    assert len(seen) == 1
    assert torch.equal(one, hooked(x))
    assert not other.any()


def test_a_shared_layer_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1] = model[0]
    convert_linears(model)
    assert model[0] is model[1]
    assert type(model[0]) is BitLinear


def test_what_shares_its_weight_with_an_embedding_stays() -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False), "heads": nn.ModuleList([nn.Linear(4, 4)])}
    )
    model["out"].weight = model["table"].weight
    convert_linears(model)
    assert [type(module) for module in (model["out"], model["heads"][0])] == [nn.Linear, BitLinear]


def test_evaluation_of_an_encoder_layer_sees_rounded_weights() -> None:
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
    model = convert_linears(nn.ModuleDict({"a": nn.Linear(4, 4), "lm": nn.Linear(4, 4)}), exclude="lm")
    assert [type(module) for module in model.values()] == [BitLinear, nn.Linear]


def test_what_cannot_be_converted_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *told: None)
    with pytest.raises(ValueError, match="convert: 0 has hooks"):
        convert_linears(model)
    assert type(model[0]) is nn.Linear
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"convert: 1 has hooks, or a weight that is computed"):
        convert_linears(model)
    assert type(model[0]) is nn.Linear


def test_there_is_no_second_derivative_rather_than_a_wrong_one() -> None:
    for layer in (BitLinear(8, 4), RMSNorm(8)):
        x = torch.randn(3, 8, requires_grad=True)
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_a_row_alone_may_be_a_vector() -> None:
    for layer in (BitLinear(8, 8), RMSNorm(8), nn.RMSNorm(8)):
        x = torch.randn(8, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (8,)
