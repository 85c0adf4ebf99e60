"""A model of transformers becomes ternary and trains through train.py; its errors name the setting and the fix."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ROOT, run
from torch import nn

from research.data.spec import Tokens
from research.models.hub import Hub, replace_conv1d
from research.nn.bitlinear import BitLinear, bitlinear_layers

pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, at its import
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE = Tokens(11, 6)


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


@pytest.fixture
def saved_folder(tmp_path: Path) -> Path:
    """Return a folder that save_pretrained wrote."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=11, max_position_embeddings=16, **TINY)).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_new_model_has_ternary_layers() -> None:
    model = Hub(SHAPE, "llama", TINY, linear=BitLinear)
    assert len(bitlinear_layers(model)) == 2 * 7
    assert not any("head" in name for name in bitlinear_layers(model))
    tokens = torch.randint(11, (3, 6))
    logits = model(tokens)
    assert logits.shape == (3, 6, 11)
    logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    later = tokens.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 11
    torch.testing.assert_close(model(later)[:, :4], logits[:, :4])


@pytest.mark.parametrize("kind", ["qwen2", "gemma", "bitnet"])
def test_other_architectures_work_too(kind: str) -> None:
    model = Hub(SHAPE, kind, TINY | {"num_key_value_heads": 2}, linear=BitLinear, include=["*mlp*"])
    assert len(bitlinear_layers(model)) == 2 * 3
    assert model(torch.randint(11, (2, 6))).isfinite().all()


@pytest.mark.parametrize("more", [{}, {"is_decoder": False}], ids=str)
def test_a_model_that_sees_the_answer_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"BertLMHeadModel is not causal.*\n.*\+model.fields.is_decoder=true"):
        Hub(SHAPE, "bert", TINY | more)


@pytest.mark.parametrize("seq_len", [1, 2, 6, 40])
def test_bert_as_a_decoder_is_causal(seq_len: int) -> None:
    model = Hub(Tokens(11, seq_len), "bert", TINY | {"is_decoder": True}, linear=BitLinear)
    assert model.net.training, "the probe restores the mode"
    tokens = torch.randint(11, (2, seq_len))
    later = tokens.clone()
    later[:, -1] = (later[:, -1] + 1) % 11
    model.eval()
    torch.testing.assert_close(model(later)[:, :-1], model(tokens)[:, :-1])


def test_a_model_of_a_folder_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    BertLMHeadModel(BertConfig(vocab_size=11, max_position_embeddings=16, **TINY)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"is not causal.*\n.* config.json"):
        Hub(SHAPE, folder=str(tmp_path / "bert"))


def test_a_model_that_fails_on_the_symbols_is_refused() -> None:
    """RoBERTa counts its positions from its padding symbol."""
    with pytest.raises(ValueError, match="RobertaForCausalLM fails on 6 symbols: "):
        Hub(SHAPE, "roberta", TINY | {"is_decoder": True})


