"""What a command line asks for, computed: a result for programs, and a text for people."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from research.evaluate.compare import Options, compare
from research.evaluate.subjects import Subject
from research.evaluate.table import format_table, to_json
from research.preflight.evaluation import Task

Report = tuple[dict[str, Any], str]


def judge_words(
    subjects: Sequence[Subject], tasks: Sequence[Task], args: argparse.Namespace, poll: Callable[[], None]
) -> Report:
    """Judge models on data."""
    names = ("split", "samples", "batch_size", "device", "precision", "packed")
    results = compare(subjects, tasks, Options(**{name: getattr(args, name) for name in names}), poll)
    return to_json(results), format_table(results)


def judge_tasks(subjects: Sequence[Subject], args: argparse.Namespace) -> Report:
    """Judge models on tasks of lm-eval."""
    from research.evaluate.tasks import run_tasks  # heavy

    return run_tasks(subjects, args)
