"""How errors end on the terminal; and what the preflight relies on in Hydra."""

import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, run

from research.preflight.program import explain_errors, locate_error, name_own_lines


def test_a_user_error_ends_in_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as end, explain_errors():
        raise ValueError("lr=0 is wrong\ngive lr=1e-3")
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[:2] == ["error: lr=0 is wrong", "  give lr=1e-3"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(ZeroDivisionError), explain_errors():
        raise ZeroDivisionError
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="lr"), explain_errors():
        raise ValueError("lr")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("undefined", "NameError: name 'undefined' is not defined"),
        ("torch.zeros(2) @ torch.zeros(3)", "RuntimeError: inconsistent tensor size"),
        ("int('x')", "ValueError: invalid literal for int()"),
    ],
)
def test_an_error_in_a_users_module_is_of_its_line(tmp_path: Path, call: str, text: str) -> None:
    """Also where it arises in a library that the module calls."""
    (tmp_path / "own.py").write_text(f"import torch\n\n{call}\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/own.py:3: {re.escape(text)}.*\nHYDRA_FULL_ERROR=1"), name_own_lines():
        runpy.run_path(str(tmp_path / "own.py"))


def test_what_we_say_ourselves_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from research.data.tokenizers import BPE\n\nBPE(3)\n")
    with pytest.raises(ValueError, match="vocab_size takes") as error, name_own_lines():
        runpy.run_path(str(tmp_path / "own.py"))
    assert locate_error(error.value) == ""
    assert locate_error(ZeroDivisionError()) == ""


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as end, explain_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130


def test_hydra_announces_errors_in_the_words_that_are_filtered() -> None:
    spec = importlib.util.find_spec("hydra")
    assert spec is not None
    assert spec.origin is not None
    assert "Error executing job with overrides" in (Path(spec.origin).parent / "core" / "utils.py").read_text()


def test_the_preflight_uses_no_private_name_of_hydra() -> None:
    for file in (ROOT / "research" / "preflight").glob("*.py"):
        assert "hydra._internal" not in file.read_text(), file


def test_train_py_collects_garbage_once_it_trains(tmp_path: Path) -> None:
    """train.py disables the collector for its imports; the run, and the parent of a sweep's workers, have it again."""
    (tmp_path / "mine.py").write_text("import gc\ndef loss(logits, targets): raise ValueError(f'collects={gc.isenabled()}')\n")
    line = ["trainer=debug", "tracker=none", "loss._target_=mine.loss", f"out={tmp_path / 'out'}", "trainer.device=cpu"]
    done = run([str(ROOT / "train.py"), *line], tmp_path, dict(os.environ))
    assert "collects=True" in done.stderr


@pytest.mark.parametrize("words", [["train.py"], ["-m", "research.generate"], ["-m", "research.report", "--help"]])
def test_a_python_without_the_packages_is_told_to_set_up(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first == f"error: this Python ({sys.executable}) lacks hydra and torch"
    assert "make setup" in second
    assert ".venv/bin/python" in second


def test_a_python_that_is_too_old_is_told_so() -> None:
    code = "import runpy, sys; sys.version_info, sys.argv = (3, 9, 1), ['train.py']; "
    code += "runpy.run_path('train.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"error: this Python ({sys.executable}) is 3.9, and 3.11 is needed\n")
    ast.parse((ROOT / "research" / "__init__.py").read_text(), feature_version=(3, 7))
    ast.parse((ROOT / "train.py").read_text(), feature_version=(3, 7))
