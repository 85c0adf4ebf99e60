"""What the studies share: arms that are tuned with equal budgets and then run with more seeds, results.csv, tables, intervals.

A study is a folder with a study.py that says what its arms are and how they are told:

    python experiments/NAME/study.py              the quick size, for two cores: runs, results.csv, table and figure
    python experiments/NAME/study.py --full       the full size (of the paper, where there is one)
    python experiments/NAME/study.py --collect    results.csv from the runs that are there; then as --figure
    python experiments/NAME/study.py --figure     table and figure from the results.csv that is kept here

Words after that are overrides for every run, as tracker=mlflow. What was killed goes on with the same command.
"""

import argparse
import csv
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
REACHED = ("train_95", "val_95", "held_95", "train_99", "val_99", "held_99")  # steps; empty: not within the run
FACTS = ("size", "task", "arm", "phase", "settings", "seed", "status", "judged", "steps", "asked")
COLUMNS = (*FACTS, *REACHED, "lowest", "acc", "bpb", "seconds", "seconds_95")
Row = dict[str, str]
HALF = 0.5 / 359  # half a wrong answer of digits' 359: what a perfect network is counted as


@dataclass(frozen=True)
class Arm:
    """One way of training on one task: overrides, and those that are tuned, with lists or intervals."""

    name: str
    task: str
    fixed: tuple[str, ...]
    space: tuple[str, ...] = ()
    trials: int = 0  # of a random search; 0: the whole grid of the lists
    search_seeds: str = "0"


