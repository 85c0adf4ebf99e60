"""The report as text, JSON, annotations of GitHub and SARIF."""

import json
import re
from datetime import date
from typing import Any

import pytest

from research.compliance.findings import Finding, RuleResult
from research.compliance.formats import Options, escape_message, escape_property, format_github, format_json, format_text
from research.compliance.output import to_printable
from research.compliance.register import Deviation
from research.compliance.sarif import format_sarif
from research.compliance.score import Report

EXCUSED = Finding("b.py", 7, 1, "b.walk", "recursion: b.walk -> b.walk", True)
DEVIATION = Deviation(1, "b.walk", "A tree is a tree.", "maintainer", "depth 8", date(2027, 6, 30), (EXCUSED,))
FINDINGS = [Finding("a.py", line, 4, f"a.f{line}", "61 lines; divide it") for line in range(1, 26)]
EVAL = Finding("a.py", 3, 8, "a.load", "eval: 100 % of it; read, do not run", True)
REPORT = Report(
    "src",
    (RuleResult(1, 50, []), RuleResult(4, 100, FINDINGS), RuleResult(8, 40, [EVAL])),
    (Finding("we ird\n.py", 2, 0, "we ird", "it cannot be read: x", True),),
    (DEVIATION,),
    1,
    {"tests/a.py": "test", "tests/b.py": "test", "x_pb2.py": "generated"},
    ("a note",),
)


def test_the_text_has_rules_findings_deviations_files_and_the_score_last() -> None:
    text = format_text(REPORT, Options(findings=2))
    lines = text.splitlines()
    assert lines[2].split() == ["4", "Length", "function", "100", "75", "75.0", "25"]
    assert "  src/a.py:1 a.f1: 61 lines; divide it" in lines
    assert "  and 23 more (--findings 25)" in lines
    assert "  src/a.py:3 a.load: critical: eval: 100 % of it; read, do not run" in lines
    assert "  src/we ird\\n.py:2 we ird: critical: it cannot be read: x" in lines
    assert "  rule 1 b.walk: A tree is a tree. Bound: depth 8. Owner: maintainer, until 2027-06-30" in lines
    assert "files that do not count: 3 (test 2, generated 1)" in lines
    assert lines[-1] == (
        "score 90.8 (floor 75.0): level defense not reached: "
        "the mean is below 95; rule 4 is at 75.0, below 90; 2 critical findings"
    )


def test_a_level_that_is_reached_ends_the_text() -> None:
    report = Report("", tuple(RuleResult(rule, 10, []) for rule in range(1, 11)))
    assert format_text(report, Options()).splitlines()[-1] == "score 100.0 (floor 100.0): level defense reached"
    report = Report("", tuple(RuleResult(rule, 100, FINDINGS[:8]) for rule in range(1, 11)))
    last = format_text(report, Options("defense", 0)).splitlines()[-1]
    assert last == "score 92.0 (floor 92.0): level comprehensive reached, level defense not reached: the mean is below 95"


@pytest.mark.parametrize("limit", [0, 1, 20, 1000])
def test_at_most_so_many_findings_of_a_rule_are_shown(limit: int) -> None:
    lines = format_text(REPORT, Options(findings=limit)).splitlines()
    assert sum("61 lines" in line for line in lines) == min(limit, 25)
    assert sum("more (--findings" in line for line in lines) == {0: 3, 1: 1, 20: 1, 1000: 0}[limit]


def test_the_json_keeps_its_promise_and_adds_up() -> None:
    content = json.loads(format_json(REPORT, Options(findings=1)))
    assert {"score", "rules", "findings", "deviations", "floor", "level", "excluded", "notes", "version"} <= {*content}
    rules = content["rules"]
    assert content["score"] == pytest.approx(sum(rule["score"] for rule in rules) / len(rules))
    assert content["floor"] == min(rule["score"] for rule in rules)
    for rule in rules:
        assert rule["score"] == pytest.approx(100 * rule["conforming"] / rule["units"])
        assert rule["findings"] == sum(finding["rule"] == rule["rule"] for finding in content["findings"])
    assert len(content["findings"]) == 27
    assert content["deviations"][0]["expires"] == "2027-06-30"
    assert content["deviations"][0]["findings"][0]["unit"] == "b.walk"
    assert content["excluded"] == REPORT.excluded
    assert content["level"] is None


def test_annotations_are_one_line_each_with_errors_first() -> None:
    lines = format_github(REPORT, Options(findings=2)).splitlines()
    assert len(lines) == 5
    assert lines[0] == "::error file=src/we ird%0A.py,line=2,title=rule 0%3A files and register::we ird: it cannot be read: x"
    assert "::error file=src/a.py,line=3,title=rule 8%3A dynamic code::a.load: eval: 100 %25 of it; read, do not run" in lines
    assert lines[2].startswith("::warning file=src/a.py,line=1,title=rule 4%3A length::a.f1: 61 lines")
    assert lines[-1].startswith("::error title=Power of Ten::score 90.8 ")
    assert all(re.fullmatch(r"::(error|warning|notice) [^:]*::.*", line) for line in lines)


