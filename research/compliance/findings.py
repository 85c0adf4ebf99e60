"""What a rule finds in a tree, and the score that follows: conforming units over units."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """A unit that does not conform to a rule."""

    path: str  # of the file, relative to the tree
    line: int
    rule: int  # 1 to 10; 0 for what concerns no single rule, as a file that cannot be parsed
    unit: str  # dotted name of the function, loop, class or file
    message: str  # what is wrong, then what to do
    is_critical: bool = False  # recursion, a loop without a bound, eval, a swallowed exception, a check that cannot fail


@dataclass(frozen=True)
class RuleResult:
    """What one rule says of a tree."""

    rule: int
    units: int  # how many there are; of rule 5 the checks that are wanted
    findings: Sequence[Finding]
    missing: int | None = None  # units that do not conform, where a finding is not one unit each
    notes: tuple[str, ...] = ()  # what it could not look at

    @property
    def conforming(self) -> int:
        """The number of units that conform."""
        lost = len({(f.path, f.line, f.unit) for f in self.findings}) if self.missing is None else self.missing
        return max(0, self.units - lost)

    @property
    def score(self) -> float:
        """Conforming units over units, in percent; 100 where there are none."""
        return 100.0 * self.conforming / self.units if self.units else 100.0
