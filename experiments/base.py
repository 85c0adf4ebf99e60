"""What every study has: one command line, sweeps of train.py, results.csv, tables in its README, and a figure.

A study is a folder with a study.py. From the repository root:

    python -m experiments.NAME.study              the quick size, for two cores: runs, results.csv, tables and figure
    python -m experiments.NAME.study --full       the full size (of the paper, where there is one)
    python -m experiments.NAME.study --collect    results.csv from the runs that are there; then as --figure
    python -m experiments.NAME.study --figure     tables and figure from the stored results.csv

Further arguments are overrides for every run, as tracker=mlflow. The same command resumes an interrupted study.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from research.contracts import contract

ROOT = Path(__file__).resolve().parents[1]
NO_PLOTS = "hydra.sweeper.plots=false"  # a setting of Optuna sweeps; populations have none


class Section(NamedTuple):
    """A table in Markdown, and the mark in the README after which it stands: <!-- mark -->."""

    mark: str
    table: str
    note: str = ""  # printed before the table


class BaseStudy(ABC):
    """The command line of a study and what it calls."""

    folder: Path
    sizes: tuple[str, ...] = ("quick", "full")

    @property
    def name(self) -> str:
        return self.folder.name

    @abstractmethod
    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        """Do all runs of a size below `root`; `more` are overrides for every run."""

    @abstractmethod
    def collect(self, size: str, root: Path) -> None:
        """Write the runs of a size into results.csv. Raise SystemExit where some are missing."""

    @abstractmethod
    def make_sections(self) -> list[Section]:
        """Return the tables of the stored results."""

    @abstractmethod
    def make_figure(self) -> Figure:
        """Return the figure of the stored results."""

    def get_fixed_keys(self, size: str) -> Collection[str]:
        """Return the keys of overrides that the study sets itself, so that nobody else may."""
        return ("seed",)

    def main(self) -> None:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--full", action="store_true", help="the full size; without it the quick one")
        parser.add_argument("--collect", action="store_true", help="results.csv from the runs that are there, then as --figure")
        parser.add_argument("--figure", action="store_true", help="tables and figure from the stored results.csv")
        parser.add_argument("--at-once", type=int, default=2, help="runs side by side, with one thread each")
        args, more = parser.parse_known_args()
        if args.at_once < 1:
            parser.error(f"--at-once={args.at_once}: give 1 or more")
        size = "full" if args.full else "quick"
        if size not in self.sizes:
            parser.error(f"--full: {self.name} has one size only: leave --full out")
        for override in more:
            if args.figure or args.collect:
                parser.error(f"{override}: --figure and --collect do no runs: leave it out")
            if get_key(override) in self.get_fixed_keys(size):
                parser.error(f"{override}: the study sets {get_key(override)} itself: leave it out")
        root = ROOT / "outputs" / "studies" / size
        if not (args.figure or args.collect):
            self.run(size, root, args.at_once, more)
        if not args.figure:
            self.collect(size, root)
        self.publish()

    @contract
    def sweep(self, name: str, overrides: Sequence[str], root: Path) -> None:
        """Run one sweep of train.py, or resume it. Raise SystemExit with its output if it fails.

        A grid whose trials all ran is complete, even where some of them diverged.
        """
        own = [f"name={self.name}", f"out='{root}'", f"hydra.sweeper.study_name={name}", "tracker=jsonl"]
        command = [sys.executable, str(ROOT / "train.py"), "-m", *own, *overrides]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        statuses = [json.loads(path.read_text())["status"] for path in (root / self.name / name).glob("*/summary.json")]
        diverged = f"{statuses.count('FAILED')} of {len(statuses)} trials failed"
        if done.returncode and diverged not in done.stderr:
            raise SystemExit(f"{name}: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        print(f"{self.name}: {name}", flush=True)

    def publish(self) -> None:
        """Print the tables, write them into the README between their marks, and draw the figure."""
        if not (self.folder / "results.csv").exists():
            raise SystemExit(f"{self.folder / 'results.csv'} does not exist: python -m experiments.{self.name}.study makes it")
        readme = self.folder / "README.md"
        text = readme.read_text()
        for mark, table, note in self.make_sections():
            print("\n\n".join(filter(None, (f"{self.name}, {mark}", note, table))) + "\n")
            block = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
            text, count = re.subn(block, lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.DOTALL)  # type: ignore[misc]
            if not count:
                raise SystemExit(f"{readme} has no position for this table: add <!-- {mark} --> and <!-- end -->")
        readme.write_text(text)
        self.make_figure().savefig(self.folder / "figure.png", dpi=130)


@contract
def get_key(override: str) -> str:
    """Return the key that an override sets; trainer.steps=5 and ++steps=5 both set steps."""
    return override.lstrip("+~").split("=", 1)[0].removeprefix("trainer.")


@contract
def read_overrides(run_folder: Path) -> dict[str, str]:
    """Return the overrides of a run by key; of a key that occurs twice the last one counts."""
    lines = (run_folder / "overrides.txt").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@contract
def list_runs(sweep_folder: Path) -> list[Path]:
    """Return the folders of a sweep's runs that have ended, in the order of their numbers."""
    folders = [path.parent for path in sweep_folder.glob("*/summary.json")]
    return sorted(folders, key=lambda folder: int(folder.name))


@contract
def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file; none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contract
def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a new file and rename it, so that an interruption leaves the old one."""
    with (draft := path.with_name(f"{path.name}.new")).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)


@contract
def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
