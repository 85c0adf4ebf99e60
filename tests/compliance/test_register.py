"""The deviation register: a valid entry excuses its unit, and a register that lies excuses nothing and says so."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from textwrap import dedent

import pytest
from compliance.trees import make_tree

from research.compliance.findings import Finding, RuleResult
from research.compliance.register import Outcome, Scope, apply_register, read_register
from research.compliance.score import Report, make_report

TODAY = date(2027, 1, 1)
ALL = Scope(frozenset(range(1, 11)))
ENTRY = """
    [[deviation]]
    rule = 1
    unit = "a.walk"
    reason = "A tree of settings is a tree."
    owner = "maintainer"
    bound = "depth 8"
    expires = 2027-06-30
"""
GOOD = "version = 1\n" + ENTRY


def make_results(units: int = 100) -> list[RuleResult]:
    """Return results of three rules: recursion, a check that cannot fail beside missing ones, and an eval."""
    recursion, paths = Finding("a.py", 3, 1, "a.walk", "recursion", True), Finding("a.py", 9, 1, "a.run", "11 paths")
    unchecked, lie = Finding("a.py", 3, 5, "a.walk", "0 checks"), Finding("a.py", 5, 5, "a.lie", "assert True", True)
    evals = [Finding(path, 5, 8, "a.load:5", "eval", True) for path in ("a.py", "b.py")]
    return [
        RuleResult(1, units, [recursion, paths]),
        RuleResult(5, units, [unchecked, lie], missing=3),
        RuleResult(8, units, evals),
    ]


def apply(folder: Path, text: str, scope: Scope = ALL, results: Sequence[RuleResult] = ()) -> Outcome:
    """Return what a register of that text leaves of the results."""
    path = folder / "compliance.toml"
    path.write_text(dedent(text))
    return apply_register(read_register(path), results or make_results(), scope, TODAY)


def test_a_valid_entry_excuses_its_unit_under_its_rule_alone(tmp_path: Path) -> None:
    outcome = apply(tmp_path, GOOD)
    first, *others = outcome.results
    assert outcome.findings == ()
    assert [finding.unit for finding in first.findings] == ["a.run"]
    assert (first.conforming, first.score) == (99, 99.0)
    assert others == make_results()[1:]
    (deviation,) = outcome.deviations
    assert (deviation.rule, deviation.unit, deviation.bound, deviation.owner) == (1, "a.walk", "depth 8", "maintainer")
    assert [finding.message for finding in deviation.findings] == ["recursion"]


def test_all_findings_of_a_unit_are_excused(tmp_path: Path) -> None:
    findings = [Finding("a.py", line, 1, "a.walk", "recursion", True) for line in (3, 4)]
    outcome = apply(tmp_path, GOOD, results=[RuleResult(1, 100, findings)])
    assert outcome.results[0].conforming == 100
    assert len(outcome.deviations[0].findings) == 2


def test_lost_units_shrink_as_findings_do(tmp_path: Path) -> None:
    results = [RuleResult(5, 100, [Finding("a.py", n, 5, f"a.f{n}", "one check") for n in range(3)], missing=4)]
    text = GOOD.replace("rule = 1", "rule = 5").replace("a.walk", "a.f1")
    assert apply(tmp_path, text, results=results).results[0].missing == 3  # 4 * 2 / 3, rounded against the tree


@pytest.mark.parametrize("day", ["2027-01-01", "2028-02-05"], ids=["on its last day", "400 days before"])
def test_an_entry_holds_until_its_day(tmp_path: Path, day: str) -> None:
    outcome = apply(tmp_path, GOOD.replace("2027-06-30", day))
    assert outcome.findings == ()
    assert len(outcome.deviations) == 1


LIES = {
    "an expired entry": (GOOD.replace("2027-06-30", "2026-12-31"), "it expired on 2026-12-31"),
    "an expiry in 401 days": (GOOD.replace("2027-06-30", "2028-02-06"), "in more than 400 days"),
    "an expiry that is a text": (GOOD.replace("2027-06-30", '"2027-06-30"'), "expires is no date"),
    "an expiry with an hour": (GOOD.replace("2027-06-30", "2027-06-30T00:00:00"), "expires is no date"),
    "no expiry": (GOOD.replace("expires = 2027-06-30", ""), "expires is missing"),
    "a unit without a finding": (GOOD.replace("a.walk", "a.gone"), "stale: no finding has this rule and unit; delete it"),
    "a finding of another rule": (GOOD.replace("rule = 1", "rule = 2"), "stale"),
    "a wildcard": (GOOD.replace("a.walk", "a.*"), "unit is no unit"),
    "a part of a name": (GOOD.replace("a.walk", "a.wal"), "stale"),
    "an empty unit": (GOOD.replace("a.walk", ""), "unit is no unit"),
    "a list of units": (GOOD.replace('"a.walk"', '["a.walk", "a.run"]'), "unit is no unit"),
    "rule 0": (GOOD.replace("rule = 1", "rule = 0"), "rule is no number from 1 to 10"),
    "rule 11": (GOOD.replace("rule = 1", "rule = 11"), "rule is no number from 1 to 10"),
    "rule true": (GOOD.replace("rule = 1", "rule = true"), "rule is no number from 1 to 10"),
    "a rule with a fraction": (GOOD.replace("rule = 1", "rule = 1.0"), "rule is no number from 1 to 10"),
    "no rule": (GOOD.replace("rule = 1", ""), "rule is missing"),
    "a reason of one word": (GOOD.replace("A tree of settings is a tree.", "legacy"), "reason is no sentence"),
    "an empty reason": (GOOD.replace("A tree of settings is a tree.", ""), "reason is empty"),
    "a reason of blanks and dots": (GOOD.replace("A tree of settings is a tree.", " . . . "), "reason is empty"),
    "no owner": (GOOD.replace('owner = "maintainer"', ""), "owner is missing"),
    "an empty owner": (GOOD.replace('"maintainer"', '""'), "owner is empty"),
    "an owner that is a number": (GOOD.replace('"maintainer"', "7"), "owner is empty or no text"),
    "an empty bound": (GOOD.replace("depth 8", " "), "bound is empty"),
    "an unknown key": (GOOD + 'path = "a.py"\n', "path is an unknown key"),
    "the same entry twice": (GOOD + ENTRY, "another entry names the same unit and rule"),
    "an entry and a broken one for its unit": (GOOD + ENTRY.replace("depth 8", ""), "another entry names the same unit"),
    "a check that cannot fail": (GOOD.replace("rule = 1", "rule = 5").replace("a.walk", "a.lie"), "is never a deviation"),
    "one name for units of two files": (
        GOOD.replace("rule = 1", "rule = 8").replace("a.walk", "a.load:5"),
        "units of several files",
    ),
    "a loop whose line has moved": (GOOD.replace("rule = 1", "rule = 8").replace("a.walk", "a.load:4"), "or write a.load:5"),
    "no version": (ENTRY, "version is None; write version = 1"),
    "a later version": (GOOD.replace("version = 1", "version = 2"), "version is 2; write version = 1"),
    "version true": (GOOD.replace("version = 1", "version = true"), "version is True"),
    "an unknown key at the top": ('all = "*"\n' + GOOD, "all is an unknown key"),
    "a table in place of a list": (GOOD.replace("[[deviation]]", "[deviation]"), "deviation is no list of tables"),
    "a number in place of a list": ("version = 1\ndeviation = 5", "deviation is no list of tables"),
    "a list of texts": ('version = 1\ndeviation = ["a.walk"]', "deviation is no list of tables"),
    "no TOML": ("version = 1\n[[deviation\n", "it is no TOML"),
    "brackets without an end": ("version = " + "[" * 20_000, "it is no TOML"),
}


@pytest.mark.parametrize(("text", "message"), LIES.values(), ids=LIES)
def test_a_register_that_lies_excuses_nothing(tmp_path: Path, text: str, message: str) -> None:
    outcome = apply(tmp_path, text)
    assert any(message in finding.message for finding in outcome.findings), outcome.findings
    assert all(f.rule == 0 and f.is_critical and len(f.message) <= 200 for f in outcome.findings)
    assert outcome.deviations == ()
    assert list(outcome.results) == make_results()


def test_a_broken_entry_leaves_the_others_alone(tmp_path: Path) -> None:
    outcome = apply(tmp_path, GOOD + ENTRY.replace("a.walk", "a.run").replace("2027-06-30", "2026-06-30"))
    assert [item.unit for item in outcome.deviations] == ["a.walk"]
    assert [(finding.unit, finding.line) for finding in outcome.findings] == [("a.run", 11)]
    assert outcome.results[0].conforming == 99


@pytest.mark.parametrize(("units", "count"), [(50, 0), (49, 1)], ids=["2 % of the units", "more than 2 %"])
def test_a_register_is_small(tmp_path: Path, units: int, count: int) -> None:
    findings = [Finding("a.py", 3, 1, "a.walk", "recursion", True)]
    outcome = apply(tmp_path, GOOD, results=[RuleResult(1, units, findings)])
    assert len(outcome.findings) == count
    assert all("1 entries for 49 units, more than 2 %" in finding.message for finding in outcome.findings)


@pytest.mark.parametrize(
    "scope",
    [Scope(frozenset({2, 3})), Scope(ALL.rules, "b"), Scope(ALL.rules, "a.walk.inner"), Scope(ALL.rules, "a.wal")],
    ids=["other rules", "another module", "a function inside", "a name that begins so"],
)
def test_what_was_not_looked_at_is_not_stale(tmp_path: Path, scope: Scope) -> None:
    outcome = apply(tmp_path, GOOD, scope, [RuleResult(2, 10, [])])
    assert (outcome.findings, outcome.deviations, outcome.entries) == ((), (), 0)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"version = 1\nx = '\xe9'"], ids=["UTF-16", "Latin-1"])
def test_a_register_that_is_no_text_is_a_finding(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "compliance.toml").write_bytes(content)
    register = read_register(tmp_path / "compliance.toml")
    assert "it is no TOML" in register.findings[0].message


def test_a_folder_in_place_of_a_register_is_a_finding(tmp_path: Path) -> None:
    assert "it is no TOML" in read_register(tmp_path).findings[0].message


def test_an_error_of_the_register_refuses_every_level(tmp_path: Path) -> None:
    outcome = apply(tmp_path, "version = 2", results=[RuleResult(rule, 100, []) for rule in range(1, 11)])
    report: Report = make_report("", make_tree(tmp_path, a="x = 1"), outcome)
    assert (report.mean, report.level, len(report.criticals)) == (100.0, "", 1)
