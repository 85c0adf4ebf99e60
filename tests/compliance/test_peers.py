"""The table of peers: installed packages, read and never imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT

from research.compliance.peers import find_source, main


def test_packages_modules_and_parts_are_read() -> None:
    assert find_source("hydra").name == "hydra"  # type: ignore[union-attr]
    assert find_source("hydra.core.plugins").name == "plugins.py"  # type: ignore[union-attr]
    assert find_source("typing_extensions").suffix == ".py"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["no_such_package", "sys", "", ".", "a..b", "hydra.no_such"])
def test_what_has_no_python_files_is_none(name: str) -> None:
    assert find_source(name) is None


def test_the_table_is_sorted_by_the_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["click", "typing_extensions", "no_such_package", "click"]) == 0
    out, err = capsys.readouterr()
    first, _, head, rule, *rows = out.splitlines()
    assert first == "The mean is over 9 rules, without rule 10. No register counts."
    assert head == "| package | lines | functions | mean | floor | R1 | R2 | R3 | R4 | R5 | R6 | R7 | R8 | R9 |"
    assert rule.count("|") == head.count("|")
    means = [float(row.split("|")[4]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert len(rows) == 2
    assert err == "note: without Python files here: no_such_package\n"


def test_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["typing_extensions", "--json"]) == 0
    out = capsys.readouterr().out
    (peer,) = json.loads(out)
    assert out.count("\n") == 1
    assert peer["score"] == pytest.approx(sum(peer["rules"].values()) / 9)
    assert peer["floor"] == pytest.approx(min(peer["rules"].values()))


def test_no_package_at_all_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no_such_package"]) == 2
    assert "error: none of these packages has Python files here" in capsys.readouterr().err


def test_no_package_is_imported(tmp_path: Path) -> None:
    code = "import sys; from research.compliance.peers import main; main(['hydra.core', 'attr']); print('hydra' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
