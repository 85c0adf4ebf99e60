"""A report as text for people, as JSON, and as annotations of GitHub."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from posixpath import join, normpath

from research.compliance.findings import Finding
from research.compliance.output import to_printable
from research.compliance.rules import NO_RULE, RULES
from research.compliance.score import BY_NAME, Report, explain_level, to_text
from research.compliance.syntax.contract import contract

VERSION = 1  # of the JSON
COLUMNS = "{:>4} {:<24} {:<20} {:>8} {:>11} {:>7} {:>9}"


@dataclass(frozen=True)
class Options:
    """What a reader wants to see."""

    level: str = "defense"
    findings: int = 20  # a rule, of text and annotations


@contract
def to_path(report: Report, path: str) -> str:
    """Return a path of a tree as it is seen from the folder where the program runs."""
    return normpath(join(report.root, path))


@contract
def limit(findings: Iterable[Finding], options: Options) -> tuple[list[Finding], Counter[int]]:
    """Return the first findings of each rule, and how many of each are left out."""
    shown, seen = list[Finding](), Counter[int]()
    for finding in findings:
        seen[finding.rule] += 1
        if seen[finding.rule] <= options.findings:
            shown.append(finding)
    seen.subtract(finding.rule for finding in shown)
    return shown, seen


@contract
def format_text(report: Report, options: Options) -> str:
    """Return a report for people: the rules, the findings, deviations, excluded files, and the score in the last line."""
    blocks = [format_table(report), *format_findings(report, options), format_deviations(report), format_excluded(report)]
    return "\n\n".join([block for block in blocks if block] + [format_score(report, options)])


@contract
def format_table(report: Report) -> str:
    """Return the table of the rules."""
    lines = [COLUMNS.format("rule", "name", "unit", "units", "conforming", "score", "findings")]
    for result in report.results:
        rule = RULES[result.rule]
        values = result.units, result.conforming, to_text(result.score), len(result.findings)
        lines.append(COLUMNS.format(rule.number, rule.name, rule.unit, *values))
    return "\n".join(lines)


def format_findings(report: Report, options: Options) -> list[str]:
    """Return one block of lines a rule that has findings."""
    shown, hidden = limit(report.findings, options)
    blocks = []
    for number in sorted(hidden):
        lines = [f"rule {number}, {RULES.get(number, NO_RULE).name.lower()}"]
        lines += [format_finding(report, finding) for finding in shown if finding.rule == number]
        if hidden[number]:
            lines.append(f"  and {hidden[number]} more (--findings {hidden[number] + options.findings})")
        blocks.append("\n".join(lines))
    return blocks


def format_finding(report: Report, finding: Finding) -> str:
    """Return the line of a finding."""
    mark = "critical: " if finding.is_critical else ""
    where = f"{to_path(report, finding.path)}:{finding.line}"
    return to_printable(f"  {where} {finding.unit}: {mark}{finding.message}")


def format_deviations(report: Report) -> str:
    """Return the lines of the deviations; empty where there are none."""
    if not report.deviations:
        return ""
    lines = [f"deviations: {len(report.deviations)} for {report.units} units"]
    for item in report.deviations:
        words = f"  rule {item.rule} {item.unit}: {item.reason} Bound: {item.bound}. Owner: {item.owner}, until {item.expires}"
        lines.append(to_printable(words))
    return "\n".join(lines)


def format_excluded(report: Report) -> str:
    """Return how many files do not count, by reason; empty where all do."""
    counts = Counter(report.excluded.values()).most_common()
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts)
    return f"files that do not count: {len(report.excluded)} ({reasons})" if counts else ""


def format_score(report: Report, options: Options) -> str:
    """Return the score in one line, and what keeps a tree from the level that is wanted."""
    start = f"score {to_text(report.mean)} (floor {to_text(report.floor)}): "
    reasons = explain_level(report, BY_NAME[options.level])
    if not reasons:
        return f"{start}level {report.level} reached"
    reached = f"level {report.level} reached, " if report.level else ""
    return f"{start}{reached}level {options.level} not reached: {'; '.join(reasons)}"


@contract
def format_json(report: Report, options: Options) -> str:
    """Return a report as one JSON object with all findings. Its names are a promise: `version` counts their changes."""
    content = {
        "version": VERSION,
        "score": report.mean,
        "floor": report.floor,
        "level": report.level or None,
        "wanted": {"level": options.level, "reached": report.reaches(options.level)},
        "rules": [
            {
                "rule": result.rule,
                "name": RULES[result.rule].name,
                "unit": RULES[result.rule].unit,
                "units": result.units,
                "conforming": result.conforming,
                "score": result.score,
                "findings": len(result.findings),
            }
            for result in report.results
        ],
        "findings": [to_dict(finding) for finding in report.findings],
        "deviations": [
            {
                "rule": item.rule,
                "unit": item.unit,
                "reason": item.reason,
                "owner": item.owner,
                "bound": item.bound,
                "expires": item.expires.isoformat(),
                "findings": [to_dict(finding) for finding in item.findings],
            }
            for item in report.deviations
        ],
        "excluded": dict(report.excluded),
        "notes": list(report.notes),
    }
    return json.dumps(content, indent=1)


@contract
def to_dict(finding: Finding) -> dict[str, object]:
    """Return a finding as JSON has it."""
    return {
        "rule": finding.rule,
        "path": finding.path,
        "line": finding.line,
        "unit": finding.unit,
        "message": finding.message,
        "critical": finding.is_critical,
    }


@contract
def format_github(report: Report, options: Options) -> str:
    """Return workflow commands that annotate a change on GitHub: errors for what is critical, warnings, and the score."""
    shown, _ = limit(sorted(report.findings, key=lambda finding: not finding.is_critical), options)
    lines = [format_annotation(report, finding) for finding in shown]
    kind = "notice" if report.reaches(options.level) else "error"
    return "\n".join([*lines, f"::{kind} title=Power of Ten::{escape_message(format_score(report, options))}"])


def format_annotation(report: Report, finding: Finding) -> str:
    """Return the workflow command of a finding."""
    kind = "error" if finding.is_critical else "warning"
    name = f"rule {finding.rule}: {RULES.get(finding.rule, NO_RULE).name.lower()}"
    path = escape_property(to_path(report, finding.path))
    message = escape_message(f"{finding.unit}: {finding.message}")
    return f"::{kind} file={path},line={max(1, finding.line)},title={escape_property(name)}::{message}"


def escape_message(text: str) -> str:
    """Return a text as the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Return a text as a property of a workflow command."""
    return escape_message(text).replace(":", "%3A").replace(",", "%2C")
