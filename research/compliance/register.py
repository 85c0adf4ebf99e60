"""The deviation register: what of a tree need not conform, why, who answers for it, what bounds it, and until when."""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

from research.compliance.findings import Finding, RuleResult
from research.compliance.syntax.contract import contract

REGISTER_FILE = "compliance.toml"
VERSION = 1
MAX_DAYS = 400  # a deviation is looked at again at least once a year
MAX_SHARE = 2.0  # entries, in percent of all units
MIN_WORDS = 3  # of a reason: "legacy" is none
UNIT = re.compile(r"[^\W\d][\w.]*(:\d+)?")
HEADER = re.compile(r"\s*\[\[\s*deviation\s*\]\]")
CHECKS_RULE = 5  # its critical findings are checks that cannot fail


@dataclass(frozen=True)
class Scope:
    """The part of a tree that was looked at."""

    rules: frozenset[int]
    prefix: str = ""  # of the units: a package or a module; empty where it is all

    @contract
    def covers(self, rule: int, unit: str) -> bool:
        """Return whether a unit was looked at under a rule."""
        return rule in self.rules and f"{unit}.".startswith(f"{self.prefix}." if self.prefix else "")


@dataclass(frozen=True)
class Entry:
    """An entry of the register as it is written."""

    number: int  # from 1
    line: int
    values: Mapping[str, object]

    @property
    def rule(self) -> int:
        """The rule it names; 0 where that is no whole number."""
        rule = self.values.get("rule")
        return rule if isinstance(rule, int) and not isinstance(rule, bool) else 0

    @property
    def unit(self) -> str:
        """The unit it names; empty where that is no text."""
        unit = self.values.get("unit")
        return unit if isinstance(unit, str) else ""


@dataclass(frozen=True)
class Register:
    """A register as it was read."""

    path: str  # as findings name it
    entries: tuple[Entry, ...] = ()
    findings: tuple[Finding, ...] = ()  # what is wrong with the file itself: then no entry excuses anything


@dataclass(frozen=True)
class Deviation:
    """A unit that need not conform."""

    rule: int
    unit: str
    reason: str
    owner: str
    bound: str
    expires: date
    findings: tuple[Finding, ...]  # that it excuses


@dataclass(frozen=True)
class Outcome:
    """What is left of the rules' results after the register."""

    results: tuple[RuleResult, ...]
    deviations: tuple[Deviation, ...] = ()
    findings: tuple[Finding, ...] = ()  # errors of the register
    entries: int = 0  # of this scope


@contract
def read_register(path: Path, name: str = REGISTER_FILE) -> Register:
    """Return the register of a file; findings call it `name`. What is wrong with it becomes findings, nothing is raised."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        return Register(name, findings=(make_finding(name, 1, name, f"it is no TOML: {reason}; mend it"),))
    tables = content.get("deviation", [])
    is_list = isinstance(tables, list) and all(isinstance(table, dict) for table in tables)
    problems, tables = explain_head(content, is_list), tables if is_list else []
    lines = [number for number, line in enumerate(text.splitlines(), 1) if HEADER.match(line)]
    lines += [1] * (len(tables) - len(lines))
    entries = [Entry(index + 1, lines[index], table) for index, table in enumerate(tables)]
    return Register(name, tuple(entries), tuple(make_finding(name, 1, name, problem) for problem in problems))


def explain_head(content: Mapping[str, object], is_list: bool) -> list[str]:
    """Return what is wrong with a register outside of its entries."""
    version = content.get("version")
    problems = [f"{key} is an unknown key; delete it" for key in sorted({*content} - {"version", "deviation"})]
    if type(version) is not int or version != VERSION:
        problems.append(f"version is {version!r}; write version = {VERSION}")
    if not is_list:
        problems.append("deviation is no list of tables; write each entry below [[deviation]]")
    return problems


@contract
def apply_register(register: Register, results: Sequence[RuleResult], scope: Scope, today: date) -> Outcome:
    """Return results without the findings that valid entries excuse, and what is wrong with the other entries."""
    matches = find_matches(results)
    twice = Counter((entry.rule, entry.unit) for entry in register.entries)
    deviations, findings = list[Deviation](), [*register.findings]
    for entry in register.entries:
        excused = matches.get((entry.rule, entry.unit), ())
        problems = explain_fields(entry, today) or explain_match(entry, excused, scope, matches)
        if twice[entry.rule, entry.unit] > 1:
            problems.append("another entry names the same unit and rule; keep one of them")
        findings += [explain_entry(register, entry, problem) for problem in problems]
        if excused and not problems and not register.findings:
            deviations.append(make_deviation(entry, excused))
    count = sum(scope.covers(entry.rule, entry.unit) for entry in register.entries)
    units = sum(result.units for result in results)
    if count and 100 * count > MAX_SHARE * units:
        message = f"it has {count} entries for {units} units, more than {MAX_SHARE:g} %; make units conform and delete entries"
        findings.append(make_finding(register.path, 1, register.path, message))
    kept = tuple(excuse(result, deviations) for result in results)
    return Outcome(kept, tuple(deviations), tuple(findings), count)


def find_matches(results: Iterable[RuleResult]) -> dict[tuple[int, str], tuple[Finding, ...]]:
    """Return the findings by rule and unit."""
    matches: dict[tuple[int, str], tuple[Finding, ...]] = {}
    for result in results:
        for finding in result.findings:
            key = (result.rule, finding.unit)
            matches[key] = (*matches.get(key, ()), finding)
    return matches


def explain_match(
    entry: Entry, excused: Sequence[Finding], scope: Scope, matches: Mapping[tuple[int, str], object]
) -> list[str]:
    """Return what is wrong with an entry because of the findings it names, or because it names none."""
    if not scope.covers(entry.rule, entry.unit):
        return []
    if not excused:
        start = f"{entry.unit.partition(':')[0]}:"
        others = sorted({unit for rule, unit in matches if rule == entry.rule and unit.startswith(start)})
        moved = f", or write {others[0][:80]}, if its line has moved" if ":" in entry.unit and others else ""
        return [f"stale: no finding has this rule and unit; delete it{moved}"]
    if len({finding.path for finding in excused}) > 1:
        return ["units of several files have this name; give them different names"]
    if entry.rule == CHECKS_RULE and any(finding.is_critical for finding in excused):
        return ["a check that cannot fail is never a deviation; mend the check"]
    return []


def explain_fields(entry: Entry, today: date) -> list[str]:
    """Return what is wrong with the fields of an entry."""
    problems = [f"{key} is an unknown key; delete it" for key in sorted({*entry.values} - {*FIELDS})]
    problems += [f"{key} is missing" for key in FIELDS if key not in entry.values]
    fields = [(key, entry.values[key]) for key in FIELDS if key in entry.values]
    problems += [f"{key} {problem}" for key, value in fields if (problem := FIELDS[key](value))]
    expires = entry.values.get("expires")
    return problems if problems or not isinstance(expires, date) else explain_expiry(expires, today)


def explain_expiry(expires: date, today: date) -> list[str]:
    """Return what is wrong with the day on which an entry expires."""
    if today > expires:
        return [f"it expired on {expires}; make the unit conform, or decide anew and write a later day"]
    if (expires - today).days > MAX_DAYS:
        return [f"it expires on {expires}, in more than {MAX_DAYS} days; write an earlier day"]
    return []


def check_rule(value: object) -> str:
    """Return what is wrong with the number of a rule; empty where nothing is."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return "" if is_number and value in range(1, 11) else "is no number from 1 to 10"


