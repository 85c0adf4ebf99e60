"""What the grokking callback measures of the weights: their norm, and the effective rank of the embedding."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fitting import make_state
from torch import nn

from research.callbacks.grokking import Grokking
from research.data.digits import digits
from research.data.modular import modular
from research.losses import classification
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.optim.schedules import constant
from research.training.trainer import Trainer

DATA = modular(p=7)
PNG = b"\x89PNG"


def measure_model(model: nn.Module) -> dict[str, float]:
    """Return the metrics that the callback logs of a model."""
    state = make_state(model, steps=1)
    Grokking(every=1).on_gradients(state)
    return state.progress.extra_metrics


def make_embedding(weight: torch.Tensor) -> nn.Module:
    return nn.Sequential(nn.Embedding.from_pretrained(weight, freeze=False), nn.Linear(weight.shape[1], 3))


def test_norm_and_rank_follow_their_formulas() -> None:
    """Roy & Vetterli 2007, eq. 3 and 4: exp of -sum p_k log p_k, p_k the share of the k-th singular value."""
    torch.manual_seed(0)
    model = make_embedding(torch.randn(12, 8))
    flat = np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])
    values = np.linalg.svd(model.get_parameter("0.weight").detach().double().numpy(), compute_uv=False)
    shares = values / values.sum()
    rank = math.exp(-sum(p * math.log(p) for p in shares))
    assert 1 < rank < 8
    assert measure_model(model) == pytest.approx(
        {"grok/weight_norm": np.linalg.norm(flat), "grok/embedding_rank": rank}, rel=1e-5
    )
    orthogonal = nn.init.orthogonal_(torch.empty(12, 8))
    assert measure_model(make_embedding(3 * orthogonal))["grok/embedding_rank"] == pytest.approx(8, rel=1e-5)
    assert measure_model(make_embedding(torch.outer(torch.randn(12), torch.randn(8))))["grok/embedding_rank"] == pytest.approx(
        1, rel=1e-4
    )
    assert "grok/embedding_rank" not in measure_model(make_embedding(torch.zeros(12, 8))), "it has none"


def test_tied_weights_count_once() -> None:
    tied = Transformer(DATA.shape, 16, 1, 2, nn.Linear)
    assert measure_model(tied)["grok/weight_norm"] == pytest.approx(
        math.sqrt(sum(p.square().sum().item() for p in tied.parameters()))
    )


def test_a_model_without_an_embedding_has_all_but_the_rank(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, watched = digits(), Grokking(every=10, hold=1)
    model = MLP(data.shape, 32, 1, nn.Linear)
    trainer = Trainer(60, 64, eval_every=20, eval_train=True, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = trainer.setup(model, optimizer, constant, classification, data, [watched], monitor="val/acc", folder=tmp_path)
    trainer.fit(state)
    assert state.progress.metrics["grok/val_95"] == watched.find_milestone("val", 0.95).first
    assert "grok/weight_norm" in state.progress.metrics
    assert "grok/embedding_rank" not in state.progress.metrics
    assert (tmp_path / "plots" / "grokking.png").read_bytes().startswith(PNG)


def test_sharded_weights_are_refused() -> None:
    state = make_state(nn.Linear(1, 1))
    state.sharded = True
    with pytest.raises(ValueError, match=r"trainer=fsdp .*~callbacks.grokking"):
        Grokking().on_start(state)