@dataclass(frozen=True)
class Study:
    """`arms` of a size, and how many seeds from 1 on judge each at its best setting (seed 0 is what it is tuned with)."""

    folder: Path
    arms: Callable[[str], list[Arm]]
    seeds: dict[str, int]
    tell: Callable[[list[Row], str], str]  # the rows of a size as Markdown
    draw: Callable[[list[Row]], Figure]

    @property
    def name(self) -> str:
        return self.folder.name

    def main(self) -> None:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--full", action="store_true")
        parser.add_argument("--collect", action="store_true", help="results.csv from the runs that are there, then as --figure")
        parser.add_argument("--figure", action="store_true")
        parser.add_argument("--at-once", type=int, default=2, help="runs beside each other, of one thread each")
        given, more = parser.parse_known_args()
        size = "full" if given.full else "quick"
        place = ROOT / "outputs" / "studies" / size
        if not (given.figure or given.collect):
            self.run(size, place, given.at_once, more)
        if not given.figure:
            self.collect(size, place)
        self.publish()

    def run(self, size: str, place: Path, at_once: int, more: list[str]) -> None:
        """All runs of a size: what is tuned with seed 0, then the best of each arm with seeds that it was not tuned on."""
        arms, asked = self.arms(size), []
        for arm in (arm for arm in arms if arm.space):
            drawn = ("hydra/sweeper/sampler=random", f"hydra.sweeper.n_trials={arm.trials}", "hydra.sweeper.sampler.seed=0")
            how = (*(drawn if arm.trials else ()), f"seed={arm.search_seeds}")
            asked.append((f"{arm.name}_{arm.task}_search", [*arm.fixed, *arm.space, *how]))
        self.carry_out(asked, place, at_once, more)
        if seeds := ",".join(str(1 + seed) for seed in range(self.seeds[size])):
            best = {arm: self.best(place, arm) if arm.space else [] for arm in arms}
            asked = [(f"{arm.name}_{arm.task}_seeds", [*arm.fixed, *best[arm], f"seed={seeds}"]) for arm in arms]
            self.carry_out(asked, place, at_once, more)

    def collect(self, size: str, place: Path) -> None:
        """The runs of a size into results.csv, beside the rows of the other."""
        rows = [row for arm in self.arms(size) for row in self.rows(place, size, arm)]
        kept = [row for row in read(self.folder) if row["size"] != size]
        with (self.folder / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*kept, *rows])

    def carry_out(self, asked: list[tuple[str, list[str]]], place: Path, at_once: int, more: list[str]) -> None:
        """A sweep each, `at_once` beside each other."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}

        def sweep(name: str, overrides: list[str]) -> None:
            own = [f"name={self.name}", f"out='{place}'", f"hydra.sweeper.study_name={name}", "hydra.sweeper.plots=false"]
            command = [sys.executable, str(ROOT / "train.py"), "-m", *own, "tracker=jsonl", *overrides, *more]
            done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode and not ended(place / self.name / name):  # a grid in which a run diverged ends with 1
                raise SystemExit(f"{name}: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            print(f"{self.name}: {name}", flush=True)

        with ThreadPoolExecutor(at_once) as pool:
            try:
                for each in [pool.submit(sweep, *words) for words in asked]:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def rows(self, place: Path, size: str, arm: Arm) -> list[Row]:
        """One a run that has come to its end."""
        found = []
        for phase in ("search", "seeds"):
            folder = place / self.name / f"{arm.name}_{arm.task}_{phase}"
            for path in sorted(folder.glob("*/summary.json"), key=lambda path: int(path.parent.name)):
                facts = {"size": size, "task": arm.task, "arm": arm.name, "phase": phase}
                found.append(facts | outcome(path.parent, arm.fixed))
        return found

    def best(self, place: Path, arm: Arm) -> list[str]:
        """The setting of the search that was best, by its mean over seeds."""
        scores: dict[str, list[float]] = {}
        for row in self.rows(place, "", arm):
            if row["phase"] == "search":
                scores.setdefault(row["settings"], []).append(score(row))
        return min(scores, key=lambda settings: statistics.fmean(scores[settings])).split()

    def publish(self) -> None:
        """The tables into the README, between their marks, and the figure."""
        rows, readme = read(self.folder), self.folder / "README.md"
        if not rows:
            raise SystemExit(f"{self.folder / 'results.csv'} is not there: python {self.folder / 'study.py'} makes it")
        text = readme.read_text() if readme.exists() else ""
        for size in dict.fromkeys(row["size"] for row in rows):
            table = self.tell([row for row in rows if row["size"] == size], size)
            print(f"{self.name}, {size}\n\n{table}\n")
            text = re.sub(
                rf"(<!-- {size} -->\n).*?(<!-- end -->)", lambda m, new=table: f"{m[1]}\n{new}\n\n{m[2]}", text, flags=re.S
            )
        if text:
            readme.write_text(text)
        self.draw(rows).savefig(self.folder / "figure.png", dpi=130)


def ended(folder: Path) -> bool:
    """Whether all runs of a sweep have come to an end, good or bad."""
    found = [json.loads(path.read_text())["status"] for path in folder.glob("*/summary.json")]
    return len(found) == len(list(folder.glob("[0-9]*"))) and set(found) <= {"FINISHED", "FAILED"} and "FINISHED" in found


def outcome(folder: Path, fixed: Sequence[str]) -> Row:
    """What a run folder tells."""
    told = json.loads((folder / "summary.json").read_text())
    given = dict(line.split("=", 1) for line in (folder / "overrides.txt").read_text().splitlines() if "=" in line)
    aside = {word.split("=", 1)[0] for word in fixed} | {"seed", "name", "out", "tracker", "resume.path"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    path = folder / "grokking.json"
    grokked = json.loads(path.read_text()) if path.exists() else {}
    facts: dict[str, Any] = {
        "settings": " ".join(f"{key}={short(value)}" for key, value in sorted(given.items()) if key not in aside),
        "seed": given["seed"], "status": told["status"], "steps": told.get("steps", 0),
        "asked": config["steps"], "seconds": round(told.get("train_s", 0.0), 2),
        "acc": told.get("best", {}).get("val/acc"), "bpb": told.get("best", {}).get("val/bpb"),
    }  # fmt: skip
    if grokked:
        facts["judged"] = "val_99" if config["callbacks"]["grokking"]["end"] >= 0.99 else "val_95"
    else:
        facts["judged"] = "acc" if facts["bpb"] is None else "bpb"
    for level in ("95", "99") if grokked else ():
        splits = grokked[f"0.{level}"]
        facts |= {f"{split}_{level}": splits[split]["first"] for split in ("train", "val")}
        facts |= {f"held_{level}": splits["val"]["held"]}
    if grokked:
        facts["lowest"] = grokked["0.95"]["val"]["lowest"]
        facts["seconds_95"] = seconds_at(folder / "metrics.jsonl", facts["val_95"])
    return {
        key: "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in facts.items()
    }


def short(value: str) -> str:
    """A drawn number with four digits, which is also what runs again."""
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def seconds_at(metrics: Path, step: int | None) -> float | None:
    records = map(json.loads, metrics.read_text().splitlines() if step is not None else ())
    return next((record["seconds"] for record in records if record["step"] == step), None)


def read(folder: Path) -> list[Row]:
    path = folder / "results.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def score(row: Row) -> float:
    """What settings are chosen by, smaller is better: steps to 95 or 99 % where a run is about that (of one that did not get
    there all of its steps, and more the worse it was), else bits per byte, else the share of wrong answers. Of one that
    failed, infinity.
    """
    if row["status"] == "FAILED" or not row["acc"]:
        return math.inf
    if (at := row["judged"]).startswith("val_"):
        return float(row[at]) if row[at] else float(row["asked"]) * (2 - float(row["acc"]))
    return float(row["bpb"]) if row["judged"] == "bpb" else max(1 - float(row["acc"]), HALF)


def value(row: Row) -> float:
    """What tables compare: the same, but no invented steps. Of a run that did not get there, its steps: a bound."""
    return min(score(row), float(row["asked"])) if row["judged"].startswith("val_") else score(row)


def missed(row: Row) -> bool:
    """Whether `value` is a bound only."""
    return row["status"] == "FAILED" or not row[row["judged"]]


def told(row: Row) -> str:
    """`value` for people."""
    if row["status"] == "FAILED":
        return f"diverged at {int(row['steps']):,}"
    if (at := row["judged"]).startswith("val_"):
        return f"{int(row[at]):,}" if row[at] else f"not in {int(row['asked']):,}"
    return f"{float(row['bpb']):.3f}" if row["judged"] == "bpb" else f"{float(row['acc']):.4f}"


def of(rows: Iterable[Row], arm: str, task: str = "") -> list[Row]:
    """The runs that an arm is judged by, a seed each."""
    return [row for row in rows if row["arm"] == arm and task in ("", row["task"]) and row["phase"] == "seeds"]


def searched(rows: Iterable[Row], arm: str, task: str = "") -> int:
    """How many settings an arm was tuned with; 0: it was not."""
    return sum(row["arm"] == arm and row["phase"] == "search" and task in ("", row["task"]) for row in rows)


def steps(row: Row, key: str = "val_95") -> float:
    """Steps to an accuracy; of a run that did not get there, infinity."""
    return float(row[key]) if row[key] else math.inf


def each(rows: Sequence[Row], key: str = "val_95") -> str:
    """The steps of each seed; those that are missing were not reached within the run."""
    return ", ".join(f"{int(row[key]):,}" if row[key] else f"not in {int(row['steps']):,}" for row in rows)


def compared(slow: Sequence[Row], fast: Sequence[Row]) -> str:
    """How many times the number of `fast` that of `slow` is: the geometric mean over seeds, with its 95 % bootstrap interval.

    Paired by seed where both have the same ones. Where runs of one side did not get there it is a bound; where runs of both
    did not, nothing can be said.
    """
    lost, won = (any(map(missed, side)) for side in (slow, fast))
    if (lost and won) or not (slow and fast):
        return "-"
    paired = [row["seed"] for row in slow] == [row["seed"] for row in fast]
    middle, low, high = ratio([value(row) for row in slow], [value(row) for row in fast], paired)
    bound = "more than " if lost else "less than " if won else ""
    return f"{bound}{middle:.3g}" if bound else f"{middle:.3g} ({low:.3g} to {high:.3g})"


def ratio(
    slow: Sequence[float], fast: Sequence[float], paired: bool = False, draws: int = 10_000
) -> tuple[float, float, float]:
    """Geometric mean of `slow` over that of `fast`, with the ends of its 95 % bootstrap interval (percentiles); `paired`:
    each number of the one belongs to that of the other (a seed), and pairs are drawn.
    """
    generator = random.Random(0)
    logs = [math.log(value) for value in slow], [math.log(value) for value in fast]
    gaps = [a - b for a, b in zip(*logs, strict=True)] if paired else []

    def drawn(values: Sequence[float]) -> float:
        return statistics.fmean(generator.choices(values, k=len(values)))

    found = sorted(math.exp(drawn(gaps) if paired else drawn(logs[0]) - drawn(logs[1])) for _ in range(draws))
    middle = math.exp(statistics.fmean(logs[0]) - statistics.fmean(logs[1]))
    return middle, found[round(0.025 * draws)], found[round(0.975 * draws) - 1]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
