"""Studies of tuned arms: each is tuned with an equal budget, then its best setting runs with more seeds (see base.py)."""

import json
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from experiments.base import NO_PLOTS, BaseStudy, Section, get_key, list_runs, read_overrides, write_csv
from experiments.results import COLUMNS, Row, read, score
from research.contracts import contract

RANDOM = ("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.max_failure_rate=1")
# For arms whose `score` is the first hit: a run of the search may end there.
FIRST_HIT = ("callbacks.grokking.hold=1", "callbacks.grokking.after=1")


@dataclass(frozen=True)
class Arm:
    """One way of training on one task: fixed overrides, and tuned ones with lists or intervals."""

    name: str
    task: str
    fixed: tuple[str, ...]
    space: tuple[str, ...] = ()
    trials: int = 0  # of a random search; 0: the whole grid of the lists
    search_seeds: str = "0"
    search: tuple[str, ...] = ()  # overrides of the search alone, which change no `score`
    seeds: str = ""  # of its final runs; empty: those of the study
    control: tuple[str, ...] = ()  # overrides of further runs at the same seeds and settings

    @property
    def phases(self) -> dict[str, tuple[str, ...]]:
        """Return the overrides that all runs of a phase share, by phase."""
        phases = {"search": (*self.fixed, *self.search)} if self.space else {}
        return phases | {"seeds": self.fixed} | ({"control": (*self.fixed, *self.control)} if self.control else {})


@contract
@dataclass(frozen=True)
class Study(BaseStudy):
    """The arms of each size, and how many seeds from 1 on run at the best setting (seed 0 is for tuning).

    A seed sets weights and order. The held-back samples are the same for all runs.
    """

    folder: Path
    list_arms: Callable[[str], list[Arm]]
    seeds: dict[str, int]
    make_table: Callable[[list[Row], str], str]  # the rows of a size as Markdown
    draw: Callable[[list[Row]], Figure]

    def get_fixed_keys(self, size: str) -> Collection[str]:
        arms = self.list_arms(size)
        return {"seed"} | {get_key(word) for arm in arms for word in (*sum(arm.phases.values(), ()), *arm.space)}

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        """Do all runs of a size, `at_once` arms side by side; tuned arms, which take longest, come first."""
        seeds = ",".join(str(1 + seed) for seed in range(self.seeds[size]))
        with ThreadPoolExecutor(at_once) as pool:
            try:
                arms = sorted(self.list_arms(size), key=lambda arm: not arm.space)
                for future in [pool.submit(self.run_arm, arm, seeds, root, more) for arm in arms]:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def run_arm(self, arm: Arm, seeds: str, root: Path, more: list[str]) -> None:
        """Tune an arm, then run its best setting with seeds that it was not tuned with, and its control."""
        best: list[str] = []
        for phase, fixed in arm.phases.items():
            if phase == "search":
                sampling = (*RANDOM, f"hydra.sweeper.n_trials={arm.trials}") if arm.trials else ()
                overrides = [*fixed, *arm.space, *sampling, f"seed={arm.search_seeds}"]
            elif arm.seeds or seeds:
                best = best or (self.find_best(root, arm) if arm.space else [])
                overrides = [*best, *fixed, f"seed={arm.seeds or seeds}"]
            else:
                continue
            self.sweep(f"{arm.name}_{arm.task}_{phase}", [NO_PLOTS, *overrides, *more], root)

    def collect(self, size: str, root: Path) -> None:
        """Write the runs of a size into results.csv, beside the rows of the other size."""
        rows = []
        for arm in self.list_arms(size):
            runs = self.read_rows(root, size, arm)
            rows += runs
            num_seeds = len(arm.seeds.split(",")) if arm.seeds else self.seeds[size]
            for phase in arm.phases if num_seeds else ["search"]:
                settings = arm.trials or math.prod(1 + word.count(",") for word in arm.space)
                expected = len(arm.search_seeds.split(",")) * settings if phase == "search" else num_seeds
                if (count := sum(row["phase"] == phase for row in runs)) < expected:
                    missing = f"{count} of at least {expected} runs of {arm.name}, {arm.task}, {phase}"
                    raise SystemExit(f"{root / self.name} has {missing}: without --collect the study does them")
        write_csv(self.folder / "results.csv", COLUMNS, [row for row in read(self.folder) if row["size"] != size] + rows)

    def read_rows(self, root: Path, size: str, arm: Arm) -> list[Row]:
        """Return a row for each run of an arm that ended, whether it finished or failed."""
        rows = []
        for phase, fixed in arm.phases.items():
            for folder in list_runs(root / self.name / f"{arm.name}_{arm.task}_{phase}"):
                row = {"size": size, "task": arm.task, "arm": arm.name, "phase": phase, **read_outcome(folder, fixed)}
                rows += [row] if row["status"] in ("FINISHED", "FAILED") else []
        return rows

    def find_best(self, root: Path, arm: Arm) -> list[str]:
        """Return the overrides of the best setting of the search, by its mean over seeds."""
        scores: dict[str, list[float]] = {}
        for row in self.read_rows(root, "", arm):
            if row["phase"] == "search":
                scores.setdefault(row["settings"], []).append(score(row))
        means = {settings: statistics.fmean(values) for settings, values in scores.items()}
        if not math.isfinite(lowest := min(means.values(), default=math.inf)):
            raise SystemExit(f"{arm.name}, {arm.task}: no setting of the search came to an end")
        return next(settings for settings, mean in means.items() if mean == lowest).split()

    def make_sections(self) -> list[Section]:
        rows = read(self.folder)
        sizes = dict.fromkeys(row["size"] for row in rows)
        return [Section(size, self.make_table([row for row in rows if row["size"] == size], size)) for size in sizes]

    def make_figure(self) -> Figure:
        return self.draw(read(self.folder))


@contract
def read_outcome(folder: Path, fixed: Sequence[str]) -> Row:
    """Return a row of results.csv, without the columns of the arm. Raise SystemExit if the run lacks a fixed override."""
    summary, overrides = json.loads((folder / "summary.json").read_text()), read_overrides(folder)
    expected = dict(override.split("=", 1) for override in fixed)
    ignored = {*expected, "seed", "name", "out", "tracker", "resume.path"}
    if missing := [f"{key}={value}" for key, value in expected.items() if overrides.get(key) != value]:
        raise SystemExit(f"{folder} is of another study, without {' '.join(missing)}: move it away")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    path = folder / "grokking.json"
    grokked = json.loads(path.read_text()) if path.exists() else {}
    facts: dict[str, Any] = {
        "settings": " ".join(f"{key}={shorten(value)}" for key, value in sorted(overrides.items()) if key not in ignored),
        "seed": overrides["seed"], "status": summary["status"], "steps": summary.get("steps", 0),
        "asked": config["steps"], "seconds": round(summary.get("train_s", 0.0), 2),
        "acc": summary.get("best", {}).get("val/acc"), "bpb": summary.get("best", {}).get("val/bpb"),
    }  # fmt: skip
    threshold = config["callbacks"].get("grokking", {}).get("end")
    steps_column = "val_99" if threshold is not None and threshold >= 0.99 else "val_95"
    facts["judged"] = config["monitor"].removeprefix("val/") if threshold is None else steps_column
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


@contract
def shorten(value: str) -> str:
    """Return a sampled number with four digits, with which the final runs are done too."""
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def find_seconds(metrics: Path, step: int | None) -> float | None:
    """Return the seconds of the training when it logged a step."""
    records = map(json.loads, metrics.read_text().splitlines() if step is not None else ())
    return next((record["seconds"] for record in records if record["step"] == step), None)
