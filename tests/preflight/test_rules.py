"""Each rule of research/rules.py: the constructor and the command line give the same message."""

import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fitting import make_state
from program import ROOT
from torch import nn

from research import rules
from research.callbacks.gradients import GradientHealth
from research.callbacks.grokking import Grokking
from research.callbacks.ternary import Ternary
from research.data.modular import modular
from research.data.spec import Tokens
from research.losses import last_token
from research.models.decoder import Decoder
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.optim import grokfast
from research.optim.orthograd import orthograd
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.preflight.check import find_mistakes
from research.training.state import State
from research.training.trainer import Trainer

SHAPE = Tokens(vocab_size=8, seq_len=4)
NO_FUSED = "~optim.base.betas ~optim.base.fused"
ADAMW = partial(torch.optim.AdamW)


def build(optimizer: Callable[..., Any], base: Any, **settings: Any) -> Any:
    return optimizer(nn.Linear(2, 2), base, lr=0.1, **settings)


def prepare(linear: Callable[..., nn.Module], steps: int) -> State:
    data = modular(p=5)
    model = Transformer(data.shape, dim=8, depth=1, heads=2, linear=linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(steps=steps, batch_size=8, device="cpu").setup(model, optimizer, constant, last_token, data)


def start(callback: Any, sharded: bool = False) -> None:
    """Start a callback as the loop does, which logs every 10 steps and evaluates every 50."""
    state = make_state(nn.Linear(2, 2))
    state.sharded = sharded
    callback.on_start(state)


CASES: dict[str, tuple[Callable[[], Any], str, list[str]]] = {  # name: constructor, command line, words of the message
    "heads of rotary positions": (
        lambda: Transformer(SHAPE, dim=128, depth=1, heads=3, linear=nn.Linear),
        "model.heads=3",
        ["model.heads=3", "model.dim=128", "give model.dim=126 or model.heads=2"],
    ),
    "heads": (
        lambda: Decoder(SHAPE, dim=128, depth=1, heads=3, linear=nn.Linear),
        "model=decoder model.heads=3",
        ["model.heads=3 does not divide model.dim=128", "give model.dim=129 or model.heads=2"],
    ),
    "key and value heads": (
        lambda: Transformer(SHAPE, dim=128, depth=1, heads=4, kv_heads=3, linear=nn.Linear),
        "model.kv_heads=3",
        ["model.kv_heads=3", "model.heads=4", "give model.kv_heads=2"],
    ),
    "prime": (
        lambda: modular(operation="/", p=48),
        "data.p=48 data.operation=/",
        ["data.p=48", "data.operation=/", "give data.p=47"],
    ),
    "one process": (
        lambda: Trainer(parallel="ddp", device="cpu"),
        "trainer=ddp",
        ["trainer.parallel=ddp", "one process", "torchrun --nproc-per-node 2 train.py"],
    ),
    "batch size": (
        lambda: Trainer(batch_size=512, grad_accum=600, device="cpu"),
        "trainer.grad_accum=600",
        ["trainer.batch_size=512", "trainer.grad_accum=600", "give trainer.batch_size=600, or trainer.grad_accum=512"],
    ),
    "base setting": (
        lambda: build(from_base, partial(torch.optim.AdamW, lr=0.1)),
        "optim=adamw +optim.base.lr=0.1",
        ["optim.base.lr", "ignored", "set lr="],
    ),
    "base setting of a filter": (
        lambda: build(grokfast.ema, partial(torch.optim.AdamW, weight_decay=0.1)),
        "+optim.base.weight_decay=0.1",
        ["optim.base.weight_decay", "ignored", "set optim.weight_decay="],
    ),
    "base with a closure": (
        lambda: build(grokfast.ema, partial(torch.optim.LBFGS)),
        f"optim.base._target_=torch.optim.LBFGS {NO_FUSED}",
        ["LBFGS", "gradients within its step", "give optim.base._target_=torch.optim.AdamW"],
    ),
    "base that is no optimizer": (
        lambda: build(orthograd, partial(nn.ReLU)),
        f"optim=orthograd optim.base._target_=torch.nn.ReLU {NO_FUSED}",
        ["ReLU", "no optimizer class", "give optim.base._target_=torch.optim.AdamW"],
    ),
    "trigger": (
        lambda: build(grokfast.ema, ADAMW, start_when="soon"),
        "optim.start_when=soon",
        ["optim.start_when=soon", "METRIC:VALUE as val/acc:0.5"],
    ),
    "trigger of an accuracy": (
        lambda: build(grokfast.ema, ADAMW, stop_when="val/acc:95"),
        "optim.stop_when=val/acc:95",
        ["optim.stop_when=val/acc:95", "at most 1"],
    ),
    "order of triggers": (
        lambda: build(grokfast.ema, ADAMW, start_when="val/acc:0.9", stop_when="val/acc:0.5"),
        "optim.start_when=val/acc:0.9 optim.stop_when=val/acc:0.5",
        ["optim.stop_when=val/acc:0.5", "optim.start_when=val/acc:0.9", "give a later trigger"],
    ),
    "group size": (
        lambda: BitLinear(128, 8, granularity=7),
        "model.linear.granularity=7",
        ["model.linear.granularity=7", "128 inputs", "give model.linear.granularity=8, tensor or channel"],
    ),
    "backend of groups": (
        lambda: BitLinear(128, 8, granularity=8, backend="int8"),
        "model.linear.granularity=8 model.linear.backend=int8",
        ["model.linear.backend=int8", "model.linear.granularity=8", "give model.linear.backend=auto"],
    ),
    "warm-up": (
        lambda: prepare(partial(BitLinear, warmup=100), steps=100),
        "model.linear.warmup=100 steps=100",
        ["model.linear.warmup=100", "trainer.steps=100", "give model.linear.warmup=50"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_constructor_and_command_line_agree(name: str) -> None:
    construct, line, words = CASES[name]
    (mistake,) = find_mistakes(line.split(), False)
    with pytest.raises(ValueError, match=r"\w") as error:
        construct()
    assert [text.strip() for text in mistake.splitlines()[1:]] == str(error.value).splitlines()
    for word in words:
        assert word in str(error.value)


CALLBACKS = {"ternary": Ternary, "gradients": GradientHealth, "grokking": Grokking}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_that_measure_whole_tensors_refuse_shards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["trainer=fsdp", f"callbacks={name}", *(["~callbacks.ternary"] if name == "gradients" else [])]
    with monkeypatch.context() as launcher:
        launcher.setenv("WORLD_SIZE", "2")
        (mistake,) = find_mistakes(line, False)
    with pytest.raises(ValueError, match=f"~callbacks.{name}") as error:
        start(CALLBACKS[name](), sharded=True)
    assert [text.strip() for text in mistake.splitlines()[1:]] == str(error.value).splitlines()


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_warn_of_metrics_that_would_be_lost(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The command line refuses it; a loop of one's own may log elsewhere, and gets a warning."""
    every = f"callbacks.{name}.every=15"
    (mistake,) = find_mistakes([f"callbacks={name}", every, "eval_every=50", "trainer.log_every=10"], False)
    with caplog.at_level(logging.WARNING):
        start(CALLBACKS[name](every=15))
    assert [text.strip() for text in mistake.splitlines()[1:]] == caplog.messages[0].splitlines()
    assert f"give callbacks.{name}.every=20" in mistake


def test_steps_are_those_of_the_trainer() -> None:
    """trainer=debug sets its own steps; a key at the top is not read."""
    (mistake,) = find_mistakes(["data=digits", "model=bitmlp", "model.linear.warmup=10", "trainer=debug"], False)
    assert "model.linear.warmup=10" in mistake
    assert "trainer.steps=3" in mistake


def test_the_rules_need_no_torch() -> None:
    code = "import sys, research.rules; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_first_conflict_is_raised() -> None:
    conflicts = [rules.Conflict((name,), f"{name}=1 is wrong", f"give {name}=2") for name in "ab"]
    rules.enforce(None, None)
    with pytest.raises(ValueError, match=r"^a=1 is wrong\ngive a=2$"):
        rules.enforce(None, *conflicts)
