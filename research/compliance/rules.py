"""The ten rules, one row each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from research.compliance import analysers, chains, checks, dynamic, flow, growth, length, loops, results, scope
from research.compliance.findings import RuleResult
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.tree import Tree


@dataclass(frozen=True)
class Inputs:
    """What rules look at."""

    tree: Tree
    graph: CallGraph
    mypy_lines: Sequence[str] | None = None  # of mypy's own report; None where there is none


@dataclass(frozen=True)
class Rule:
    """A rule: what it is called, what its unit is, and what a unit must do to conform."""

    number: int
    name: str
    unit: str
    reading: str
    check: Callable[[Inputs], RuleResult]


# fmt: off
RULES = {rule.number: rule for rule in (
    Rule(1, "Control flow", "function", "No recursion, at most 10 paths, at most 4 blocks inside each other.",
         lambda inputs: flow.check(inputs.tree, inputs.graph)),
    Rule(2, "Loop bounds", "loop", "A loop ends for a reason that shows: a finite iterable, a counter or a deadline.",
         lambda inputs: loops.check(inputs.tree, inputs.graph)),
    Rule(3, "Memory", "method", "No container of an object or a module grows without a bound.",
         lambda inputs: growth.check(inputs.tree, inputs.graph)),
    Rule(4, "Length", "function", "At most 60 lines of code, without docstring, comments and blank lines.",
         lambda inputs: length.check(inputs.tree, inputs.graph)),
    Rule(5, "Checks", "check", "Two checks a public function, which can fail and stay on under python -O.",
         lambda inputs: checks.check(inputs.tree, inputs.graph)),
    Rule(6, "Scope", "function or binding", "No global, no nonlocal, no mutable default, no shared state that changes.",
         lambda inputs: scope.check(inputs.tree)),
    Rule(7, "Results and parameters", "function", "All has types, statuses are read, no exception is swallowed.",
         lambda inputs: results.check(inputs.tree, inputs.graph, inputs.mypy_lines)),
    Rule(8, "Dynamic code", "function", "No eval, exec, import *, dynamic attributes, keywords handed on, patched modules.",
         lambda inputs: dynamic.check(inputs.tree)),
    Rule(9, "Chains", "expression", "At most two steps from a name to what is read.",
         lambda inputs: chains.check(inputs.tree)),
    Rule(10, "Analysers", "file", "No finding of the analysers, with their strict settings.",
         lambda inputs: analysers.check(inputs.tree, inputs.mypy_lines)),
)}
# fmt: on
NO_RULE = Rule(
    0, "Files and register", "file", "Each file can be read, and each deviation is valid.", lambda _: RuleResult(0, 0, ())
)


@contract
def run_rules(inputs: Inputs, numbers: Iterable[int] = RULES) -> tuple[RuleResult, ...]:
    """Return what rules say, in the order of their numbers. Raise ValueError where a number is none of a rule."""
    chosen = sorted({*numbers})
    if unknown := [number for number in chosen if number not in RULES]:
        raise ValueError(f"rule={unknown[0]}: there is no such rule; the rules are 1 to 10")
    return tuple(RULES[number].check(inputs) for number in chosen)
