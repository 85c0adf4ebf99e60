"""What all benchmarks share: options, arms that run in turn, medians of ratios, a table, and the line of JSON.

An arm is a function that measures one side once and returns its seconds. In each round every arm runs once, in a new
random order. A figure is the median of the rounds; a ratio is the median of the ratios within each round. So a busy
moment of the machine meets both sides.
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from research.contracts import contract
from research.tracking.environment import describe_environment

ROOT = Path(__file__).resolve().parents[1]
EMPTY: Mapping[str, Any] = {}
T = TypeVar("T")
Clock = Callable[[], float]
Main = Callable[..., Mapping[str, Any]]  # the values of options -> results
Results = Mapping[str, Any]  # name -> number; or the name of a part -> its results
Bounds = Mapping[str, Any]  # name of a result -> bound; or the name of a part -> its bounds


@contract
def take_count(default: Any, minimum: int = 1, **settings: Any) -> dict[str, Any]:
    """Return the settings of an option that takes an integer of at least `minimum`."""

    def count(text: str) -> int:  # argparse names it in its message on what is no number
        if (number := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"{number} is too few: give {minimum} or more")
        return number

    return {"type": count, "default": default, "help": f"at least {minimum}; by default {default}", **settings}


@contract
def take_choices(kind: str, names: Collection[str]) -> dict[str, Any]:
    """Return the settings of an option that takes some of `names`, by default all; commas separate them."""
    valid = f"some of {', '.join(names)}, with commas between"

    def parse_choices(text: str) -> list[str]:
        choices = text.split(",")
        for choice in choices:
            if choice not in names:
                raise argparse.ArgumentTypeError(f"there is no {kind} '{choice}'; give {valid}")
        return choices

    return {"type": parse_choices, "default": list(names), "help": valid}


@contract
def run(main: Main, doc: str | None, at_most: Bounds = EMPTY, at_least: Bounds = EMPTY, **options: Any) -> Results:
    """Call the `main` of a program with its options, print the last line for what it returns, and return that.

    The help is `doc`. Each of `options` is the default of a count, or has the settings of `ArgumentParser.add_argument`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, option in options.items():
        settings = take_count(option) if isinstance(option, int) else option
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    results = main(**vars(parser.parse_args()))
    finish(results, at_most, at_least)
    return results


@contract
def has_peer(peer: str, packages: str, *modules: str) -> bool:
    """Return true if all `modules` of a peer are installed; else print which `packages` bring them."""
    installed = all(importlib.util.find_spec(module) for module in modules)
    if not installed:
        print(f"{peer} is not compared: pip install {packages}")
    return installed


@contract
def build_versions(builders: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, str]]:
    """Return what the builders return; and for each that cannot run, the reason: a package is missing, or it fails."""
    versions: dict[str, T] = {}
    reasons: dict[str, str] = {}
    for name, build in builders.items():
        try:
            versions[name] = build()
        except ModuleNotFoundError as error:
            reasons[name] = f"not installed: pip install {str(error.name).partition('.')[0]}"
        except RuntimeError as error:
            reasons[name] = f"fails: {str(error).splitlines()[0][:80]}"
    return versions, reasons


