"""Studies of arms that are not tuned: each runs with a few seeds, and its run's own monitor judges it (see base.py)."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.base import NO_PLOTS, BaseStudy, Section, get_key, list_runs, read_csv, write_csv
from research.contracts import contract
from research.metrics import confidence_interval
from research.run_dir import read_json

COLUMNS = ("arm", "seed", "status", "metric", "value", "baseline", "predictor", "steps", "seconds", "packed_bytes")
BITS = 16  # of a weight that is not ternary, in a packed file
Row = dict[str, str]


@contract
class SeedStudy(BaseStudy):
    """Arms by name with their overrides, and how many seeds from 0 on each runs with."""

    sizes = ("quick",)
    arms: Mapping[str, tuple[str, ...]]
    seeds = 3

    def get_fixed_keys(self, size: str) -> Collection[str]:
        return {"seed"} | {get_key(word) for words in self.arms.values() for word in words}

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        seeds = ",".join(map(str, range(self.seeds)))
        with ThreadPoolExecutor(at_once) as pool:
            futures = [
                pool.submit(self.sweep, name, [NO_PLOTS, *words, f"seed={seeds}", *more], root)
                for name, words in self.arms.items()
            ]
            for future in futures:
                future.result()

    def collect(self, size: str, root: Path) -> None:
        rows = []
        for name in self.arms:
            runs = list_runs(root / self.name / name)
            if len(runs) < self.seeds:
                raise SystemExit(f"{root / self.name / name} has {len(runs)} of {self.seeds} runs: without --collect they run")
            rows += [read_row(name, str(seed), read_json(folder / "summary.json")) for seed, folder in enumerate(runs)]
        write_csv(self.folder / "results.csv", COLUMNS, rows)

    def read_rows(self) -> dict[str, list[Row]]:
        """Return the rows of each arm."""
        rows = read_csv(self.folder / "results.csv")
        return {name: [row for row in rows if row["arm"] == name] for name in self.arms}

    @abstractmethod
    def make_table(self, rows: Mapping[str, list[Row]]) -> str:
        """Return the table of all arms."""

    @abstractmethod
    def draw(self, rows: Mapping[str, list[Row]]) -> Figure:
        """Return the figure of all arms."""

    def make_sections(self) -> list[Section]:
        return [Section("quick", self.make_table(self.read_rows()))]

    def make_figure(self) -> Figure:
        return self.draw(self.read_rows())


@contract
def read_row(arm: str, seed: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Return what results.csv tells of a run: its best value of the monitor, beside the first trivial predictor of that."""
    metric, full = summary["monitor"], summary["params"] - summary["quantized_params"]
    trivial = {name: value for name, value in summary["baseline"].items() if name.split()[0] == metric}
    predictor, baseline = next(iter(trivial.items()), ("", ""))
    packed = summary["quantized_params"] // 4 + full * BITS // 8
    facts = {"metric": metric, "value": summary["value"], "baseline": baseline, "predictor": predictor.partition(" ")[2]}
    numbers = {"steps": summary["steps"], "seconds": round(summary["train_s"], 1), "packed_bytes": packed}
    return {"arm": arm, "seed": seed, "status": summary["status"]} | facts | numbers


@contract
def get_values(rows: Sequence[Row], column: str = "value") -> list[float]:
    """Return a column as numbers."""
    return [float(row[column]) for row in rows]


@contract
def format_mean(rows: Sequence[Row], digits: int = 3) -> str:
    """Return the mean over seeds with half its 95 % interval."""
    mean, half = confidence_interval(get_values(rows))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"
