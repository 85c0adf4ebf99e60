"""The FLOPs of models whose numbers are known, and that looking at the clock changes nothing."""

import time
from pathlib import Path

import pytest
import torch
from fitting import fit, make_state
from torch import nn

from research.callbacks import utilization
from research.callbacks.utilization import Utilization, count_flops, measure_peak
from research.data.spec import Images, Tokens, Vectors
from research.models.decoder import Decoder
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.training.checkpoint import hash_weights

TEXT = Tokens(11, 8)
BLOCK = 4 * 16 * 16 + 3 * 16 * 64  # attention, and a gated feed-forward layer


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Linear(5, 3), Vectors(5, 3), 6 * 15),
        (MLP(Vectors(5, 3), 16, 2, nn.Linear), Vectors(5, 3), 6 * (5 * 16 + 2 * 16 * 16 + 16 * 3)),
        (Transformer(TEXT, 16, 2, 2, nn.Linear, ffn_dim=64), TEXT, 8 * (6 * (2 * BLOCK + 16 * 11) + 12 * 2 * 16 * 8)),
        (
            Transformer(TEXT, 16, 2, 2, nn.Linear, ffn_dim=64, tie_embeddings=True),
            TEXT,
            8 * (6 * (2 * BLOCK + 16 * 11) + 12 * 2 * 16 * 8),
        ),
        (nn.Conv2d(1, 2, 3), Images(1, 8, 8, 10), 0),
    ],
)
def test_flops_of_known_models(model: nn.Module, shape: object, expected: int) -> None:
    assert count_flops(model, shape) == expected


def test_mfu_is_flops_a_second_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a quarter second; the one before which an evaluation came is not counted."""
    clock = iter([10.0, 10.25, 10.5, 99.0, 99.25])
    monkeypatch.setattr(utilization, "measure_peak", lambda dtype, device: 1e6)
    state = make_state(Decoder(TEXT, 16, 1, 2, nn.Linear), batch_size=8)
    object.__setattr__(state.info, "eval_every", 3)
    callback = Utilization(every=5)
    callback.on_start(state)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for step in range(5):
        state.progress.step = step
        callback.on_gradients(state)
    seq_len = state.data.shape.seq_len
    assert state.progress.extra_metrics["perf/recent_samples_per_s"] == 8 / 0.25
    flops = count_flops(state.model, state.data.shape)
    assert flops == seq_len * (6 * (4 * 16 * 16 + 2 * 16 * 64 + 16 * 11) + 12 * 16 * seq_len)
    assert state.progress.extra_metrics["perf/mfu"] == pytest.approx(flops * 32 / 1e6)
    assert state.end_notes["utilization"] == f"{flops * 32 / 1e6:.1%} of 0 GFLOP/s, the fp32 peak"


def test_it_changes_no_bit_and_leaves_the_generators(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    assert measure_peak(torch.float32, torch.device("cpu")) > 1e8
    assert torch.equal(before, torch.get_rng_state())
    plain, watched = fit(tmp_path / "a", dropout=0.1), fit(tmp_path / "b", Utilization(every=3), dropout=0.1)
    assert hash_weights(plain.model) == hash_weights(watched.model)
    assert 0 < watched.progress.metrics["perf/mfu"] < 1
    resumed = fit(tmp_path / "c", Utilization(every=3), dropout=0.1, resume=tmp_path / "a", steps=40)
    assert hash_weights(resumed.model) == hash_weights(fit(tmp_path / "d", dropout=0.1, resume=tmp_path / "a", steps=40).model)
