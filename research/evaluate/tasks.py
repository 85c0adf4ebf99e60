"""Tasks of lm-eval over trained runs: chosen by name or file, run through `TrainedLM`, with their differences paired."""

import argparse
import difflib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from research.cli import first_line
from research.contracts import contract
from research.evaluate.intervals import Estimate, Influences, estimate, estimate_difference, measure_ratio
from research.evaluate.refs import ModelRef, name_models
from research.evaluate.table import VERSION, Estimates, describe_estimate, format_rows
from research.files.hub import build_environment, find_home
from research.files.network import is_hub_reachable
from research.files.silence import silence_libraries
from research.metrics import nats_to_bits
from research.rules import check_extra, enforce
from research.run_dir import replace_nonfinite

OFFLINE_WAY = (
    "without a network give a task over local files, a yaml with dataset_path: json and dataset_kwargs: {data_files: FILE}, as "
    "in docs/evaluation.md; or load its data once where there is one"
)
HUB_ERRORS = ("ConnectionError", "ConnectError", "ConnectTimeout", "LocalEntryNotFoundError", "DatasetNotFoundError")
HUB_PHRASES = ("Couldn't find cache for", "on the Hugging Face Hub")
NO_METRICS = ("alias", "sample_len", "sample_count", "name")  # entries of a result that are no metrics
FEWSHOT_SEED = 1234  # lm-eval's own


class Score(NamedTuple):
    """A metric of a task, and the influence of each of its documents."""

    estimate: Estimate
    influences: Influences | None
    documents: tuple[int, ...]


Scores = dict[str, Score]  # by task/metric


