"""What a sweep shows: a line as each trial begins and ends; on a terminal, of several workers, a live line for each at work."""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.text import Text

from research.sweep.space import Space

LIVE_METRICS = ("step", "train/loss", "val/loss", "val/acc", "val/bpb")
TAIL_BYTES = 4096  # bytes of metrics.jsonl that hold its last line


class ProgressDisplay:
    """The sweep as people see it."""

    def __init__(
        self, study: Study, space: Space, folder: Path, total: int, workers: int, terminal: Console | None = None
    ) -> None:
        self.study, self.space, self.folder, self.total, self.workers = study, space, folder, total, workers
        self.terminal = terminal or Console(highlight=False)
        self.live: Live | None = None
        self.reported = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}

    def print_row(self, name: str, value: str) -> None:
        """One fact a line, never wrapped."""
        self.terminal.print(Text.assemble((f"{name:<16} ", "cyan"), value), soft_wrap=True)

    def print_trial_start(self, job_name: str, params: dict[str, Any]) -> None:
        """A trial and what is special about it."""
        texts = self.space.format_params(params)
        texts |= {key: str(value) for key, value in params.items() if key not in texts}
        self.print_row("trial", f"#{job_name} " + " ".join(f"{key}={text}" for key, text in texts.items()))

    def update(self) -> None:
        """Tell of trials that have ended since, in whichever process."""
        trials = self.study.get_trials(deepcopy=False)
        for each in trials:
            if each.state.is_finished() and each.number not in self.reported:
                self.reported.add(each.number)
                self.print_trial_end(each, trials)
        if self.workers > 1 and self.terminal.is_terminal:
            if self.live is None:
                self.live = Live("", console=self.terminal, auto_refresh=False, transient=True)
                self.live.start()
            lines = [self.render_running(each) for each in trials if each.state == TrialState.RUNNING]
            self.live.update(Text("\n").join([*lines, Text(self.describe_standing(trials))]), refresh=True)

    def print_sweep_end(self, report: Path) -> None:
        """What came out, and where it is told."""
        trials = self.study.get_trials(deepcopy=False)
        if len(self.study.directions) == 1 and self.describe_best():
            best = self.study.best_trial
            texts = self.space.format_params(best.params)
            self.print_row(
                "best", f"#{best.number} {best.value:.4g}  " + " ".join(f"{key}={text}" for key, text in texts.items())
            )
        self.print_row("report", f"{report}, {self.describe_standing(trials)}")

    def close(self) -> None:
        if self.live:
            self.live.stop()

    def print_trial_end(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        """How it went, the best so far, the time left."""
        if "aside" in trial.user_attrs:
            return
        complete = trial.state == TrialState.COMPLETE
        value = ", ".join(f"{value:.4g}" for value in trial.values) if complete else trial.state.name.lower()
        self.print_row("trial", f"#{trial.number} {value}, {self.describe_standing(trials)}")

    def describe_standing(self, trials: list[FrozenTrial]) -> str:
        """The best so far, and the time left."""
        done = [t for t in trials if t.state.is_finished() and "aside" not in t.user_attrs]
        took = [t.duration.total_seconds() for t in done if t.duration and "reused" not in t.user_attrs]
        left = max(0, self.total - len(done)) * (statistics.mean(took) if took else 0.0) / self.workers
        return ", ".join(
            [
                *self.describe_best(),
                f"{len(done)} of {self.total} done",
                *([f"about {format_duration(left)} left"] if left else []),
            ]
        )

    def describe_best(self) -> list[str]:
        if len(self.study.directions) > 1:
            return [f"{len(self.study.best_trials)} on the Pareto front"]
        try:
            return [f"best {self.study.best_value:.4g} (#{self.study.best_trial.number})"]
        except ValueError:  # none is complete, or none keeps to the constraints
            return []

    def render_running(self, trial: FrozenTrial) -> Text:
        """Where a trial is that another process runs."""
        began = trial.datetime_start
        seconds = time.time() - began.timestamp() if began else 0.0
        found = read_last_metrics(self.folder / str(trial.number) / "metrics.jsonl")
        told = "  ".join(f"{key} {found[key]:.4g}" for key in LIVE_METRICS if key in found)
        return Text(f"  #{trial.number} {format_duration(seconds)}  {told or 'begins'}", style="dim")


def read_last_metrics(path: Path) -> dict[str, float]:
    """The numbers of the last whole line, with those of lines before that it lacks."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        found |= {key: value for key, value in told.items() if isinstance(value, int | float)} if isinstance(told, dict) else {}
    return found


def format_duration(seconds: float) -> str:
    """A time for people."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"
