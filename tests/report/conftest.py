"""What the tests of the report share."""

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from research.report import plots


@pytest.fixture(autouse=True)
def silence_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are plotted, but their files stay empty: to render them takes most of the time."""
    monkeypatch.setattr(plots, "save", lambda figure, file: Path(file).touch())
