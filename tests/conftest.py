"""The package runs under jaxtyping's and beartype's import hook: a shape that lies fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
CHECKED_MODULES = [
    "nn",
    "models",
    "losses",
    "metrics",
    "order",
    "seeding",
    "dataset",
    "data",
    "optim",
    "callback",
    "checkpoint",
    "trainer",
    "gradients",
    "evaluation",
    "health",
    "snapshot",
    "shards",
    "export",
]
settings.register_profile("here", deadline=None, print_blob=True)  # a shared machine has slow moments
settings.load_profile("here")
hook = install_import_hook([f"research.{room}" for room in CHECKED_MODULES], "beartype.beartype")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads cost more than they bring, and one thread gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
