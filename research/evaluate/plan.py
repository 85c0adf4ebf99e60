"""By what each model is judged: decided from folders and words alone, before anything heavy is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.evaluate.subjects import Subject
from research.preflight.evaluation import Task, compose_task
from research.run_dir import expand_path


def plan_tasks(subjects: Sequence[Subject], words: Sequence[str], split: str | None, folders: Sequence[Path]) -> list[Task]:
    """Return the task of each model: a run's own, changed by the words. Other models take that of the first run.

    Raise ValueError for wrong words, and for a model that has no data.
    """
    runs = [subject for subject in subjects if subject.kind == "run"]
    tasks = []
    for subject in subjects:
        of = [run for run in runs if run.folder.name == subject.report.get("run")]
        if len({run.folder for run in of}) > 1:
            fix = "judge it beside its own run alone"
            raise ValueError(f"RUN={subject.word}: {len(of)} of the runs are called {of[0].folder.name}, its name; {fix}")
        source = subject if subject.kind == "run" else next(iter([*of, *runs]), None)
        if source is None and not any(word.lstrip("+").startswith("data=") for word in words):
            fix = "name the run that it is of before it, or give data=text data.path=FILE"
            raise ValueError(f"RUN={subject.word}: it does not say what data it is of; {fix}")
        if source and not source.recorded:
            raise ValueError(f"RUN={source.word}: {source.folder} has no config.yaml that can be read; give another run")
        has_own = source is None or (subject.has_tokenizer and not source.has_same_tokenizer(subject))
        recorded, tokens = (source.recorded if source else {}), subject if has_own or source is None else source
        task = compose_task(words, recorded, tokens.tokenizer, (source or subject).seq_len, split, folders)
        if task.is_own and "tokenizer" in task.data and (has_own or is_gone(task.data["tokenizer"])):
            task = task._replace(data=task.data | {"tokenizer": tokens.tokenizer})
        tasks.append(task)
    return tasks


def is_gone(tokenizer: Any) -> bool:
    """Return whether the folder of a recorded tokenizer is no longer there: the run keeps a copy."""
    path = tokenizer.get("path") if isinstance(tokenizer, dict) else None
    return isinstance(path, str) and not expand_path(path).exists()
