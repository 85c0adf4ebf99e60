"""Signatures are read from source without importing it; a mistyped word gets a suggestion."""

import pytest

from research.options.habits import suggest
from research.options.signature import read_signature
from research.options.source import TargetError, find_definition


def test_a_mistyped_word_gets_a_suggestion() -> None:
    names = ["trainer.steps", "steps", "trainer.eval_every", "optim.lr", "lr", "model.dim"]
    assert suggest("trainer.step", names)[0] == "trainer.steps"
    assert suggest("lr2", names)[0] == "lr"
    assert suggest("dim", names)[0] == "model.dim"
    assert suggest("zzz", names) == []


def test_signatures_are_read_without_importing() -> None:
    signature = read_signature("torch.optim.AdamW")
    assert signature is not None
    assert [p.name for p in signature.parameters][:3] == ["params", "lr", "betas"]
    with pytest.raises(TargetError, match=r"did you mean research\.training\.trainer\.Trainer"):
        find_definition("research.training.trainer.Trianer")
    with pytest.raises(TargetError, match="is a module"):
        find_definition("research.training.trainer")
