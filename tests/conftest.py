"""The package runs under jaxtyping's and beartype's import hook: a shape that lies fails."""

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

gc.disable()  # until all is imported, none of which is garbage
settings.register_profile("here", deadline=None, print_blob=True)  # a shared machine has slow moments
settings.load_profile("here")
hook = install_import_hook("research", "checking.check")
torch.set_num_threads(1)  # for fixtures of a whole module, which begin before the one below


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads cost more than they bring, and one thread gives the same bits everywhere."""
    torch.set_flush_denormal(False)  # as a run that another test made in this process may have left it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
