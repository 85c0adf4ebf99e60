"""What a command line asks for, computed: a result for programs, and a text for people."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from research.evaluate.compare import Options, compare
from research.evaluate.refs import ModelRef
from research.evaluate.table import format_table, to_json
from research.preflight.evaluation import EvaluationTask

Report = tuple[dict[str, Any], str]


def evaluate_on_data(
    refs: Sequence[ModelRef], tasks: Sequence[EvaluationTask], args: argparse.Namespace, poll: Callable[[], None]
) -> Report:
    """Judge models on data."""
    names = ("split", "samples", "batch_size", "device", "precision", "packed")
    results = compare(refs, tasks, Options(**{name: getattr(args, name) for name in names}), poll)
    return to_json(results), format_table(results)


def evaluate_on_tasks(refs: Sequence[ModelRef], args: argparse.Namespace) -> Report:
    """Judge models on tasks of lm-eval."""
    from research.evaluate.tasks import run_tasks  # heavy

    return run_tasks(refs, args)
