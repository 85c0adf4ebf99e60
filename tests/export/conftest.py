"""A trained run that the tests of the exports share."""

from pathlib import Path

import pytest
from exporting import TINY
from program import train


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a ternary transformer of bytes: two blocks, eight steps, averaged weights."""
    root = tmp_path_factory.mktemp("trained")
    train(root, *TINY)
    (folder,) = (root / "out" / "text").iterdir()
    return folder
