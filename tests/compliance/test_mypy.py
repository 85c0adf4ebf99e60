"""Mypy's own report: what it adds to rules 7 and 10, and a report that is none, or one of other files."""

import os
import re
from pathlib import Path

import pytest
from compliance.trees import make_tree

from research.compliance import analysers, results
from research.compliance.syntax.calls import CallGraph

ERROR = "module.py:2: error: Incompatible return value type\n"
END = "Found 1 error in 1 file (checked 1 source file)\n"
FINE = "Success: no issues found in 1 source file\n"


def test_mypy_says_which_functions_have_wrong_types(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, module="def f(a: int) -> int:\n    return str(a)\n")
    (finding,) = results.check(tree, CallGraph(tree), ["module.py:2: error: Incompatible return value type"]).findings
    assert "line 2" in finding.message
    assert analysers.check(tree, ["module.py:2: error: Incompatible return value type"]).score == 0


def test_a_report_of_mypy_from_another_folder_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "package", module="def f(a: int) -> int:\n    return str(a)\n")
    monkeypatch.chdir(tmp_path)
    assert analysers.check(tree, ["package/module.py:2: error: Incompatible return value type"]).score == 0
    assert results.check(tree, CallGraph(tree), ["package/module.py:2: error: no"]).findings
    assert analysers.check(tree, ["other/module.py:2: error: Incompatible return value type"]).score == 100


@pytest.mark.parametrize(
    ("report", "note"),
    [(ERROR + END, ""), (FINE, ""), (FINE.replace("1 source", "0 source"), "mypy has looked at 0 of 1 files or fewer")],
    ids=["with errors", "without errors", "of a part"],
)
def test_a_report_of_these_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str, note: str) -> None:
    tree = make_tree(tmp_path, module="def f(a: int) -> int:\n    return str(a)\n")
    (tmp_path / "mypy.txt").write_text(report, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert results.read_report(tmp_path / "mypy.txt", tree) == (report.splitlines(), note)


@pytest.mark.parametrize(
    ("report", "age", "message"),
    [
        ("", 0, "how many files it checked is missing"),
        (ERROR, 0, "how many files it checked is missing"),
        (ERROR + "Found 1 error in 1 file (errors prevented further checking)\n", 0, "how many files it checked is missing"),
        (FINE, 60, "module.py has changed since; run mypy again"),
        (ERROR.replace(":2:", ":9:") + END, 0, "module.py has no line 9; run mypy again"),
        (ERROR.replace("module", "other") + END, 0, "there is no file other.py; run mypy in this folder"),
    ],
    ids=["empty", "cut off", "broken off", "older than a file", "of lines that are no more", "of another folder"],
)
def test_a_report_that_lies_is_refused(tmp_path: Path, report: str, age: int, message: str) -> None:
    tree, path = make_tree(tmp_path, module="def f(a: int) -> int:\n    return str(a)\n"), tmp_path / "mypy.txt"
    path.write_text(report, encoding="utf-8")
    now = path.stat().st_mtime
    os.utime(path, (now, now - age))
    with pytest.raises(ValueError, match=re.escape(message)):
        results.read_report(path, tree)