@contract
def start_python(
    *args: str, folder: Path = ROOT, variables: Mapping[str, str] = EMPTY, stdout: Any = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start Python with these arguments and one compute thread; both its outputs go to `stdout`."""
    # As on a user's machine, whatever the shell says: without its cache of compiled modules each start compiles all of ours.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "", **variables}
    return subprocess.Popen([sys.executable, *args], cwd=folder, env=env, stdout=stdout, stderr=subprocess.STDOUT, text=True)


@contract
def run_python(*args: str, check: bool = True, **settings: Any) -> tuple[int, str]:
    """Run Python to its end; `settings` are those of `start_python`. Return its exit code and its output.

    Raise RuntimeError with the end of its output if it fails and `check` is true.
    """
    process = start_python(*args, **settings)
    output, _ = process.communicate()
    if check and process.returncode:
        raise RuntimeError(f"python {args[0]} ended with {process.returncode}: {output[-2000:]}")
    return process.returncode, output


@contract
def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Return the first true value of `condition`. Raise TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition was not true within {seconds:.0f} s")
        time.sleep(0.02)
    return value


@contract
def select_clock(threads: int) -> Clock:
    """Return the clock of CPU time for one thread, which other load disturbs less, and of wall time for several."""
    return time.process_time if threads == 1 else time.perf_counter


@contract
def make_arm(work: Callable[[], object], clock: Clock = time.perf_counter) -> Callable[[], float]:
    """Return an arm: it does `work` once and returns the seconds by `clock`."""

    def measure() -> float:
        start = clock()
        work()
        return clock() - start

    return measure


@contract
def run_interleaved(arms: Mapping[str, Callable[[], T]], rounds: int, warm_up: int = 1, seed: int = 0) -> dict[str, list[T]]:
    """Run every arm once a round, in random order. Return what each arm measured, without the `warm_up` rounds."""
    results: dict[str, list[T]] = {name: [] for name in arms}
    order = random.Random(seed)
    for _ in range(warm_up + rounds):
        for name in order.sample(list(arms), len(arms)):
            results[name].append(arms[name]())
    return {name: values[warm_up:] for name, values in results.items()}


class Quartiles(NamedTuple):
    """The quartiles of the ratios of all rounds."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.3f}-{self.high:.3f}"


@contract
def compare(times: Sequence[float], base: Sequence[float]) -> Quartiles:
    """Return the quartiles of `times` over `base`, round by round."""
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    return Quartiles(*statistics.quantiles(ratios)) if len(ratios) > 1 else Quartiles(*(ratios * 3))


@contract
class Table:
    """A table on stdout whose rows appear as they are measured: a name on the left, then cells on the right."""

    def __init__(self, title: str, *heads: str, width: int = 28) -> None:
        self.width = width
        self.cell_widths = [max(len(head), 11) + 2 for head in heads]
        self.add(title, *heads)

    def add(self, name: str, *cells: object) -> None:
        """Print one row; more text than cells have room for makes the row longer."""
        texts = (f"{cell!s:>{width}}" for cell, width in zip(cells, self.cell_widths, strict=False))
        print(f"{name:<{self.width}}" + "".join(texts), flush=True)


@contract
def report(
    title: str,
    times: Mapping[str, Sequence[float]],
    bases: Mapping[str, Sequence[float]],
    unit: str = "ms a step",
    width: int = 28,
    labels: Mapping[str, str] = EMPTY,
    reasons: Mapping[str, str] = EMPTY,
    columns: Mapping[str, Mapping[str, str]] = EMPTY,
) -> dict[str, float]:
    """Print a table of all arms with their ratios over each of `bases`. Return these ratios, as "arm/base".

    The quartiles are those over the last base. An arm in `reasons` was not measured; `columns` are more cells, by head.
    """
    table = Table(title, unit, *(f"over {base}" for base in bases), "quartiles", *columns, width=width)
    ratios: dict[str, float] = {}
    for arm, seconds in times.items():
        compared = {base: compare(seconds, base_seconds) for base, base_seconds in bases.items()}
        median = statistics.median(seconds) * (1e3 if unit.startswith("ms") else 1)
        medians = [f"{ratio.median:.3f}" for ratio in compared.values()]
        quartiles = list(compared.values())[-1]
        table.add(labels.get(arm, arm), f"{median:.2f}", *medians, quartiles, *(cells[arm] for cells in columns.values()))
        ratios |= {f"{arm}/{base}": ratio.median for base, ratio in compared.items() if arm != base}
    for arm, reason in reasons.items():
        table.add(arm, f"    {reason}")
    return ratios


def list_violations(results: Results, at_most: Bounds, at_least: Bounds = EMPTY) -> list[str]:
    """Return a line for each result outside its bound. A bound without a result is skipped."""
    lines, left = list[str](), [("", results, at_most)]
    while left:
        prefix, values, bounds = left.pop(0)
        for part, bound in bounds.items():
            if isinstance(bound, Mapping):
                left.append((f"{prefix}{part}: ", values.get(part, {}), bound))
            elif isinstance(value := values.get(part), int | float) and value > bound:
                lines.append(f"{prefix}{part} is {value:.4g}, at most {bound:g} was expected")
    for name, bound in at_least.items():
        if name in results and results[name] < bound:
            lines.append(f"{name} is {results[name]:.4g}, at least {bound:g} was expected")
    return lines


@contract
def finish(results: Results, at_most: Bounds, at_least: Bounds = EMPTY) -> None:
    """Print which results are outside their bounds, then the last line: one JSON object.

    It holds the results, the upper bounds, without those of parts that were not measured, the lower bounds, and the
    processor's name. Numbers have four digits after the point; NaN and infinity become null, which JSON has.
    """
    for line in list_violations(results, at_most, at_least):
        print(f"outside its bound: {line}")
    bounds = {name: bound for name, bound in at_most.items() if name in results or not isinstance(bound, Mapping)}
    record = {**results, "bounds": bounds, **({"at least": at_least} if at_least else {})}
    text = json.dumps({**record, "processor": describe_environment()["processor"]})
    print(json.dumps(json.loads(text, parse_float=lambda digits: round(float(digits), 4), parse_constant=lambda name: None)))
