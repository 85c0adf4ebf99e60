"""BitLinears in training: cached weights, recomputed activations, compiled, in several processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ROOT, Fork, run
from torch import Tensor

from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.bitlinear import (
    BitLinear,
    bitlinear_layers,
    cached_quantized_weights,
    set_warmup_step,
)
from research.nn.quantize import Quantizer
from research.optim.schedules import constant
from research.training.evaluate import evaluate
from research.training.trainer import Trainer

BACKENDS = ("ste", "bf16_exact", "int8")


@pytest.fixture
def num_quantized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often a weight is quantized, in a list of one number."""
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
def test_weights_are_quantized_once_a_step(num_quantized: list[int], settings: dict[str, Any]) -> None:
    """For any number of micro-batches, with the same bits as if every one quantized them."""
    model, gradients = make_model(**settings), []
    trainer = Trainer(5, 16, grad_accum=4, eval_every=5, device="cpu")
    layers = list(bitlinear_layers(model).values())
    set_warmup_step(layers, 3)
    x, y = DATA.train[torch.arange(16)]
    for caches in (False, True):
        num_quantized[0] = 0
        with cached_quantized_weights(layers if caches else []):
            for part in range(4):
                last_token(model(x[4 * part : 4 * part + 4]), y[4 * part : 4 * part + 4]).sum().backward()
        assert num_quantized[0] == (7 if caches else 4 * 7)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    assert torch.equal(*gradients)
    assert all(layer.cached_weight is None for layer in layers)
    num_quantized[0] = 0
    state = trainer.setup(model, torch.optim.AdamW(model.parameters()), constant, last_token, DATA, monitor="val/acc")
    trainer.fit(state)
    assert num_quantized[0] == 5 * 7 + 7, "each step, and the evaluation after the last"


def test_an_evaluation_quantizes_once_and_drops_the_cache(num_quantized: list[int]) -> None:
    model = make_model()
    evaluate(model, DATA.val, last_token, 4)
    assert num_quantized[0] == 7
    assert all(layer.cached_weight is None for layer in bitlinear_layers(model).values())
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, DATA.val, last_token, 4, poll=raise_error)
    assert all(layer.cached_weight is None for layer in bitlinear_layers(model).values())


def raise_error() -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_activations_give_the_same_gradients(backend: Any) -> None:
    weights = []
    for recomputes in (False, True):
        model = make_model(backend=backend)
        trainer = Trainer(2, 16, eval_every=2, device="cpu", checkpoint_activations=recomputes)
        state = trainer.setup(model, torch.optim.SGD(model.parameters(), lr=0.1), constant, last_token, DATA, monitor="val/acc")
        trainer.fit(state)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


COMPILED = """
import torch
from contextlib import nullcontext
from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear, bitlinear_layers, cached_quantized_weights
torch.set_num_threads(1)
torch.manual_seed(0)
net = Transformer(Tokens(11, 6), 32, 1, 2, BitLinear, sub_norm=True)
x, layers = torch.randint(11, (8, 6)), list(bitlinear_layers(net).values())

def run(caches, autocast):
    with cached_quantized_weights(layers) if caches else nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = net(x).float().square().mean()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    net.zero_grad()
    return loss.detach(), gradient

cases = [(False, False), (True, True)]  # cached weights, autocast
expected = [run(*case) for case in cases]
net.compile(fullgraph=True, backend="aot_eager")
for number in range(2):
    with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
        for (loss, gradient), case in zip(expected, cases):
            compiled_loss, compiled_gradient = run(*case)
            assert (compiled_loss - loss).abs() < 1e-3 * loss.abs(), (case, compiled_loss, loss)
            assert (compiled_gradient - gradient).abs().max() < 0.05 * gradient.abs().max(), case
"""


def test_compiled_it_is_one_graph_for_all_steps() -> None:
    """Forward and backward are traced in one graph, once: with cached weights or not, under autocast or not.

    In a process of its own: torch.compile cannot see through beartype.
    """
    done = run(["-c", COMPILED], ROOT, {**os.environ, "PYTHONWARNINGS": "ignore"}, timeout=100)
    assert done.returncode == 0, done.stderr


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.training import sharding
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
    return torch.cat([sharding.full_tensor(p.grad).flatten() for p in net.parameters()])

alone = gradient(build(), x)
sharded = build()
from torch.distributed.fsdp import fully_shard
for part in sharded: fully_shard(part)
fully_shard(sharded)
for net in (torch.nn.parallel.DistributedDataParallel(build()), sharded):
    result = gradient(net, x[4 * rank : 4 * rank + 4])
    worst = (result - alone).abs().max() / alone.abs().max()
    assert worst < 2e-2, (type(net).__name__, worst)
dist.barrier()  # a process that leaves while the other still talks to it ends that one by abort()
dist.destroy_process_group()
"""


def test_two_processes_average_the_same_gradient(tmp_path: Path) -> None:
    """Under DDP, and with the weights sharded by FSDP2."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    both = [Fork(["-c", TWO_PROCESSES, rank, str(tmp_path / "store")], tmp_path, environment) for rank in "01"]
    errors = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
