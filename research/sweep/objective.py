"""Read what a job has reached: the number or the numbers that the study is about, or why there is none."""

import errno
import math
import os
import re
import reprlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from optuna.trial import Trial

from research.cli import describe_error, redact
from research.contracts import contract
from research.files.locks import HeldError
from research.report.results import compute_mean
from research.run_dir import read_json
from research.sweep.settings import parse_bound
from research.tracking.optuna_storage import is_storage_unreachable

MAX_CAUSES = 10  # of one error
Reducer = Callable[[list[float]], float]
REDUCERS: dict[str, Reducer] = {"mean": compute_mean, "median": statistics.median, "min": min, "max": max}
# What a machine lacks for a while: by the system's numbers, whose words count too, as jobs may be other processes; and by the
# words of torch, numpy, SQLite and MLflow.
LACK_NUMBERS = {
    "room": ("ENOSPC", "EDQUOT", "EFBIG", "EROFS"),
    "memory": ("ENOMEM", "EMFILE", "ENFILE"),  # as a limit of the process may well be its own fault
    "a store": ("EIO", "ESTALE", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH"),
}
LACK_WORDS = {
    "room": r"disk is full|quota exceeded|PytorchStreamWriter failed writing",
    "memory": r"out of memory|MemoryError|[Cc]annot allocate memory|can't allocate memory|not enough memory|Unable to allocate"
    r"|CUBLAS_STATUS_ALLOC_FAILED|can't start new thread",
    "a store": r"is not a store that MLflow can open|[Cc]onnection refused|[Cc]ould not connect|Max retries exceeded"
    r"|database is locked|failure in name resolution|Name or service not known|[Rr]ead timed out",
}


@dataclass
class Outcome:
    """The result of one job, or of one configuration's repeats."""

    values: list[float] = field(default_factory=list)  # one an objective
    error: str = ""
    cause: BaseException | None = None
    folder: Path | None = None
    limits: dict[str, float] = field(default_factory=dict)  # metrics that constraints are about

    def to_record(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {"values": self.values, "folder": str(self.folder or ""), "limits": self.limits}

    @classmethod
    @contract
    def from_record(cls, record: Mapping[str, Any]) -> "Outcome":
        """Return the result that `to_record` gave."""
        return cls(record["values"], folder=Path(record["folder"]), limits=record["limits"])

    @property
    def is_held(self) -> bool:
        """True where another process writes to the folder of the job."""
        return any(isinstance(error, HeldError) for error in iter_causes(self.cause))

    @property
    def lack(self) -> str:
        """What the job failed for want of: room, memory or a store. Empty where it failed by itself, or not at all."""
        return find_lack(self.cause) if self.error else ""


@contract
def read_outcome(result: JobReturn, metrics: Sequence[str], count: int, limits: Sequence[str]) -> Outcome:
    """Return the objectives that a job returned, or those that its summary.json holds under the names `metrics`."""
    folder = Path(result.hydra_cfg.hydra.runtime.output_dir) if result.hydra_cfg else None
    try:
        returned = result.return_value
    except Exception as error:  # whatever the job raised fails this trial alone
        return Outcome(error=describe_error(error), cause=error, folder=folder)
    try:
        known = dict(returned) if isinstance(returned, Mapping) else load_metrics(folder) if metrics or limits else {}
        values = [get_number(known, name) for name in metrics] if metrics else parse_numbers(returned, count)
        if any(math.isnan(value) for value in values):
            raise ValueError("the objective is not a number (NaN)")
        bounded = {name: get_number(known, name, "constraints") for name in limits}
        for name in (name for name, value in bounded.items() if math.isnan(value)):
            raise ValueError(f"hydra.sweeper.constraints: {name} is not a number (NaN)")
        return Outcome(values, folder=folder, limits=bounded)
    except Exception as error:  # whatever it returned too
        text = redact(str(error)) if isinstance(error, ValueError) else describe_error(error)
        return Outcome(error=text, cause=error, folder=folder)


@contract
def find_lack(error: BaseException | None) -> str:
    """Return what of LACK_NUMBERS an error or one of its causes is about; empty for any other error."""
    causes = list(iter_causes(error))
    numbers_there = {cause.errno for cause in causes if isinstance(cause, OSError)}
    text = "\n".join(describe_error(cause) for cause in causes)
    for lack, names in LACK_NUMBERS.items():
        numbers = {getattr(errno, name) for name in names}
        if numbers_there & numbers or re.search("|".join((LACK_WORDS[lack], *map(re.escape, map(os.strerror, numbers)))), text):
            return lack
    return "a store" if any(map(is_storage_unreachable, causes)) else ""


def iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    for _ in range(MAX_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def parse_numbers(returned: Any, count: int) -> list[float]:
    """Return what a job returned as `count` numbers. Raise ValueError for anything else."""
    is_sequence = isinstance(returned, Sequence) and not isinstance(returned, str)
    try:
        values = [float(value) for value in (returned if is_sequence else [returned])]
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != count:
        expected = f"return {'a number' if count == 1 else f'{count} numbers'}, or name its metrics: hydra.sweeper.metrics"
        raise ValueError(f"the job returned {reprlib.repr(returned)}: {expected}")
    return values


def load_metrics(folder: Path | None) -> dict[str, Any]:
    """Return the numbers of a run by name; a metric of the best evaluation wins over the same one of the last."""
    summary = read_json(folder / "summary.json") if folder else {}
    return {**summary, **(summary.get("metrics") or {}), **(summary.get("best") or {})}


def get_number(known: Mapping[str, Any], name: str, setting: str = "metrics") -> float:
    """Return one of a run's numbers. Raise ValueError where it has none of that name."""
    value = known.get(name)
    if isinstance(value, int | float):
        with suppress(OverflowError):
            return float(value)
    names = ", ".join(sorted(key for key, number in known.items() if key != name and isinstance(number, int | float)))
    raise ValueError(f"hydra.sweeper.{setting}: the run has no number {name}; it has: {names or 'none'}")


@contract
def reduce_outcomes(outcomes: Sequence[Outcome], method: str) -> Outcome:
    """Return the outcome of several runs of one configuration."""
    value = REDUCERS[method]([outcome.values[0] for outcome in outcomes])
    limits = {name: compute_mean([outcome.limits[name] for outcome in outcomes]) for name in outcomes[0].limits}
    folder = outcomes[0].folder.parent if outcomes[0].folder else None
    if any(map(math.isnan, (value, *limits.values()))):
        return Outcome(error=f"the {method} of the repeats is not a number (NaN)", folder=folder)
    return Outcome([value], folder=folder, limits=limits)


@contract
def set_constraints(trial: Trial, outcome: Outcome, constraints: Mapping[str, str]) -> None:
    """Tell the study how far the trial is beyond each bound; 0 and less is within it."""
    for name, value in outcome.limits.items():
        sign, limit = parse_bound(constraints.get(name, "")) or ("<=", math.inf)
        trial.set_constraint(name, value - limit if sign in ("<=", "<") else limit - value)
