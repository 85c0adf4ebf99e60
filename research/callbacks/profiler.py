"""A callback that traces some steps with torch's profiler: what each operator takes, in the log and in a file of Chrome's."""

import logging
from pathlib import Path

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile, schedule

from research.cli import describe_error
from research.contracts import contract
from research.ranges import NonNegativeInt, PositiveInt, ProfiledSteps, check_settings
from research.training.state import Callback, State

PROFILE_FOLDER = "profile"  # in a run folder
ROWS = 12  # operators in the table
log = logging.getLogger(__name__)


class Profiler(Callback):
    """Leave out `wait` steps, let the profiler warm up for `warmup`, and trace `active`, once in a process.

    The trace is RUN/profile/trace_step-N.json.gz, N the last step in it, for https://ui.perfetto.dev. A table of the
    operators that take longest goes to train.log. What is trained stays the same, bit for bit. A step before which an
    evaluation came has that in its trace.
    """

    def __init__(self, wait: NonNegativeInt = 20, warmup: PositiveInt = 2, active: ProfiledSteps = 3) -> None:
        check_settings("callbacks.profiler", Profiler.__init__.__annotations__, locals())
        self.wait, self.warmup, self.active = wait, warmup, active
        self.profiler: profile | None = None

    def on_start(self, state: State) -> None:
        self.is_on_gpu = state.info.device.startswith("cuda") or torch.cuda.is_initialized()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.is_on_gpu else [])]
        self.last_step = state.progress.step + self.wait + self.warmup + self.active
        plan = schedule(wait=self.wait, warmup=self.warmup, active=self.active, repeat=1)
        self.profiler = profile(activities=activities, schedule=plan, acc_events=True)
        self.profiler.start()
        self.first_step, self.done = state.progress.step, 0

    def on_step(self, state: State) -> None:
        if self.profiler is None:
            return
        self.done += 1
        if self.done < self.wait + self.warmup + self.active:
            self.profiler.step()
        else:
            self.write(state)

    def on_end(self, state: State) -> None:
        if self.profiler is None:
            return
        if self.done > self.wait + self.warmup:  # a part of what was to be traced
            self.write(state)
            return
        self.profiler.stop()
        self.profiler = None
        needed = self.wait + self.warmup + self.active
        log.warning("callbacks.profiler: nothing was traced in %d steps; it takes %d: lower its wait", self.done, needed)

    @contract
    def write(self, state: State) -> None:
        """End the trace, write it, and log its table. A disk that is full costs the trace alone."""
        assert self.profiler
        finished, self.profiler = self.profiler, None
        finished.stop()
        events: EventList = finished.key_averages()
        order = "self_device_time_total" if self.is_on_gpu else "self_cpu_time_total"
        log.info("operators of steps up to %d\n%s", state.progress.step, events.table(sort_by=order, row_limit=ROWS))
        if (folder := state.info.folder) is None:
            return
        path = folder / PROFILE_FOLDER / f"trace_step-{state.progress.step:08d}.json.gz"
        try:
            export(finished, path)
        except (OSError, RuntimeError) as error:
            log.warning("callbacks.profiler: %s was not written: %s", path, describe_error(error))
        else:
            state.end_notes["profile"] = f"{path}, for https://ui.perfetto.dev"


@contract
def export(finished: profile, path: Path) -> None:
    """Write a trace, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}")
    try:
        finished.export_chrome_trace(str(draft))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
