"""Print how a sweep goes: a line as each trial begins and ends; for several workers, a live line for each trial under way."""

import os
import shlex
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.text import Text

from research.cli import format_duration
from research.contracts import contract
from research.options.trigger import shorten_name
from research.report.results import Sweep
from research.run_dir import parse_json
from research.sweep.space import Space
from research.tracking.optuna_storage import EXCLUDED_ATTR, REUSED_ATTR

LIVE_METRICS = ("val/acc", "val/bpb", "val/loss", "train/loss")  # after the step and the monitor
NAME_WIDTH = 17  # characters before the value of a row
MIN_NAME, NUMBERS_WIDTH = 8, 48  # characters of a metric's name that stay; those of the trial, its time, step and a value
TAIL_BYTES = 4096  # bytes of metrics.jsonl that hold its last line


@contract
class ProgressDisplay:
    """The sweep as its user sees it."""

    def __init__(
        self,
        study: Study,
        space: Space,
        folder: Path,
        total: int,
        workers: int,
        terminal: Console | None = None,
        monitor: str = "",
    ) -> None:
        self.study, self.space, self.folder, self.total, self.workers = study, space, folder, total, workers
        self.live_metrics = dict.fromkeys(("step", monitor, *LIVE_METRICS))
        self.terminal = terminal or Console(highlight=False)
        has_live = workers > 1 and self.terminal.is_terminal
        self.live = Live("", console=self.terminal, auto_refresh=False, transient=True) if has_live else None
        self.reported = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}

    def print_row(self, name: str, value: str) -> None:
        """Print one fact on a line, never wrapped."""
        self.terminal.print(Text.assemble((f"{name:<{NAME_WIDTH - 1}} ", "cyan"), value), soft_wrap=True)

    def print_trial_start(self, job_name: str, params: dict[str, Any]) -> None:
        """Print a trial's name and parameters."""
        texts = self.space.format_params(params)
        texts |= {key: str(value) for key, value in params.items() if key not in texts}
        self.print_row("trial", f"#{job_name} {join_params(texts)}")

    def update(self) -> None:
        """Print the trials that have ended since the last call, in whichever process."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.reported:
                self.reported.add(trial.number)
                if EXCLUDED_ATTR not in trial.user_attrs:
                    is_complete = trial.state == TrialState.COMPLETE
                    value = ", ".join(f"{value:.4g}" for value in trial.values) if is_complete else trial.state.name.lower()
                    line = f"#{trial.number} {value}, {self.describe_standing(trials)}"
                    if self.terminal.is_terminal and NAME_WIDTH + len(line) > self.terminal.width:  # the time left stays
                        line = f"#{trial.number} {value}, {self.describe_standing(trials, [])}"
                    self.print_row("trial", line)
        if self.live:
            self.live.start()  # once
            lines = [self.render_running(trial) for trial in trials if trial.state == TrialState.RUNNING]
            text = Text("\n", no_wrap=True, overflow="ellipsis").join([*lines, Text(self.describe_standing(trials))])
            self.live.update(text, refresh=True)

    def print_sweep_end(self, report: Path, sweep: Sweep | None) -> None:
        """Print the best trial of the report's rows, and where the report is. Without rows (it failed), say what there is."""
        best = sweep.best if sweep else []
        if sweep and best and len(self.study.directions) == 1:
            self.print_row("best", f"#{best[0].number} {sweep.compute_mean(best[0])[0]:.4g}  {join_params(best[0].params)}")
        front = [f"{len(best)} on the Pareto front"] if len(self.study.directions) > 1 else []
        standing = self.describe_standing(self.study.get_trials(deepcopy=False), front if sweep else None)
        self.print_row("report", f"{report}, {standing}")

    def print_stop(self, signum: int, command: Sequence[str]) -> None:
        """Print which signal ended the sweep before its last trial, and the command, which goes on with it."""
        done = [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished() and EXCLUDED_ATTR not in t.user_attrs]
        self.print_row("stopped", f"after {len(done)} of {self.total} trials ({signal.Signals(signum).name})")
        self.print_row("resume with", shlex.join(command))

    def close(self) -> None:
        if self.live:
            self.live.stop()

    def describe_standing(self, trials: list[FrozenTrial], best: list[str] | None = None) -> str:
        """Return the best so far (or `best`), how many trials are done and the time left."""
        done = [t for t in trials if t.state.is_finished() and EXCLUDED_ATTR not in t.user_attrs]
        seconds = [t.duration.total_seconds() for t in done if t.duration and REUSED_ATTR not in t.user_attrs]
        left = max(0, self.total - len(done)) * (statistics.mean(seconds) if seconds else 0.0) / self.workers
        parts = [*(self.describe_best() if best is None else best), f"{len(done)} of {self.total} done"]
        return ", ".join([*parts, f"about {format_duration(left)} left"] if left else parts)

    def describe_best(self) -> list[str]:
        if len(self.study.directions) > 1:
            return [f"{len(self.study.best_trials)} on the Pareto front"]
        try:
            return [f"best {self.study.best_value:.4g} (#{self.study.best_trial.number})"]
        except ValueError:  # no trial is complete and within the constraints
            return []

    def render_running(self, trial: FrozenTrial) -> Text:
        """Return a line on a trial that another process runs."""
        began = trial.datetime_start
        seconds = time.time() - began.timestamp() if began else 0.0
        metrics = read_last_metrics(self.folder / str(trial.number) / "metrics.jsonl")
        numbers = {key: metrics[key] for key in self.live_metrics if key in metrics}
        room = max(MIN_NAME, self.terminal.width - NUMBERS_WIDTH)
        words = {key: str(int(value)) if key == "step" else f"{value:.4g}" for key, value in numbers.items()}
        text = "  ".join(f"{shorten_name(key, room)} {word}" for key, word in words.items())
        return Text(f"  #{trial.number} {format_duration(seconds)}  {text or 'begins'}", style="dim")


def join_params(texts: Mapping[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in texts.items())


def read_last_metrics(path: Path) -> dict[str, float]:
    """Return the last value of each metric in the last lines of metrics.jsonl; nothing where the file cannot be read."""
    metrics = dict[str, float]()
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        for line in file:
            with suppress(ValueError):  # the first line of the tail is cut off, the last one may be half-written
                metrics |= {key: value for key, value in parse_json(line.decode()).items() if isinstance(value, int | float)}
    return metrics
