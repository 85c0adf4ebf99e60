"""The score of a tree and the level that it reaches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from research.compliance.findings import Finding, RuleResult
from research.compliance.register import MAX_SHARE, Deviation, Outcome
from research.compliance.syntax.contract import contract
from research.compliance.syntax.tree import Tree

ALL_RULES = frozenset(range(11))
DIGITS = 9  # a mean of 95 is not 94.99999999999999


@dataclass(frozen=True)
class Level:
    """What a tree must have to reach a level."""

    name: str
    mean: float  # of the rules' scores, in percent
    floor: float  # of each of them
    critical_rules: frozenset[int]  # whose critical findings refuse the level
    share: float  # of entries of the register, in percent of all units


# The mean alone would let one rule fail: nine at 100 and one at 50 have a mean of 95. So each rule has a floor too, and what
# ends programs or hides errors counts by itself. No rule has a weight: a sum of penalties ends at 0 for any large tree.
LEVELS = (
    # For a tree that starts: no eval (8), no swallowed exception (7), each file and the register readable (0).
    Level("basic", 80.0, 0.0, frozenset({0, 7, 8}), MAX_SHARE),
    # No rule is given up: three of four units conform, and no critical finding is left.
    Level("comprehensive", 90.0, 75.0, ALL_RULES, MAX_SHARE),
    # Nine of ten units under each rule: what is left is the exception, which a register can hold.
    Level("defense", 95.0, 90.0, ALL_RULES, MAX_SHARE),
)
BY_NAME: Mapping[str, Level] = {level.name: level for level in LEVELS}


@dataclass(frozen=True)
class Report:
    """What the checker says of a tree."""

    root: str  # the folder as the user names it, to put before paths; empty for the current one
    results: tuple[RuleResult, ...]  # after the register
    errors: tuple[Finding, ...] = ()  # of rule 0: files that cannot be read, and the register's own
    deviations: tuple[Deviation, ...] = ()
    entries: int = 0  # of the register
    excluded: Mapping[str, str] = field(default_factory=dict)  # path -> why its units do not count
    notes: tuple[str, ...] = ()

    @cached_property
    def units(self) -> int:
        """The number of units of all rules."""
        return sum(result.units for result in self.results)

    @cached_property
    def mean(self) -> float:
        """The mean of the rules' scores; 0 where no rule has a unit."""
        return round(fmean(result.score for result in self.results), DIGITS) if self.units else 0.0

    @cached_property
    def floor(self) -> float:
        """The lowest score of a rule; 0 where no rule has a unit."""
        return round(min(result.score for result in self.results), DIGITS) if self.units else 0.0

    @cached_property
    def share(self) -> float:
        """The entries of the register, in percent of all units."""
        return 100.0 * self.entries / self.units if self.units else 100.0 * bool(self.entries)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All findings that count: by rule, the critical ones first, then by path and line."""
        findings = [*self.errors, *(finding for result in self.results for finding in result.findings)]
        return tuple(sorted(findings, key=lambda f: (f.rule, not f.is_critical, f.path, f.line, f.unit, f.message)))

    @cached_property
    def criticals(self) -> tuple[Finding, ...]:
        """The critical findings that count."""
        return tuple(finding for finding in self.findings if finding.is_critical)

    @cached_property
    def level(self) -> str:
        """The name of the highest level that is reached; empty where none is."""
        reached = [level.name for level in LEVELS if not explain_level(self, level)]
        return reached[-1] if reached else ""

    @contract
    def reaches(self, name: str) -> bool:
        """Return whether the level of that name is reached. Raise ValueError where there is none of that name."""
        if name not in BY_NAME:
            raise ValueError(f"level={name}: there is no such level; the levels are {', '.join(BY_NAME)}")
        return not explain_level(self, BY_NAME[name])


@contract
def explain_level(report: Report, level: Level) -> list[str]:
    """Return why a level is not reached; nothing where it is."""
    reasons = []
    if report.mean < level.mean:
        reasons.append(f"the mean is below {level.mean:g}")
    low = [result for result in report.results if round(result.score, DIGITS) < level.floor]
    reasons += [f"rule {result.rule} is at {to_text(result.score)}, below {level.floor:g}" for result in low]
    if count := sum(finding.rule in level.critical_rules for finding in report.criticals):
        reasons.append(f"{count} critical finding{'s' * (count > 1)}")
    if report.share > level.share:
        reasons.append(f"the register has more than {level.share:g} % of the units")
    return reasons


@contract
def to_text(score: float) -> str:
    """Return a score with one digit, rounded down: 94.96 is not 95.0."""
    return f"{math.floor(round(score, DIGITS) * 10) / 10:.1f}"


@contract
def make_report(root: str, tree: Tree, outcome: Outcome, notes: Sequence[str] = ()) -> Report:
    """Return the report of a tree from what the rules say after the register."""
    errors = (*tree.findings, *outcome.findings)
    return Report(root, outcome.results, errors, outcome.deviations, outcome.entries, tree.excluded, tuple(notes))
