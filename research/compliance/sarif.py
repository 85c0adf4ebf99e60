"""A report as SARIF 2.1.0, which code hosts and editors read: OASIS, Static Analysis Results Interchange Format, 2020."""

import json
from urllib.parse import quote

from research.compliance.findings import Finding
from research.compliance.formats import Options, to_path
from research.compliance.rules import NO_RULE, RULES, Rule
from research.compliance.score import Report
from research.compliance.syntax.contract import contract

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
HELP = "docs/power-of-ten.md has what the rule is for, and what was weighed against it."


@contract
def format_sarif(report: Report, options: Options) -> str:
    """Return a report as a SARIF log of one run. Findings that a deviation excuses are in it, suppressed."""
    results = [to_result(report, finding) for finding in report.findings]
    for item in report.deviations:
        reason = f"{item.reason} Bound: {item.bound}. Owner: {item.owner}, until {item.expires}."
        suppression = {"kind": "external", "justification": reason}
        results += [to_result(report, finding) | {"suppressions": [suppression]} for finding in item.findings]
    driver = {
        "name": "research.compliance",
        "version": "1",
        "rules": [to_descriptor(rule) for rule in (NO_RULE, *RULES.values())],
    }
    properties = {"score": report.mean, "floor": report.floor, "level": report.level, "wanted": options.level}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results, "properties": properties}
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1)


def to_id(number: int) -> str:
    """Return the id of a rule."""
    return f"R{number}"


def to_descriptor(rule: Rule) -> dict[str, object]:
    """Return a rule as SARIF has it."""
    return {
        "id": to_id(rule.number),
        "name": rule.name.title().replace(" ", ""),
        "shortDescription": {"text": rule.name},
        "fullDescription": {"text": rule.reading},
        "help": {"text": f"{rule.reading} {HELP}"},
    }


def to_result(report: Report, finding: Finding) -> dict[str, object]:
    """Return a finding as SARIF has it.

    Its address is relative to the folder where the program runs, or to the tree where that is elsewhere.
    """
    path = finding.path if report.root.startswith("/") else to_path(report, finding.path)
    address = quote(path, errors="surrogateescape")
    location = {"artifactLocation": {"uri": address}, "region": {"startLine": max(1, finding.line)}}
    return {
        "ruleId": to_id(finding.rule),
        "ruleIndex": finding.rule,
        "level": "error" if finding.is_critical else "warning",
        "message": {"text": f"{finding.unit}: {finding.message}"},
        "locations": [{"physicalLocation": location}],
    }
