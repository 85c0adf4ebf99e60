"""What the studies share: arms that are tuned with equal budgets and then run with more seeds, results.csv, table, figure.

A study is a folder with a study.py that says what its arms are and how they are told:

    python -m experiments.NAME.study              the quick size, for two cores: runs, results.csv, table and figure
    python -m experiments.NAME.study --full       the full size (of the paper, where there is one)
    python -m experiments.NAME.study --collect    results.csv from the runs that are there; then as --figure
    python -m experiments.NAME.study --figure     table and figure from the results.csv that is kept here

Words after that are overrides for every run, as tracker=mlflow. What was killed goes on with the same command.
"""

import argparse
import csv
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from experiments.results import COLUMNS, Row, read, score

ROOT = Path(__file__).resolve().parents[1]
RANDOM = ("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.max_failure_rate=1")
FIRST_HIT = (
    "callbacks.grokking.hold=1",
    "callbacks.grokking.after=1",
)  # `score` asks for the first hit: a search may end there


@dataclass(frozen=True)
class Arm:
    """One way of training on one task: overrides, and those that are tuned, with lists or intervals."""

    name: str
    task: str
    fixed: tuple[str, ...]
    space: tuple[str, ...] = ()
    trials: int = 0  # of a random search; 0: the whole grid of the lists
    search_seeds: str = "0"
    search: tuple[str, ...] = ()  # overrides of the search alone, that change no `score`
    seeds: str = ""  # that judge it, where they are not the study's
    control: tuple[str, ...] = ()  # overrides of runs beside those, at the same seeds and else the same settings

    @property
    def phases(self) -> dict[str, tuple[str, ...]]:
        """What its runs are for, and what all of one kind have."""
        found = {"search": (*self.fixed, *self.search)} if self.space else {}
        return found | {"seeds": self.fixed} | ({"control": (*self.fixed, *self.control)} if self.control else {})


