"""What a sweep has found, as files."""

from pathlib import Path
from typing import Any


def report(folder: Path, study: Any, plots: bool = True) -> None:
    """trials.csv, results.md, best.yaml, optimization_results.yaml and pictures."""
