"""The score, the floor and the levels."""

from pathlib import Path

import pytest
from compliance.trees import make_tree

from research.compliance.findings import Finding, RuleResult
from research.compliance.register import Outcome
from research.compliance.score import BY_NAME, Report, explain_level, make_report, to_text

CRITICAL = {rule: Finding("a.py", 1, rule, "a.f", "critical", True) for rule in range(11)}


def make(scores: list[int], criticals: tuple[int, ...] = (), entries: int = 0) -> Report:
    """Return the report of ten rules with 100 units each, with a critical finding under some of them."""
    results = []
    for rule, score in enumerate(scores, 1):
        findings = [Finding("a.py", line, rule, f"a.f{line}", "wrong") for line in range(100 - score)]
        results.append(RuleResult(rule, 100, [*findings, *(CRITICAL[rule] for _ in range(rule in criticals))], 100 - score))
    errors = tuple(CRITICAL[0] for _ in range(0 in criticals))
    return Report("", tuple(results), errors, entries=entries)


@pytest.mark.parametrize(
    ("report", "level"),
    [
        (make([100] * 10), "defense"),
        (make([95] * 10), "defense"),
        (make([90] * 5 + [100] * 5), "defense"),
        (make([89] + [100] * 9), "comprehensive"),
        (make([94] + [95] * 9), "comprehensive"),
        (make([75] + [100] * 9), "comprehensive"),
        (make([74] + [100] * 9), "basic"),
        (make([89] * 10), "basic"),
        (make([80] * 10), "basic"),
        (make([0, 80] + [100] * 8), "basic"),
        (make([79] * 10), ""),
        (make([100] * 10, criticals=(1,)), "basic"),
        (make([100] * 10, criticals=(2, 5)), "basic"),
        (make([100] * 10, criticals=(7,)), ""),
        (make([100] * 10, criticals=(8,)), ""),
        (make([100] * 10, criticals=(0,)), ""),
        (make([100] * 10, entries=20), "defense"),
        (make([100] * 10, entries=21), ""),
        (Report("", ()), ""),
        (Report("", (RuleResult(1, 0, []),)), ""),
    ],
    ids=[
        "all conform",
        "each rule at 95",
        "five rules at the floor",
        "one rule below 90",
        "the mean below 95",
        "one rule at 75",
        "one rule below 75",
        "each rule at 89",
        "each rule at 80",
        "one rule at 0",
        "each rule at 79",
        "recursion",
        "a loop without a bound and a check that cannot fail",
        "a swallowed exception",
        "eval",
        "a file that cannot be read",
        "a register of 2 %",
        "a larger register",
        "no rule",
        "no unit",
    ],
)
def test_levels(report: Report, level: str) -> None:
    assert report.level == level
    assert [name for name in BY_NAME if report.reaches(name)] == [*BY_NAME][: [*BY_NAME].index(level) + 1 if level else 0]


def test_the_score_is_the_mean_of_the_rules_not_of_the_units() -> None:
    results = (RuleResult(1, 2, [Finding("a.py", 1, 1, "a.f", "wrong")]), RuleResult(2, 998, []))
    report = Report("", results)
    assert (report.mean, report.floor, report.units) == (75.0, 50.0, 1000)


def test_a_level_says_what_is_missing() -> None:
    reasons = explain_level(make([80] + [96] * 9, criticals=(2, 8), entries=30), BY_NAME["defense"])
    assert reasons == [
        "the mean is below 95",
        "rule 1 is at 80.0, below 90",
        "2 critical findings",
        "the register has more than 2 % of the units",
    ]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="level=best: there is no such level; the levels are basic"):
        make([100] * 10).reaches("best")


@pytest.mark.parametrize(("score", "text"), [(100.0, "100.0"), (94.99, "94.9"), (95.0, "95.0"), (0.0, "0.0"), (28.7, "28.7")])
def test_a_score_is_rounded_down(score: float, text: str) -> None:
    assert to_text(score) == text


def test_the_report_of_a_tree_lists_its_files_that_do_not_count(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, a="x = 1", tests__b="x = 1", c="x = (")
    report = make_report("", tree, Outcome((RuleResult(1, 1, []),)), ["a note"])
    assert report.excluded == {"tests/b.py": "test"}
    assert [(finding.path, finding.rule) for finding in report.criticals] == [("c.py", 0)]
    assert report.notes == ("a note",)


def test_critical_findings_come_first() -> None:
    report = make([98] * 10, criticals=(1, 2))
    assert [finding.is_critical for finding in report.findings if finding.rule == 1] == [True, False, False]
    assert [finding.rule for finding in report.findings] == sorted(finding.rule for finding in report.findings)
