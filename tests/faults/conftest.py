"""What several kinds of faults need."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import ROOT

from research.composition import compose
from research.options import conf as options
from research.options import help as screens
from research.preflight import check


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of conf/, to which presets are added."""
    folder = Path(shutil.copytree(ROOT / "conf", tmp_path / "conf"))
    for module in (screens, options, check):
        monkeypatch.setattr(module, "CONF", folder)
    options.FOLDERS[0] = folder
    caches = (options.list_groups, compose._compose_lines)
    for cached in caches:
        cached.cache_clear()
    yield folder
    options.FOLDERS[0] = ROOT / "conf"
    for cached in caches:
        cached.cache_clear()
