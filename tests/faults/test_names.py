"""Row 19: a name names one folder below `out`, and what comes into a table is shown there and does nothing."""

import csv
import html
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from program import ROOT
from reporting import make_study, make_trial

from research.cli import escape_controls
from research.composition.overrides import to_literal
from research.preflight.check import find_mistakes
from research.report.markdown import escape, format_code, render_table
from research.report.report import write_files
from research.report.results import protect_cell, render_csv
from research.report.study import read_study
from research.rules import MAX_NAME_BYTES, check_name

REFUSED = ["../x", "../../x", "/x", "a/b", "a/", "a\\b", ".", "..", ".hidden", "-m", "--x", "~", "~/x", " a", "a ", "a\tb", ""]
REFUSED += ["CON", "nul", "com1.txt", "a:b", "a*", "a?", "<b>", "a|b", 'a"b', "x.", "x\u200b", "\u061cx", "\ufeffx", "x\u2066"]
REFUSED += ["a\nb", "a\rb", "a\x00b", "a\x1bb", "a\x7f", "a\x85", "a\u2028b", "a\u202eb", "a\udcff", "é" * 51, "a" * 101]
TAKEN = ["a", "modular", "grokking-2", "a.b", "a b", "a=1", "Läufe", "实验", "=1+1", "@x", "console", "a.con"]
TAKEN += ["a" * MAX_NAME_BYTES, "é" * 50]


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_cannot_name_a_folder_is_refused(name: str) -> None:
    assert check_name(name)
    if "\0" not in name:
        mistakes = find_mistakes([f"name={to_literal(name)}"], multirun=False)
        assert mistakes
        assert mistakes[0].startswith("error: name=")


@pytest.mark.parametrize("name", TAKEN)
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_name(name) is None
    assert find_mistakes([f"name={to_literal(name)}"], multirun=False) == []


@given(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='<>:"|?*'), min_size=1, max_size=30))
def test_a_name_that_is_taken_makes_one_folder_below_out(name: str) -> None:
    assume(check_name(name) is None)
    path = Path(os.path.normpath(f"/out/{name}"))
    assert (path.parent, path.name) == (Path("/out"), name)
    assert len(name.splitlines()) == 1


def test_every_name_of_the_presets_is_plain() -> None:
    for file in (ROOT / "conf").rglob("*.yaml"):
        name = (yaml.safe_load(file.read_text()) or {}).get("name", "x")
        assert name == "???" or check_name(name) is None, file


CELLS = st.one_of(st.text(), st.text("|`<>&[]()!\\\n\r=+-@' a1", max_size=12))


@given(CELLS)
def test_a_cell_of_markdown_shows_its_text(text: str) -> None:
    table = render_table(("key", "value"), [("a", text)])
    assert len(table.splitlines()) == 3
    shown = escape(text)
    assert not set("<>") & set(shown)
    assert "](" not in shown
    assert shown.count("|") == shown.count("\\|")
    back = html.unescape(shown.replace("]\\(", "](").replace("\\|", "|"))
    if text.isprintable() and "\\" not in text:
        assert back == text


@given(CELLS)
def test_a_code_span_ends_where_it_ends(text: str) -> None:
    span = format_code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(fence)
    assert fence not in span[len(fence) : -len(fence)].split(" ") or not text.strip("` ")
    assert "\n" not in span


@given(st.lists(CELLS, min_size=1, max_size=4))
def test_a_cell_of_csv_is_no_formula(texts: list[str]) -> None:
    texts = [escape_controls(text.replace("\r\n", "\n").replace("\r", "\n")) for text in texts]  # as Python reads lines
    ((*cells,),) = csv.reader(io.StringIO(render_csv([texts]), newline="")) if texts != [""] else [[""]]
    for cell, text in zip(cells, texts, strict=True):
        assert cell in (text, f"'{text}")
        if cell.strip()[:1] in ("=", "+", "-", "@"):
            float(cell)


@pytest.mark.parametrize("start", ["", " ", "\ufeff", "\0", "\t", "\u200b", "\xa0", "\x1b", "\n", "\u3000"])
@pytest.mark.parametrize("formula", ["=1+1", "+cmd", "-1+cmd", "@x", "＝1"])
def test_no_spreadsheet_sees_a_formula(start: str, formula: str) -> None:
    cell = str(protect_cell(start + formula))
    assert cell.startswith(("'", "\\")), ascii(cell)
    assert escape_controls(cell) == cell


@pytest.mark.parametrize("number", [-1.5, "-1e-3", "+2", "-inf", -3, None, ""])
def test_numbers_stay_as_they_are_in_csv(number: object) -> None:
    assert render_csv([["a", number]]) == f"a,{'' if number is None else number}\n"


def test_a_report_of_a_study_with_bad_words(tmp_path: Path) -> None:
    bad = "<script>x</script>\n[a](javascript:x)"
    study = make_study(keys=["lr"], fixed=["model=mlp", f"data.path='{bad}`'"])
    study.add_trial(make_trial(0, {"lr": 0.01}, value=0.5, user_attrs={"error": "=1+1"}))
    (tmp_path / "0").mkdir()
    sweep = replace(read_study(tmp_path, study), name="sweep\nlr: 7")
    write_files(sweep, tmp_path, plots=False)
    text = (tmp_path / "results.md").read_text()
    assert text.splitlines()[0] == "# sweep lr: 7: maximize value"
    assert f"Fixed: `` model=mlp data.path='{bad}`' ``".replace("\n", " ") in text
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["lr"] == 0.01