@pytest.mark.parametrize(
    ("text", "message", "value"),
    [
        ("100 %", "100 %25", "100 %25"),
        ("a\r\nb", "a%0D%0Ab", "a%0D%0Ab"),
        ("a: b, c", "a: b, c", "a%3A b%2C c"),
        ("%0A", "%250A", "%250A"),
        ("x\n::stop-commands::y", "x%0A::stop-commands::y", "x%0A%3A%3Astop-commands%3A%3Ay"),
    ],
    ids=["percent", "line ends", "marks of properties", "an escape as text", "a command inside"],
)
def test_nothing_in_an_annotation_is_a_command(text: str, message: str, value: str) -> None:
    assert escape_message(text) == message
    assert escape_property(text) == value


@pytest.mark.parametrize(
    ("text", "line"),
    [("é 中", "é 中"), ("a\x1b[31m", "a\\x1b[31m"), ("a\nb", "a\\nb"), ("a\udcff", "a\\udcff"), ("a\u202eb", "a\\u202eb")],
    ids=["letters", "a colour", "two lines", "no UTF-8", "a turn of direction"],
)
def test_what_a_terminal_would_obey_is_an_escape(text: str, line: str) -> None:
    assert to_printable(text) == line


def check_keys(value: Any, required: set[str], allowed: set[str]) -> None:
    """Check the names of an object: those the schema requires are there, and none that it does not know."""
    assert isinstance(value, dict)
    assert required <= {*value} <= required | allowed


def test_the_sarif_has_the_structure_of_2_1_0() -> None:
    log = json.loads(format_sarif(REPORT, Options()))
    check_keys(log, {"version", "runs"}, {"$schema", "properties"})
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    check_keys(run, {"tool"}, {"results", "columnKind", "properties"})
    assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    check_keys(run["tool"], {"driver"}, set())
    driver = run["tool"]["driver"]
    check_keys(driver, {"name"}, {"version", "rules"})
    for rule in driver["rules"]:
        check_keys(rule, {"id"}, {"name", "shortDescription", "fullDescription", "help"})
        assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["name"])
        for key in ("shortDescription", "fullDescription", "help"):
            check_keys(rule[key], {"text"}, set())
            assert rule[key]["text"]
    ids = [rule["id"] for rule in driver["rules"]]
    assert ids == [f"R{number}" for number in range(11)]
    assert len(run["results"]) == 28
    for result in run["results"]:
        check_keys(result, {"message"}, {"ruleId", "ruleIndex", "level", "locations", "suppressions"})
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        check_keys(result["message"], {"text"}, set())
        (location,) = result["locations"]
        check_keys(location, {"physicalLocation"}, set())
        check_keys(location["physicalLocation"], {"artifactLocation", "region"}, set())
        address = location["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9_.~/%-]+", address)
        assert not address.startswith("/")
        assert location["physicalLocation"]["region"]["startLine"] >= 1


def test_a_deviation_is_a_suppressed_result() -> None:
    results = json.loads(format_sarif(REPORT, Options()))["runs"][0]["results"]
    (result,) = [result for result in results if "suppressions" in result]
    assert result["ruleId"] == "R1"
    (suppression,) = result["suppressions"]
    check_keys(suppression, {"kind"}, {"justification"})
    assert suppression["kind"] == "external"
    assert suppression["justification"] == "A tree is a tree. Bound: depth 8. Owner: maintainer, until 2027-06-30."


def test_a_name_that_is_no_text_has_an_address() -> None:
    report = Report("", (RuleResult(1, 1, []),), (Finding("a\udcff#.py", 0, 0, "a", "x", True),))
    location = json.loads(format_sarif(report, Options()))["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert location == {"artifactLocation": {"uri": "a%FF%23.py"}, "region": {"startLine": 1}}


@pytest.mark.parametrize(
    ("root", "path", "address", "line"),
    [
        ("", "a.py", "a.py", "a.py"),
        ("src", "a.py", "src/a.py", "src/a.py"),
        ("src/pkg", "../compliance.toml", "src/compliance.toml", "src/compliance.toml"),
        ("/data/tree", "a.py", "a.py", "/data/tree/a.py"),
    ],
    ids=["the current folder", "a folder in it", "a register above the tree", "a folder elsewhere"],
)
def test_paths_are_seen_from_where_the_program_runs(root: str, path: str, address: str, line: str) -> None:
    report = Report(root, (RuleResult(1, 1, []),), (Finding(path, 3, 0, "a", "x", True),))
    location = json.loads(format_sarif(report, Options()))["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == address
    assert f"  {line}:3 a: critical: x" in format_text(report, Options()).splitlines()
