"""What a sweep has found: files in its folder and on its run in MLflow, at its end and after Ctrl-C.

python -m research.report SWEEP makes them again from MLflow. SWEEP is a sweep's folder, or the id of its run in MLflow.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research import store
from research.folder import read_json, replace_text
from research.pictures import configurations, draw, importances, interval, short
from research.preset import ELSEWHERE, as_yaml, preset, solution
from research.sweeps import Sweep, broken, from_store, from_study, to_csv

if TYPE_CHECKING:
    from optuna.study import Study

NOTE, STUDY, JOURNAL = "mlflow_run_id", "study.json", "study.journal"  # in a sweep's folder
SHOWN = 10  # trials and configurations in a table
RIGHT = "give a sweep's folder, as outputs/modular/sweep_..., or the id of its parent run in MLflow"


def report(folder: Path, study: "Study", plots: bool = True) -> None:
    """trials.csv, results.md, best.yaml, optimization_results.yaml and pictures; all of it on the sweep's run in MLflow too."""
    sweep = from_study(folder, study)
    files = write(sweep, folder, plots)
    if not (folder / NOTE).exists():
        return
    from research.tracking import opened, uri_of

    uri = uri_of(folder)
    try:
        with store.brief():
            publish(sweep, opened(uri, made=True), (folder / NOTE).read_text(), files)
    except Exception as error:  # whatever a store raises: the sweep is not to fail for it
        where = f"MLflow at {store.shown(uri)} did not take the report ({said(error)}); it is in {folder}"
        print(f"warning: {where}", file=sys.stderr)


def said(error: Exception) -> str:
    """In one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def write(sweep: Sweep, folder: Path, plots: bool) -> list[tuple[Path, str | None]]:
    """The files, each with its place among the artifacts of the sweep's run."""
    reasons = draw(sweep, folder / "plots") if plots else {}
    texts = {"trials.csv": to_csv(sweep), "results.md": results(sweep, reasons)}
    if sweep.best:
        texts |= {"best.yaml": preset(sweep, sweep.best[0]), "optimization_results.yaml": as_yaml(solution(sweep))}
    for name, text in texts.items():
        replace_text(folder / name, text)
    pictures = [folder / "plots" / f"{name}.png" for name, reason in reasons.items() if not reason]
    return [(folder / name, None) for name in (*texts, STUDY) if (folder / name).exists()] + [(p, "plots") for p in pictures]


# results.md


def results(sweep: Sweep, reasons: Mapping[str, str]) -> str:
    """The report for people."""
    aims = ", ".join(f"{way} {name}" for way, name in zip(sweep.ways, sweep.objectives, strict=True))
    parts = [f"# {sweep.name}: {aims}", ending(sweep), *best_trials(sweep), "## What was run", asked_for(sweep)]
    if failed := [
        f"- trial {row.number}: {row.error.splitlines()[0]}" for row in sweep.rows if row.state == "FAIL" and row.error
    ]:
        parts += ["## Failed", "\n".join(failed[:SHOWN] + [f"- and {len(failed) - SHOWN} more"] * (len(failed) > SHOWN))]
    for index, name in enumerate(sweep.objectives):
        if shares := importances(sweep, index):
            rows = [(key, f"{share:.2f}") for key, share in shares.items()]
            parts += [
                f"## What {name} depends on",
                "Shares of its variation, by PED-ANOVA; rough for few trials, or a parameter that few of them have.",
                table(("parameter", "share"), rows),
            ]
    if reasons:
        parts += ["## Pictures", *(f"![{name}](plots/{name}.png)" for name, reason in reasons.items() if not reason)]
        parts += ["\n".join(f"- no {name}: {reason}" for name, reason in reasons.items() if reason)]
    return "\n\n".join(part for part in parts if part) + "\n"


def ending(sweep: Sweep) -> str:
    """How many trials ended how, what they took, and why there are no more."""
    states = Counter(row.state for row in sweep.rows)
    told = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
    seconds = sum(row.seconds or 0.0 for row in sweep.rows)
    took = f"{sum(row.steps for row in sweep.rows):,} steps" + (f" in {clock(seconds)} of trials" if seconds else "")
    ended, total = sum(states[state] for state in ("COMPLETE", "PRUNED", "FAIL")), int(sweep.asked.get("total", 0))
    whole = f"All {total} trials have ended." if ended >= total else ""
    why = f"It ended early: {sweep.over}." if sweep.over else whole
    rest = f"{ended} of {total} trials have ended: the same command goes on with the rest."
    return f"{len(sweep.rows)} trial{'s' * (len(sweep.rows) != 1)}: {told or 'none'}; {took}. {why or rest}"


def best_trials(sweep: Sweep) -> Iterable[str]:
    """The best trials, and where a key was repeated the means over it."""
    if not sweep.best:
        yield "No trial is complete." if not sweep.complete else "No complete trial keeps to the constraints."
    else:
        yield "## The best trials" if len(sweep.ways) == 1 else "## The Pareto front"
        rows = sweep.ranked()[:SHOWN] if len(sweep.ways) == 1 else sweep.best[:SHOWN]
        cells = [
            (row.number, *map(short, row.values), *(short(row.params.get(key, "")) for key in sweep.space), row.steps,
             clock(row.seconds or 0.0), row.folder, row.note) for row in rows
        ]  # fmt: skip
        yield table(("trial", *sweep.objectives, *sweep.space, "steps", "time", "folder", ""), cells)
        how = "copy it to `conf/experiment/NAME.yaml`, then `python train.py experiment=NAME`."
        yield f"`best.yaml` repeats trial {sweep.best[0].number}: {how}"
    over = str((sweep.asked.get("repeats") or {}).get("over", "seed"))
    sets = [(rows[0], [v for row in rows if row.values for v in row.repeats or row.values]) for rows in configurations(sweep)]
    means = [(row, *interval(values), len(values)) for row, values in sets if len(values) > 1]
    if means and len(sweep.ways) == 1:
        means.sort(key=lambda each: -each[1] if sweep.ways[0] == "maximize" else each[1])
        keys = [key for key in sweep.space if key != over]
        lines = [
            (*(short(row.params.get(key, "")) for key in keys), short(mean), f"± {half:.2g}", count)
            for row, mean, half, count in means[:SHOWN]
        ]
        yield f"## Means over {over}, with their 95 % t intervals"
        yield table((*keys, sweep.objectives[0], "", "runs"), lines)


