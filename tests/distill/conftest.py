"""Two teachers of one task, in full precision and ternary, as users train them."""

from pathlib import Path

import pytest
from program import train

SMALL = ("model.dim=16", "model.heads=2", "data.p=11", "batch_size=8", "tracker=jsonl", "target=null", "trainer.device=cpu")


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both: full and ternary."""
    root = tmp_path_factory.mktemp("distill")
    for name, model in (("full", "transformer"), ("ternary", "bitnet")):
        train(root, *SMALL, f"model={model}", "steps=20", "eval_every=20", f"hydra.run.dir={root / name}")
    return root