def check_unit(value: object) -> str:
    """Return what is wrong with a unit; empty where nothing is."""
    is_unit = isinstance(value, str) and UNIT.fullmatch(value)
    return "" if is_unit else "is no unit; write it exactly as the finding has it, without wildcards"


@contract
def check_text(value: object) -> str:
    """Return what is wrong with a text; empty where nothing is."""
    return "" if isinstance(value, str) and any(char.isalnum() for char in value) else "is empty or no text"


def check_reason(value: object) -> str:
    """Return what is wrong with a reason; empty where nothing is."""
    return check_text(value) or (
        "" if len(str(value).split()) >= MIN_WORDS else "is no sentence; say why the unit cannot conform"
    )


def check_expires(value: object) -> str:
    """Return what is wrong with the value of `expires`; empty where nothing is."""
    is_day = isinstance(value, date) and not isinstance(value, datetime)
    return "" if is_day else "is no date; write it as 2027-01-31, without quotes"


FIELDS: Mapping[str, Callable[[object], str]] = {
    "rule": check_rule,
    "unit": check_unit,
    "reason": check_reason,
    "owner": check_text,
    "bound": check_text,
    "expires": check_expires,
}


def make_deviation(entry: Entry, excused: tuple[Finding, ...]) -> Deviation:
    """Return the deviation of a valid entry. Raise ValueError where `expires` is no date."""
    reason, owner, bound = (str(entry.values[key]) for key in ("reason", "owner", "bound"))
    expires = entry.values["expires"]
    if not isinstance(expires, date):
        raise ValueError(f"expires={expires!r} is no date")
    return Deviation(entry.rule, entry.unit, reason, owner, bound, expires, excused)


def excuse(result: RuleResult, deviations: Iterable[Deviation]) -> RuleResult:
    """Return a result without the findings that deviations excuse.

    Where a finding is not one unit, the units that are lost shrink as the findings do, rounded against the tree.
    """
    excused = {finding for deviation in deviations if deviation.rule == result.rule for finding in deviation.findings}
    kept = [finding for finding in result.findings if finding not in excused]
    if len(kept) == len(result.findings):
        return result
    missing = None if result.missing is None else math.ceil(result.missing * len(kept) / len(result.findings))
    return replace(result, findings=tuple(kept), missing=missing)


def explain_entry(register: Register, entry: Entry, problem: str) -> Finding:
    """Return the finding of a problem of an entry."""
    return make_finding(register.path, entry.line, entry.unit or register.path, f"deviation {entry.number}: {problem}")


def make_finding(path: str, line: int, unit: str, message: str) -> Finding:
    """Return a critical finding of rule 0."""
    return Finding(path, line, 0, unit, message[:200], True)