def test_a_model_with_few_ternary_weights_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Experts are no nn.Linear. Only weights between embedding and head count, however large the ends are."""
    experts = TINY | {"num_key_value_heads": 2, "num_local_experts": 4}
    model = Hub(SHAPE, "mixtral", experts, linear=BitLinear)
    ternary = sum(layer.weight.numel() for layer in bitlinear_layers(model).values())
    outer = 2 * 11 * 32
    share = 100 * ternary / (sum(p.numel() for p in model.parameters() if p.ndim > 1) - outer)
    (message,) = [record.message for record in caplog.records if "between embedding and head" in record.message]
    assert f"only {share:.0f} %" in message
    assert "experts.gate_up_proj" in message
    caplog.clear()
    Hub(Tokens(5000, 6), "llama", TINY, linear=BitLinear)
    Hub(SHAPE, "mixtral", experts)
    assert not [record for record in caplog.records if "between embedding and head" in record.message]


def test_the_layers_of_gpt2_become_linear_ones() -> None:
    """They compute what its Conv1D computes, and become ternary; full precision leaves them as they are."""
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 0, "bos_token_id": 0}
    model = Hub(SHAPE, "gpt2", gpt2).eval()
    tokens = torch.randint(11, (3, 6))
    expected = model(tokens)
    assert len(replace_conv1d(model.net)) == 2 * 4
    torch.testing.assert_close(model(tokens), expected)
    assert len(bitlinear_layers(Hub(SHAPE, "gpt2", gpt2, linear=BitLinear))) == 2 * 4
    assert not bitlinear_layers(Hub(SHAPE, "gpt2", gpt2, linear=nn.Linear))


def test_a_folder_gives_architecture_and_weights(saved_folder: Path) -> None:
    """Without BitLinears it is what was saved; with them it has the same master weights."""
    from transformers import LlamaForCausalLM

    tokens = torch.randint(11, (3, 6))
    plain, ternary = Hub(SHAPE, folder=str(saved_folder)), Hub(SHAPE, folder=str(saved_folder), linear=BitLinear)
    torch.testing.assert_close(plain(tokens), LlamaForCausalLM.from_pretrained(saved_folder)(tokens).logits)
    assert not bitlinear_layers(plain)
    assert len(bitlinear_layers(ternary)) == 14
    weights = ternary.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())


def test_torchs_own_linear_layer_is_full_precision(saved_folder: Path) -> None:
    """linear=full: the same model as without BitLinears, with patterns that match nothing and hooks as they are."""
    tokens = torch.randint(11, (3, 6))
    plain = Hub(SHAPE, folder=str(saved_folder))
    for linear in (nn.Linear, partial(nn.Linear)):
        full = Hub(SHAPE, folder=str(saved_folder), linear=linear, include=["nothing*"])
        assert not bitlinear_layers(full)
        assert torch.equal(full(tokens), plain(tokens))


def test_it_trains_through_the_program(saved_folder: Path, tmp_path: Path) -> None:
    """From a folder with a warm-up, where a run that goes on at step 2 ends with the same bits."""
    base = ["model=hub", "data.p=7", "batch_size=16", "steps=4", "eval_every=2", "tracker=jsonl", "trainer.device=cpu"]
    base += ["callbacks.checkpoint.every=2", f"model.folder={saved_folder}", "model.linear.warmup=0.75"]
    for name in ("folder", "resumed"):
        resume = [f"resume={tmp_path / 'folder' / 'checkpoints' / 'step-00000002'}"] if name == "resumed" else []
        done = run_program(tmp_path, *base, *resume, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stdout + done.stderr
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["status"] == "FINISHED"
        assert summary["steps"] == 4
    weights = [tmp_path / name / "checkpoints" / "step-00000004" / "model.safetensors" for name in ("folder", "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def run_program(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([str(ROOT / "train.py"), *arguments], tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"model_type": "lama"}, "model.model_type=lama: transformers has no such model; did you mean "),
        ({"model_type": "vit"}, "model.model_type=vit, model.fields=.*: Unrecognized configuration class"),
        ({"fields": {"hidden_sise": 3}}, "model.fields.hidden_sise: llama has no such field; did you mean hidden_size"),
        ({"fields": TINY | {"vocab_size": 5}}, "vocab_size is 5, the data has 11"),
        ({"fields": TINY | {"max_position_embeddings": 5}}, "max_position_embeddings is 5, the data has 6"),
        ({"folder": "nowhere"}, "model.folder=nowhere has no config.json: give a local folder"),
        ({"fields": TINY, "include": ["conv*"]}, r"include=\['conv\*'\]"),
        ({"fields": TINY | {"num_attention_heads": 5}}, "model.fields=.*: The hidden size"),
    ],
)
def test_a_wrong_setting_is_named(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Hub(SHAPE, linear=BitLinear, **kwargs)


def test_data_with_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="model=hub predicts tokens, and each text of these data has one of 3 classes"):
        Hub(SHAPE._replace(num_classes=3), fields=TINY)


def test_a_damaged_folder_is_named(saved_folder: Path) -> None:
    weights = saved_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"model.folder={saved_folder} cannot be read: "):
        Hub(SHAPE, folder=str(saved_folder))
    (saved_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"model.folder={saved_folder} cannot be read: "):
        Hub(SHAPE, folder=str(saved_folder))