@dataclass(frozen=True)
class Study:
    """`arms` of a size, and how many seeds from 1 on judge each at its best setting (seed 0 is what it is tuned with).

    A seed is that of weights and order; the samples that are held back are the same for all.
    """

    folder: Path
    list_arms: Callable[[str], list[Arm]]
    seeds: dict[str, int]
    make_table: Callable[[list[Row], str], str]  # the rows of a size as Markdown
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
        if given.at_once < 1:
            parser.error(f"--at-once={given.at_once}: give 1 or more")
        size = "full" if given.full else "quick"
        own = {get_key(word) for arm in self.list_arms(size) for word in (*sum(arm.phases.values(), ()), *arm.space, "seed")}
        for word in more:
            if given.figure or given.collect or get_key(word) in own:
                parser.error(f"{word}: {'no runs are made' if given.figure or given.collect else 'the study itself says that'}")
        place = ROOT / "outputs" / "studies" / size
        if not (given.figure or given.collect):
            self.run(size, place, given.at_once, more)
        if not given.figure:
            self.collect(size, place)
        self.publish()

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        """All runs of a size, `at_once` arms beside each other; those that are tuned, which takes longest, first."""
        seeds = ",".join(str(1 + seed) for seed in range(self.seeds[size]))
        with ThreadPoolExecutor(at_once) as pool:
            try:
                arms = sorted(self.list_arms(size), key=lambda arm: not arm.space)
                for each in [pool.submit(self.run_arm, arm, seeds, root, more) for arm in arms]:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def run_arm(self, arm: Arm, seeds: str, root: Path, more: list[str]) -> None:
        """What is tuned, then the best with seeds that it was not tuned with, and its control."""
        best: list[str] = []
        for phase, fixed in arm.phases.items():
            if phase == "search":
                drawn = (*RANDOM, f"hydra.sweeper.n_trials={arm.trials}") if arm.trials else ()
                asked = [*fixed, *arm.space, *drawn, f"seed={arm.search_seeds}"]
            elif arm.seeds or seeds:
                best = best or (self.find_best(root, arm) if arm.space else [])
                asked = [*best, *fixed, f"seed={arm.seeds or seeds}"]
            else:
                continue
            self.sweep(f"{arm.name}_{arm.task}_{phase}", [*asked, *more], root)

    def collect(self, size: str, root: Path) -> None:
        """The runs of a size into results.csv, beside the rows of the other. Raises SystemExit where some are not there."""
        rows = []
        for arm in self.list_arms(size):
            found = self.read_rows(root, size, arm)
            rows += found
            judged = len(arm.seeds.split(",")) if arm.seeds else self.seeds[size]
            for phase in arm.phases if judged else ["search"]:
                settings = arm.trials or math.prod(1 + word.count(",") for word in arm.space)
                asked = len(arm.search_seeds.split(",")) * settings if phase == "search" else judged
                if (there := sum(row["phase"] == phase for row in found)) < asked:
                    told = f"{there} of at least {asked} runs of {arm.name}, {arm.task}, {phase}"
                    raise SystemExit(f"{root / self.name} has {told}: without --collect they are made")
        kept = [row for row in read(self.folder) if row["size"] != size]
        with (fresh := self.folder / "results.csv.new").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*kept, *rows])
        fresh.replace(self.folder / "results.csv")

    def sweep(self, name: str, overrides: list[str], root: Path) -> None:
        own = [f"name={self.name}", f"out='{root}'", f"hydra.sweeper.study_name={name}", "hydra.sweeper.plots=false"]
        command = [sys.executable, str(ROOT / "train.py"), "-m", *own, "tracker=jsonl", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        found = [json.loads(path.read_text())["status"] for path in (root / self.name / name).glob("*/summary.json")]
        diverged = f"{found.count('FAILED')} of {len(found)} trials failed"  # how a grid ends that went to its end
        if done.returncode and diverged not in done.stderr:
            raise SystemExit(f"{name}: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        print(f"{self.name}: {name}", flush=True)

    def read_rows(self, root: Path, size: str, arm: Arm) -> list[Row]:
        """One a run that has come to its end, good or bad."""
        found = []
        for phase, fixed in arm.phases.items():
            folder = root / self.name / f"{arm.name}_{arm.task}_{phase}"
            for path in sorted(folder.glob("*/summary.json"), key=lambda path: int(path.parent.name)):
                facts = {"size": size, "task": arm.task, "arm": arm.name, "phase": phase}
                facts |= read_outcome(path.parent, fixed)
                found += [facts] if facts["status"] in ("FINISHED", "FAILED") else []
        return found

    def find_best(self, root: Path, arm: Arm) -> list[str]:
        """The setting of the search that was best, by its mean over seeds."""
        scores: dict[str, list[float]] = {}
        for row in self.read_rows(root, "", arm):
            if row["phase"] == "search":
                scores.setdefault(row["settings"], []).append(score(row))
        means = {settings: statistics.fmean(each) for settings, each in scores.items()}
        if not math.isfinite(lowest := min(means.values(), default=math.inf)):
            raise SystemExit(f"{arm.name}, {arm.task}: no setting of the search came to an end")
        return next(settings for settings, mean in means.items() if mean == lowest).split()

    def publish(self) -> None:
        """The tables into the README, between their marks, and the figure."""
        rows, readme = read(self.folder), self.folder / "README.md"
        if not rows:
            raise SystemExit(f"{self.folder / 'results.csv'} is not there: python {self.folder / 'study.py'} makes it")
        text = readme.read_text()
        for size in dict.fromkeys(row["size"] for row in rows):
            table = self.make_table([row for row in rows if row["size"] == size], size)
            print(f"{self.name}, {size}\n\n{table}\n")
            marks = rf"(<!-- {size} -->\n).*?(<!-- end -->)"
            text, made = re.subn(marks, lambda m, new=table: f"{m[1]}\n{new}\n\n{m[2]}", text, flags=re.DOTALL)
            if not made:
                raise SystemExit(f"{readme} has no place for this table: give it <!-- {size} --> and <!-- end -->")
        readme.write_text(text)
        self.draw(rows).savefig(self.folder / "figure.png", dpi=130)


def get_key(word: str) -> str:
    """What an override sets: trainer.steps=5 and ++steps=5 are steps."""
    return word.lstrip("+~").split("=", 1)[0].removeprefix("trainer.")


def read_outcome(folder: Path, fixed: Sequence[str]) -> Row:
    """What a run folder tells."""
    told = json.loads((folder / "summary.json").read_text())
    given = dict(line.split("=", 1) for line in (folder / "overrides.txt").read_text().splitlines() if "=" in line)
    same = dict(word.split("=", 1) for word in fixed)  # of a key that is given twice the last holds
    aside = {*same, "seed", "name", "out", "tracker", "resume.path"}
    if other := [f"{key}={value}" for key, value in same.items() if given.get(key) != value]:
        raise SystemExit(f"{folder} is of another study, without {' '.join(other)}: move it away")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    path = folder / "grokking.json"
    grokked = json.loads(path.read_text()) if path.exists() else {}
    facts: dict[str, Any] = {
        "settings": " ".join(f"{key}={shorten(value)}" for key, value in sorted(given.items()) if key not in aside),
        "seed": given["seed"], "status": told["status"], "steps": told.get("steps", 0),
        "asked": config["steps"], "seconds": round(told.get("train_s", 0.0), 2),
        "acc": told.get("best", {}).get("val/acc"), "bpb": told.get("best", {}).get("val/bpb"),
    }  # fmt: skip
    aim = config["callbacks"].get("grokking", {}).get("end")
    facts["judged"] = config["monitor"].removeprefix("val/") if aim is None else "val_99" if aim >= 0.99 else "val_95"
    for level in ("95", "99") if grokked else ():
        splits = grokked[f"0.{level}"]
        facts |= {f"{split}_{level}": splits[split]["first"] for split in ("train", "val")}
        facts |= {f"held_{level}": splits["val"]["held"]}
    if grokked:
        facts["lowest"] = grokked["0.95"]["val"]["lowest"]
        facts["seconds_95"] = find_seconds(folder / "metrics.jsonl", facts["val_95"])
    return {
        key: "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in facts.items()
    }


def shorten(value: str) -> str:
    """A drawn number with four digits, which is also what runs again."""
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def find_seconds(metrics: Path, step: int | None) -> float | None:
    records = map(json.loads, metrics.read_text().splitlines() if step is not None else ())
    return next((record["seconds"] for record in records if record["step"] == step), None)
