"""The notebooks run from top to bottom, in fewer steps, and have no outputs in git."""

import json
import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def list_code_cells(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    source = "\n".join(list_code_cells(path))
    assert "steps, curves = 500, {}" in source
    names: dict[str, object] = {"__name__": "notebook"}
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        exec(compile(source.replace("steps, curves = 500", "steps, curves = 40"), path.name, "exec"), names)
    finally:
        os.chdir(before)
    curves = names["curves"]
    assert isinstance(curves, dict)
    assert len(curves) == 2
    for curve in curves.values():
        assert [step for step, _ in curve] == [20, 40]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_no_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
