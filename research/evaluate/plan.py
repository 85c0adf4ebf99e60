"""By what each model is judged: decided from folders and overrides alone, before anything heavy is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.evaluate.refs import TOKENIZER_FILE, ModelRef
from research.preflight.evaluation import EvaluationTask, compose_task
from research.run_dir import expand_path, read_json


def plan_tasks(
    refs: Sequence[ModelRef], overrides: Sequence[str], split: str | None, folders: Sequence[Path]
) -> list[EvaluationTask]:
    """Return the task of each model: a run's own, changed by the overrides. Other models take that of the first run.

    Raise ValueError for wrong overrides, and for a model that has no data.
    """
    runs, tasks = [ref for ref in refs if ref.kind == "run"], list[EvaluationTask]()
    for ref in refs:
        source = ref if ref.kind == "run" else choose_source(ref, runs, overrides)
        if source and not source.recorded:
            raise ValueError(f"RUN={source.word}: {source.folder} has no config.yaml that can be read; give another run")
        has_own = source is None or (ref.has_tokenizer and not source.has_same_tokenizer(ref))
        recorded, tokens = (source.recorded if source else {}), ref if has_own or source is None else source
        tokenizer = keep_end(tokens, recorded)
        try:
            task = compose_task(overrides, recorded, tokenizer, (source or ref).seq_len, split, folders)
        except ValueError as error:
            if source is None or not str(error).startswith("data.") or overrides:
                raise
            reason = "; ".join(line.strip() for line in str(error).splitlines())
            raise ValueError(
                f"RUN={source.word}: its own data: {reason}\ngive other data, as data=text data.path=FILE"
            ) from error
        if task.is_own and "tokenizer" in task.data and (has_own or is_gone(task.data["tokenizer"])):
            task = task._replace(data=task.data | {"tokenizer": tokenizer})
        tasks.append(task)
    return tasks


def choose_source(ref: ModelRef, runs: Sequence[ModelRef], overrides: Sequence[str]) -> ModelRef | None:
    """Return the run whose data a model that is no run is judged on: its own, else the first; None where data are chosen.

    Raise ValueError where none is, and where several may be its own.
    """
    runs_of_export = [run for run in runs if run.folder.name == ref.report.get("run")]
    if len({run.folder for run in runs_of_export}) > 1:
        message = f"{len(runs_of_export)} of the runs are called {runs_of_export[0].folder.name}, its name"
        raise ValueError(f"RUN={ref.word}: {message}; judge it beside its own run alone")
    if not runs and not any(override.lstrip("+").startswith("data=") for override in overrides):
        fix = "name the run that it is of before it, or give data=text data.path=FILE"
        raise ValueError(f"RUN={ref.word}: it does not say what data it is of; {fix}")
    return next(iter([*runs_of_export, *runs]), None)


def keep_end(ref: ModelRef, recorded: dict[str, Any]) -> dict[str, Any] | None:
    """Return the node of a model's tokenizer, with the end that a run chose where the tokenizer has that token."""
    node, chosen = ref.tokenizer, (recorded.get("data") or {}).get("tokenizer")
    end = chosen.get("end") if isinstance(chosen, dict) else None
    if not end or not ref.has_tokenizer:
        return node
    added = read_json(ref.tokenizer_folder / TOKENIZER_FILE).get("added_tokens") or ()
    return {**(node or {}), "end": end} if end in [token["content"] for token in added] else node


def is_gone(tokenizer: Any) -> bool:
    """Return whether the folder of a recorded tokenizer is no longer there: the run keeps a copy."""
    path = tokenizer.get("path") if isinstance(tokenizer, dict) else None
    return isinstance(path, str) and not expand_path(path).exists()