@contract
def run_tasks(refs: Sequence[ModelRef], args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return what the runs reach on tasks, for programs and for people. Raise ValueError where a task cannot be run."""
    enforce(check_extra("--tasks", "lm_eval", "lm-eval"))
    if others := [ref.word for ref in refs if ref.kind != "run"]:
        raise ValueError(f"--tasks are for runs, and {others[0]} is none; lm-eval reads folders of transformers itself")
    prepare_hub()
    names = [name for text in args.tasks for name in ([text] if Path(text).exists() else text.split(","))]
    from research.evaluate.harness import TrainedLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = load_tasks(names, args.tasks_folder)
    runs, scores, rows = list[dict[str, Any]](), list[Scores](), list[tuple[str, str, Estimates, Estimates]]()
    label = "packed" if args.packed else "run"
    for name, ref in zip(name_models(refs), refs, strict=True):
        model = TrainedLM(str(ref.path), args.packed, args.batch_size or 16)
        scores.append(run_harness(model, loaded, args.samples))
        values = {key: score.estimate for key, score in scores[-1].items()}
        differences = find_differences(scores[0], scores[-1]) if len(scores) > 1 else {}
        rows.append((name, label, values, differences))
        runs.append(
            {"run": name, "path": str(ref.path), "form": label, "seed": ref.recorded.get("seed")}
            | {"metrics": {key: describe_estimate(value) for key, value in values.items()}}
            | {"differences": {key: describe_estimate(value) | {"paired": True} for key, value in differences.items()}}
        )
    content = {"version": VERSION, "first": runs[0]["run"], "tasks": names, "runs": [replace_nonfinite(run) for run in runs]}
    return content, format_rows(rows)


def prepare_hub() -> None:
    """Say to the hub's libraries, before they are imported, where their files are and whether there is a network.

    They are where those of data=hub are; without a network in the home folder, if there is nothing.
    """
    is_reachable = is_hub_reachable()
    if is_reachable or find_home().is_dir():
        os.environ |= build_environment()
    if not is_reachable:  # else they would try again and again
        os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}


def load_tasks(names: Sequence[str], folder: Path | None) -> Any:
    """Return the tasks with their data. Raise ValueError for one that is not known or whose data are not on this machine."""
    from lm_eval.tasks import TaskManager

    own = [str(folder)] if folder else []
    by_name = [name for name in names if not Path(name).exists()]
    for name in names:
        if name not in by_name and Path(name).suffix not in (".yaml", ".yml"):
            raise ValueError(f"--tasks {name}: a task is a yaml file, as in docs/evaluation.md")
    manager = TaskManager(include_path=own, include_defaults=False)
    if any(name not in manager.all_tasks for name in by_name):
        manager = TaskManager(include_path=own)  # with those of lm-eval itself: some seconds
    for name in by_name:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"did you mean {' or '.join(near)} ?" if near else "give a name of lm-eval's tasks, or a yaml file"
            raise ValueError(f"--tasks {name}: there is no such task or file; {hint}")
    try:
        loaded: Any = manager.load(list(names))
    except Exception as error:  # what a task's yaml, its functions and its data raise has no common class
        hint = f"; {OFFLINE_WAY}" if needs_hub(error) else ""
        reasons = (error, error.__cause__)  # the second is of data that cannot be read
        reason = "; ".join(f"{type(item).__name__}: {first_line(item)}" for item in reasons if item)
        raise ValueError(f"--tasks {','.join(names)}: {reason}{hint}") from error
    for task in loaded["tasks"].values():  # as lm-eval's own command line does
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def run_harness(model: Any, loaded: Any, samples: int | None) -> Scores:
    """Return each metric of the tasks, with the influence of each document where it is a mean over them."""
    from lm_eval.evaluator import evaluate

    with silence_libraries():  # numpy's warnings of choices without a letter, by whose length some metrics divide
        result: Any = evaluate(lm=model, task_dict=loaded, limit=samples, bootstrap_iters=0, log_samples=True)
    scores = {}
    for task, entries in result["results"].items():
        for key, value in entries.items():
            metric, _, chosen = key.partition(",")
            if metric in NO_METRICS or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            own = [entry for entry in result.get("samples", {}).get(task, []) if entry.get("filter", "none") == chosen]
            influences = measure_documents(float(value), [entry.get(metric) for entry in own])
            documents = tuple(int(entry["doc_id"]) for entry in own)
            name = f"{task}/{metric}" + (f",{chosen}" if chosen not in ("", "none") else "")
            scores[name] = Score(estimate(float(value), influences), influences, documents)
    return scores


def measure_documents(value: float, entries: Sequence[Any]) -> Influences | None:
    """Return the influence of each document on a metric: a mean, or of log-probabilities and their weights bits or perplexity.

    None where the metric is another function of them.
    """
    if not entries or not math.isfinite(value):
        return None
    if all(isinstance(entry, int | float) for entry in entries):
        numbers = torch.tensor(entries, dtype=torch.float64)
        return numbers - numbers.mean() if math.isclose(float(numbers.mean()), value, rel_tol=1e-9, abs_tol=1e-12) else None
    if not all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in entries):
        return None
    nats, weights = torch.tensor(entries, dtype=torch.float64).unbind(1)
    influences, mean = measure_ratio(-nats, weights, torch.arange(len(nats))), -float(nats.sum() / weights.sum())
    for scale, known in ((nats_to_bits(1.0), nats_to_bits(mean)), (value, math.exp(min(mean, 700.0)))):
        if math.isclose(known, value, rel_tol=1e-9):
            return scale * influences
    return None


@contract
def find_differences(first: Scores, other: Scores) -> dict[str, Estimate]:
    """Return the differences of metrics to those of the first run, paired by document."""
    differences = {}
    for name, score in other.items():
        before = first.get(name)
        if before and before.documents == score.documents and before.influences is not None and score.influences is not None:
            own, first_own = (score.estimate.value, score.influences), (before.estimate.value, before.influences)
            differences[name] = estimate_difference(own, first_own)
    return differences


def needs_hub(error: BaseException) -> bool:
    """Return whether an error comes of data that are not on this machine: by its class, or what `datasets` says of it."""
    classes = {kind.__name__ for kind in type(error).__mro__}
    return not classes.isdisjoint(HUB_ERRORS) or any(phrase in str(error) for phrase in HUB_PHRASES)
