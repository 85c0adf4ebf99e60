"""What each kind of fine-tuning leaves out, lets learn and merges into."""

from pathlib import Path
from typing import Any

import pytest
import torch

from research.data.spec import Tokens
from research.finetune.base import read_tensors
from research.finetune.full import full
from research.models.hub import Hub, replace_conv1d
from research.nn.bitlinear import BitLinear
from research.options.finetuning import is_beside, is_frozen, is_inside, merge_finetuning
from research.training import checkpoint, snapshot
from research.training.state import RunInfo


@pytest.mark.parametrize("becomes_ternary", [True, False])
def test_gpt2_becomes_ternary_and_full_again(becomes_ternary: bool) -> None:
    """In full precision its layers hold their weights transposed."""
    pytest.importorskip("transformers")
    fields = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    models = [Hub(Tokens(32, 8), "gpt2", fields, linear=linear) for linear in (None, BitLinear)]
    source, model = models if becomes_ternary else models[::-1]
    model.load_state_dict(read_tensors(source, model))
    replace_conv1d(models[0].net)
    own, other = (net.state_dict() for net in models)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_full_lets_no_parameter_learn_that_the_model_keeps_fixed() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [p.requires_grad for p in full(model).parameters()] == [True, False]


KINDS = {
    "": (0, 0, 0),
    "research.finetune.full.full": (0, 0, 0),
    "research.finetune.inside.inside": (1, 1, 0),
    "research.finetune.gains.gains": (1, 1, 0),
    "research.finetune.side.side": (1, 0, 1),
    "mine.bias": (1, 0, 1),  # whatever it does: no plain model
    "mine.full": (1, 0, 1),
    "mine.inside": (1, 0, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_leaves_out_and_merges_into(kind: str) -> None:
    config: dict[str, Any] = {
        "finetune": {"_target_": kind, "digest": "d"} if kind else None,
        "model": {"linear": {}},
    }
    assert tuple(map(int, (is_frozen(config), is_inside(config), is_beside(config)))) == KINDS[kind]
    assert RunInfo(1, 1, config=config).base == ("d" if KINDS[kind][0] else "")
    assert (merge_finetuning(config)["finetune"] is None) == (not KINDS[kind][2])


def test_checkpoints_of_what_learns_are_small(tmp_path: Path) -> None:
    """Weights and the optimizer's memory, at rank 2 and width 128, under a tenth of those of the whole model."""
    from functools import partial

    from fitting import fit

    from research.nn.lowrank import add_low_rank

    add = partial(add_low_rank, rank=1, alpha=1.0, include=["*"], exclude=[])
    sizes = {}
    for name, finetune in (("full", None), ("inside", add)):
        settings: dict[str, Any] = {"finetune": finetune} if finetune else {}
        state = fit(tmp_path / name, steps=2, dim=96, **settings)
        folder = checkpoint.commit(tmp_path / name / "again", snapshot.capture(state))
        sizes[name] = sum(file.stat().st_size for file in folder.iterdir())
    assert sizes["inside"] < 0.1 * sizes["full"]