def asked_for(sweep: Sweep) -> str:
    """What was swept, and what was held."""
    fixed = [line for line in sweep.asked.get("fixed", []) if line.partition("=")[0] not in ELSEWHERE]
    told = table(("parameter", "values"), [(key, text or "suggested by a function") for key, text in sweep.space.items()])
    return told + (f"\n\nFixed: `{' '.join(fixed)}`" if fixed else "")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def clock(seconds: float) -> str:
    """A time for people."""
    whole = round(seconds)
    return f"{seconds:.1f} s" if whole < 10 else f"{whole} s" if whole < 120 else f"{whole / 60:.0f} min"


# On the sweep's run in MLflow.


def publish(sweep: Sweep, client: Any, parent: str, files: Sequence[tuple[Path, str | None]]) -> None:
    """The report on the sweep's own run. Raises whatever the store does."""
    states = Counter(row.state for row in sweep.rows)
    ends = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    metrics = {f"trials/{name}": {0: float(states[state])} for name, state in ends.items()}
    kept = sorted((row for row in sweep.complete if not broken(row)), key=lambda row: row.number)
    for index, name in enumerate(sweep.objectives if kept else ()):
        better = max if sweep.ways[index] == "maximize" else min
        best = accumulate((row.values[index] for row in kept), better)
        so_far = {row.number: value for row, value in zip(kept, best, strict=True)}
        metrics["best_value" if len(sweep.ways) == 1 else f"best_value/{name}"] = so_far
        metrics[f"best/{name}"] = {0: so_far[kept[-1].number]}
    tags = {f"best.{key}": text for row in sweep.best[:1] for key, text in row.params.items()}
    tags |= {"best_trial": str(sweep.best[0].number)} if sweep.best else {}
    lost = states["FAIL"] and not states["COMPLETE"]
    status = "KILLED" if states["RUNNING"] else "FAILED" if lost else "FINISHED"
    store.conclude(client, parent, files, metrics, tags, status)


# Again, from MLflow.


def again(given: str, plots: bool) -> Path:
    """Make the report of a sweep once more. Raises ValueError where there is none."""
    folder = Path(given)
    if (folder / JOURNAL).exists() and not (folder / NOTE).exists():
        report(folder.absolute(), journal(folder.absolute()), plots)
        return folder
    if (folder / NOTE).exists() and not (folder / "config.yaml").exists():
        parent = (folder / NOTE).read_text()
    elif re.fullmatch(r"[0-9a-f]{32}", given):
        folder, parent = Path(f"sweep_{given}"), given
    else:
        raise ValueError(f"SWEEP={given} is no sweep: {RIGHT}")
    from research.tracking import opened, uri_of

    uri = uri_of(folder)
    try:
        with store.brief():
            return from_mlflow(opened(uri, made=True), parent, folder, plots)
    except Exception as error:  # whatever a store raises
        told = f"MLflow at {store.shown(uri)} does not tell of this sweep ({said(error)})"
        if not (folder / JOURNAL).exists():
            raise ValueError(f"SWEEP={given}: {told}; {RIGHT}") from error
        print(f"warning: {told}; its study does", file=sys.stderr)
        write(from_study(folder.absolute(), journal(folder)), folder.absolute(), plots)
        return folder


def from_mlflow(client: Any, parent: str, folder: Path, plots: bool) -> Path:
    """The report in the sweep's folder where that is there, or else in a new one that has what the report needs."""
    tags = client.get_run(parent).data.tags
    if not store.is_sweep(tags):
        raise ValueError(f"it is a run, of the sweep {tags.get('mlflow.parentRunId', 'none')}")
    sweep, home = from_store(client, parent), Path(tags["folder"])
    folder = folder if folder.is_dir() or not home.is_dir() else home
    folder.mkdir(exist_ok=True)
    for name, text in ((NOTE, parent), (STUDY, json.dumps(sweep.asked, indent=2) + "\n")):
        if not (folder / name).exists():
            replace_text(folder / name, text)
    publish(sweep, client, parent, write(sweep, folder, plots))
    return folder


def journal(folder: Path) -> "Study":
    """The study of a sweep that keeps it in its folder."""
    import optuna

    from research.trial import opened

    storage = opened(f"journal://{(folder / JOURNAL).absolute()}")
    name = read_json(folder / STUDY).get("study") or optuna.get_all_study_names(storage)[0]
    return optuna.load_study(study_name=name, storage=storage)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.report", description="Make the report of a sweep again.")
    parser.add_argument("sweep", metavar="SWEEP", help="the sweep's folder, or the id of its parent run in MLflow")
    parser.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help="draw the pictures")
    asked = parser.parse_args()
    try:
        print(f"{'report':<16} {again(asked.sweep, asked.plots) / 'results.md'}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
