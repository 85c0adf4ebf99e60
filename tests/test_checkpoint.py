"""Damage is found, named, and the previous good checkpoint is taken."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from research import checkpoint


def saved(root: Path, step: int) -> Path:
    torch.manual_seed(step)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return checkpoint.save(root / "checkpoints", step, model, optimizer, {})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-7]) and None,
    "empty": lambda p: p.write_bytes(b"") and None,
    "missing": lambda p: p.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.STATE])
def test_damage_is_found_and_the_good_one_used(tmp_path: Path, kind: str, name: str) -> None:
    good, bad = saved(tmp_path, 1), saved(tmp_path, 2)
    assert checkpoint.newest_good(tmp_path) == bad
    DAMAGE[kind](bad / name)
    assert name in checkpoint.verify(bad)
    assert checkpoint.newest_good(tmp_path) == good
    DAMAGE[kind](good / name)
    with pytest.raises(ValueError, match=f"no usable checkpoint.*{name}"):
        checkpoint.newest_good(tmp_path)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    other = nn.Linear(4, 5)
    with pytest.raises(ValueError, match=r"another model.*bias, weight"):
        checkpoint.restore(tmp_path, other, torch.optim.AdamW(other.parameters()))


def test_a_model_with_scalars_and_buffers_is_kept_whole(tmp_path: Path) -> None:
    """BatchNorm counts its batches in a tensor without axes; an empty tensor has no place of its own."""
    torch.manual_seed(0)
    model, other = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    for each in (model, other):
        each.register_buffer("none", torch.empty(0))
    model(torch.randn(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint.save(tmp_path / "checkpoints", 1, model, optimizer, {"val/acc": 0.5, "step": 1}, "digits")
    assert checkpoint.weights_digest(model) != checkpoint.weights_digest(other)
    fresh = torch.optim.SGD(other.parameters(), lr=0.1)
    assert checkpoint.restore(tmp_path, other, fresh, "digits") == (1, {"val/acc": 0.5, "step": 1})
    assert checkpoint.restore(tmp_path, other, fresh, "letters") == (1, {}), "the best of another task says nothing here"
    assert checkpoint.weights_digest(model) == checkpoint.weights_digest(other)
