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
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from research.run_dir import describe_environment

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")
Clock = Callable[[], float]
Bounds = Mapping[str, Any]  # name of a ratio -> bound; or the name of a part -> its bounds


class Parser(argparse.ArgumentParser):
    """The options of a program; its help is the docstring of the program."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_count(self, name: str, default: Any, text: str | None = None, minimum: int = 1, **settings: Any) -> None:
        """Add an option that takes an integer of at least `minimum`; `text` is its help."""

        def parse_count(value: str) -> int:
            if (count := int(value)) < minimum:
                raise argparse.ArgumentTypeError(f"{count} is too few: give {minimum} or more")
            return count

        parse_count.__name__ = "count"  # argparse names the type in its message on text that is no number
        self.add_argument(name, type=parse_count, default=default, help=text, **settings)

    def add_choices(self, name: str, kind: str, names: Collection[str], text: str) -> None:
        """Add an option that takes some of `names`, separated by commas, by default all; its help is `text` with the names."""
        valid = ", ".join(names)

        def parse_choices(value: str) -> list[str]:
            for choice in (choices := value.split(",")):
                if choice not in names:
                    raise argparse.ArgumentTypeError(
                        f"there is no {kind} '{choice}'; give some of {valid}, with commas between"
                    )
            return choices

        self.add_argument(name, type=parse_choices, default=list(names), help=text.format(valid))


def has_peer(peer: str, packages: str, *modules: str) -> bool:
    """Return true if all `modules` of a peer are installed; else print which `packages` bring them."""
    installed = all(importlib.util.find_spec(module) for module in modules)
    if not installed:
        print(f"{peer} is not compared: pip install {packages}")
    return installed


def run_python(
    *args: str, folder: Path = ROOT, check: bool = True, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and one compute thread; return its exit code and both outputs, as `stdout`.

    Raise RuntimeError with the end of its output if it fails and `check` is true.
    """
    command, env = [sys.executable, *args], {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and process.returncode:
        raise RuntimeError(f"python {args[0]} ended with {process.returncode}: {process.stdout[-2000:]}")
    return process


def select_clock(threads: int) -> Clock:
    """Return the clock of CPU time for one thread, which other load disturbs less, and of wall time for several."""
    return time.process_time if threads == 1 else time.perf_counter


def make_arm(work: Callable[[], object], clock: Clock = time.perf_counter) -> Callable[[], float]:
    """Return an arm: it does `work` once and returns the seconds by `clock`."""

    def measure() -> float:
        start = clock()
        work()
        return clock() - start

    return measure


def run_interleaved(arms: Mapping[str, Callable[[], T]], rounds: int, warm_up: int = 1, seed: int = 0) -> dict[str, list[T]]:
    """Run every arm once a round, in random order. Return what each arm measured, without the `warm_up` rounds."""
    results: dict[str, list[T]] = {name: [] for name in arms}
    order = random.Random(seed)
    for number in range(warm_up + rounds):
        for name in order.sample(list(arms), len(arms)):
            result = arms[name]()
            if number >= warm_up:
                results[name].append(result)
    return results


class Quartiles(NamedTuple):
    """The quartiles of the ratios of all rounds."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.3f}-{self.high:.3f}"


def compare(times: Sequence[float], base: Sequence[float]) -> Quartiles:
    """Return the quartiles of `times` over `base`, round by round."""
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    return Quartiles(*statistics.quantiles(ratios)) if len(ratios) > 1 else Quartiles(*(ratios * 3))


class Table:
    """A table on stdout whose rows appear as they are measured: a name on the left, then cells on the right."""

    def __init__(self, title: str, *heads: str, width: int = 28) -> None:
        self.width = width
        self.cell_widths = [max(len(head), 11) + 2 for head in heads]
        self.add(title, *heads)

    def add(self, name: str, *cells: str) -> None:
        """Print one row; more text than cells have room for makes the row longer."""
        texts = (f"{cell:>{width}}" for cell, width in zip(cells, self.cell_widths, strict=False))
        print(f"{name:<{self.width}}" + "".join(texts), flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Print a row of an arm that was not measured."""
        print(f"{name:<{self.width}}    {reason}", flush=True)


def report(
    title: str,
    times: Mapping[str, Sequence[float]],
    bases: Mapping[str, Sequence[float]],
    unit: str = "ms a step",
    width: int = 28,
    labels: Mapping[str, str] = MappingProxyType({}),
    reasons: Mapping[str, str] = MappingProxyType({}),
    columns: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
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
        quartiles = str(list(compared.values())[-1])
        table.add(labels.get(arm, arm), f"{median:.2f}", *medians, quartiles, *(cells[arm] for cells in columns.values()))
        ratios |= {f"{arm}/{base}": ratio.median for base, ratio in compared.items() if arm != base}
    for arm, reason in reasons.items():
        table.skip(arm, reason)
    return ratios


def list_violations(results: Mapping[str, Any], at_most: Bounds, at_least: Bounds | None = None) -> list[str]:
    """Return a line for each result outside its bound. A bound without a result is skipped."""
    lines = []
    for part, bound in at_most.items():
        if isinstance(bound, Mapping):
            lines += [f"{part}: {line}" for line in list_violations(results.get(part, {}), bound)]
        elif isinstance(value := results.get(part), int | float) and value > bound:
            lines.append(f"{part} is {value:.4g}, at most {bound:g} was expected")
    for name, bound in (at_least or {}).items():
        if name in results and results[name] < bound:
            lines.append(f"{name} is {results[name]:.4g}, at least {bound:g} was expected")
    return lines


def finish(results: Mapping[str, Any], bounds: Bounds, at_least: Bounds | None = None) -> None:
    """Print which results are outside their bounds, then the last line: one JSON object.

    It holds the results, their upper `bounds`, their lower bounds as "at least", and the processor's name. Numbers are
    rounded to four digits after the point; NaN and infinity become null, which JSON has.
    """
    for line in list_violations(results, bounds, at_least):
        print(f"outside its bound: {line}")
    record = {**results, "bounds": bounds} | ({} if at_least is None else {"at least": at_least})
    print(json.dumps(round_numbers({**record, "processor": describe_environment()["processor"]})))


def round_numbers(record: Mapping[str, Any]) -> Any:
    """Return a copy in which floats, at any depth, have four digits after the point."""

    def parse_float(text: str) -> float:
        return round(float(text), 4)

    return json.loads(json.dumps(record), parse_float=parse_float, parse_constant=lambda name: None)
