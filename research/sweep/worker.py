"""One process of a sweep: it takes trials, launches their jobs and tells the study their results."""

import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from research.composition.overrides import to_override
from research.contracts import contract
from research.options.targets import locate_target
from research.run_dir import TRIAL_ENV_VAR, WORKER_ENV_VAR
from research.sweep.compose import Composer
from research.sweep.objective import Outcome, read_outcome, reduce_outcomes, set_constraints
from research.sweep.optuna_private import enable_stop, get_trial_id, has_stopped
from research.sweep.plan import Plan, get_first_value
from research.sweep.progress import ProgressDisplay
from research.sweep.queue import LACK_ATTR, LATE_ATTR, Queue
from research.sweep.ranks import Ranks
from research.sweep.study import Stopping
from research.sweep.trial import Trial as RunningTrial
from research.tracking.optuna_storage import (
    EXCLUDED_ATTR,
    POSTPONED_ATTR,
    PRUNED_ATTR,
    REUSED_ATTR,
    STOP_REASON_ATTR,
    is_storage_unreachable,
)

log = logging.getLogger(__name__)
WAIT, WAITS_BEFORE_MESSAGE = 0.5, 5  # seconds between two looks at what others run, and looks before one is told of it
MAX_RESAMPLES = 10  # excluded trials for each one of the total; beyond, the space has no new configuration to give


def get_worker_spec() -> dict[str, Any] | None:
    """Return what the supervisor has handed this process; None in one that the user started."""
    text = os.environ.get(WORKER_ENV_VAR)
    return json.loads(text) if text else None


def is_orphaned() -> bool:
    """Return True in a worker whose supervisor is gone: it ends after the trial under way."""
    spec = get_worker_spec()
    return spec is not None and os.getppid() != spec["parent"]


@contract
class Worker:
    """One process of a sweep."""

    def __init__(self, plan: Plan, study: Study, launcher: Any, ranks: Ranks, composer: Composer) -> None:
        self.plan, self.study, self.launcher, self.ranks, self.settings = plan, study, launcher, ranks, plan.settings
        self.composer = composer
        enable_stop(study)
        self.queue = Queue(study, plan.folder, plan.total, self.settings.lease, self.settings.max_retries)
        self.stopping = Stopping(self.settings, float((get_worker_spec() or {}).get("begun", time.time())))
        monitor = str(OmegaConf.select(plan.config, "monitor") or "")
        self.progress = ProgressDisplay(study, plan.space, plan.folder, plan.total, self.settings.workers, monitor=monitor)
        default_size = 1 if type(launcher).__name__ == "BasicLauncher" else 2 if plan.grid is None else len(plan.grid)
        self.launch_size = self.settings.n_jobs or default_size  # jobs that the launcher gets at once
        self.last_error: BaseException | None = None
        custom = self.settings.custom_search_space
        self.suggest_custom = locate_target("hydra.sweeper.custom_search_space", custom) if custom else None

    def run_all(self) -> None:
        """Run trials until there are no more; wait while others run some, for theirs may die."""
        waits = 0
        while not self.is_finished():
            trials, may_come_later = self.take_trials()
            if trials:
                self.run(trials)
            elif not may_come_later:
                return
            else:
                waits += 1
                if waits == WAITS_BEFORE_MESSAGE:
                    numbers = " ".join(f"#{trial.number}" for trial in self.queue.list_under_way())
                    self.progress.print_row("waits", f"for {numbers}, which other processes hold, in {self.plan.folder}")
                time.sleep(WAIT)

    def is_finished(self) -> bool:
        """Return True if no other trial begins; the first process to find a reason leaves it in the study."""
        reason = self.stopping.get_reason(self.study)
        if not reason and has_stopped(self.study) and self.queue.count_used(self.queue.list_trials()) < self.plan.total:
            reason = "sampler: every configuration has been tried"
        if reason:
            if not reason.startswith("timeout"):  # a timeout is this command's own
                self.study.set_user_attr(STOP_REASON_ATTR, reason)
            self.progress.print_row("stopped", reason)
            return True
        failures = len(self.list_failed()) + len(self.queue.list_postponed())
        has_failed = self.plan.grid is None and failures > self.plan.study_spec.max_failures
        return has_failed or is_orphaned()

    def take_trials(self) -> tuple[list[Trial], bool]:
        """Return as many trials as the launcher gets at once, with their values, and True if there may be more later."""
        trials: list[Trial] = []
        may_come_later = True
        while may_come_later and len(trials) < self.launch_size:
            trial, may_come_later = self.queue.take_next()
            if trial is None:
                break
            if self.prepare_trial(trial):
                trials.append(trial)
        return trials, may_come_later

    def prepare_trial(self, trial: Trial) -> bool:
        """Give the trial its values. Return True if it has to be run: a configuration may have been run before."""
        self.plan.space.suggest(trial)
        if late := trial.user_attrs.get(LATE_ATTR):
            self.tell_study(trial, Outcome.from_record(late))  # nothing is run again
            return False
        if self.suggest_custom is not None:
            for key, override in self.plan.space.fixed.items():
                trial.set_user_attr(key, override.partition("=")[2])
            self.suggest_custom(self.plan.config, trial)
        if self.settings.dedup == "allow" or self.plan.grid is not None:
            return True
        complete = self.queue.list_trials(TrialState.COMPLETE)
        same = next((t for t in complete if t.number < trial.number and t.params == trial.params), None)
        if same is None:
            return True
        if self.settings.dedup == "reuse":
            self.reuse(trial, same)
            return False
        if sum("again" in t.user_attrs for t in self.queue.list_trials()) >= MAX_RESAMPLES * self.plan.total:
            return True
        trial.set_user_attr("again", same.number)
        self.queue.exclude(trial, f"the same as {same.number}")
        return False

    def reuse(self, trial: Trial, same: FrozenTrial) -> None:
        """Tell the study the result of an earlier trial with the same values."""
        trial.set_user_attr(REUSED_ATTR, same.number)
        trial.set_user_attr("folder", same.user_attrs.get("folder", ""))
        for name, excess in same.constraints.items():
            trial.set_constraint(name, excess)
        self.queue.release(trial)
        self.study.tell(trial, same.values)
        self.progress.update()

    def run(self, trials: list[Trial]) -> None:
        """Launch trials and tell the study their results. After a signal they stay RUNNING, for a later process to resume."""
        if self.settings.repeats["n"] > 1:
            for trial in trials:
                self.tell_study(trial, self.run_repeats(trial))
            return
        returns = self.launch_jobs([(trial, self.build_overrides(trial), str(trial.number)) for trial in trials])
        for trial, result in zip(trials, returns, strict=True):
            self.tell_study(trial, self.collect_outcome(result))

    def run_repeats(self, trial: Trial) -> Outcome:
        """Run one configuration with several seeds. With a pruner, run them one by one and ask it after each."""
        repeats, outcomes = self.settings.repeats, list[Outcome]()
        key = repeats["over"]
        first = get_first_value(self.plan.space, self.plan.config, key)
        overrides = [line for line in self.build_overrides(trial) if line.partition("=")[0] != key]
        jobs = [(trial, [*overrides, f"{key}={first + index}"], f"{trial.number}/{index}") for index in range(repeats["n"])]
        running = RunningTrial(self.study, self.queue.storage, get_trial_id(trial))
        for batch in [[job] for job in jobs] if self.settings.has_pruner else [jobs]:
            outcomes += [self.collect_outcome(result) for result in self.launch_jobs(batch)]
            failed = next((outcome for outcome in outcomes if outcome.error), None)
            if failed or not self.queue.owns(trial):
                return failed or Outcome(error="another process has taken the trial over")
            so_far = reduce_outcomes(outcomes, repeats["reduce"])
            if so_far.error:
                return so_far
            trial.set_user_attr("repeats", [outcome.values[0] for outcome in outcomes])
            if self.settings.has_pruner:
                running.report(so_far.values[0], len(outcomes) - 1)  # a repeat stands for a step
                if running.should_prune():
                    break
        return so_far

    def launch_jobs(self, jobs: list[tuple[Trial, list[str], str]]) -> Sequence[JobReturn]:
        """Return the launcher's results of jobs (trial, overrides, name); a job's name is its folder in the sweep's."""
        first = jobs[0][0].number
        for trial, _, name in jobs:
            self.progress.print_trial_start(name, trial.params)
        are_numbered = all(name == str(first + index) for index, (_, _, name) in enumerate(jobs))
        lines = [line if are_numbered else [*line, f"hydra.sweep.subdir={name}"] for _, line, name in jobs]
        self.ranks.send([lines, first])
        returns: Sequence[JobReturn] = self.launcher.launch(lines, initial_job_idx=first)
        return returns

    def build_overrides(self, trial: Trial) -> list[str]:
        """Return the overrides of a trial's job. A run of ours resumes where an earlier process of it has stopped.

        Before its first checkpoint it begins where the user says.
        """
        lines = self.plan.space.to_overrides(trial.params)
        begins_elsewhere = OmegaConf.select(self.plan.config, "resume.path") or "resume.path" in trial.params
        if OmegaConf.is_dict(OmegaConf.select(self.plan.config, "resume")) and not begins_elsewhere:
            lines.append("resume.path=auto")
        spec: dict[str, Any] = {"number": trial.number}
        short = json.dumps(spec)  # what launchers print
        spec |= {"storage": self.plan.storage, "study": self.study.study_name, "id": get_trial_id(trial)}
        if self.settings.has_pruner and self.settings.repeats["n"] == 1:
            spec["pruner"] = self.settings.pruner
        self.composer.full_values[short] = json.dumps(spec)
        return [*lines, f"++hydra.job.env_set.{TRIAL_ENV_VAR}={to_override(short)}"]

    def collect_outcome(self, result: JobReturn) -> Outcome:
        """Return the outcome of a job, and remember its error for `check_failures`."""
        outcome = read_outcome(result, self.settings.metrics, len(self.plan.directions), tuple(self.settings.constraints))
        self.last_error = outcome.cause or self.last_error
        return outcome

    def tell_study(self, trial: Trial, outcome: Outcome) -> None:
        """Tell the study a trial's outcome, unless another process has taken the trial over."""
        self.queue.release(trial)
        if not self.queue.owns(trial):
            self.report_late(trial, outcome)
            return
        attrs = self.queue.storage.get_trial_user_attrs(get_trial_id(trial))
        try:
            if outcome.error and LATE_ATTR in attrs:
                outcome = Outcome.from_record(attrs[LATE_ATTR])
            trial.set_user_attr("folder", str(outcome.folder or ""))
            if outcome.is_held or outcome.lack:
                self.put_off(trial, outcome)
                return
            set_constraints(trial, outcome, self.settings.constraints)
            if outcome.error:
                trial.set_user_attr("error", outcome.error[:500])
                self.study.tell(trial, state=TrialState.FAIL)
                log.warning("#%d failed: %s", trial.number, outcome.error)
            elif PRUNED_ATTR in attrs:
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, outcome.values)
        except UpdateFinishedTrialError:  # it was taken over, and has ended, since
            self.report_late(trial, outcome)
        self.progress.update()

    def report_late(self, trial: Trial, outcome: Outcome) -> None:
        """Leave a result for the process that has taken the trial over, if it has not ended there. Log the outcome."""
        if not outcome.error and PRUNED_ATTR not in self.queue.storage.get_trial_user_attrs(get_trial_id(trial)):
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(LATE_ATTR, outcome.to_record())
        reason = "was taken over by another process, after a pause longer than hydra.sweeper.lease"
        end = f"failed: {outcome.error}" if outcome.error else f"reached {outcome.values}, in {outcome.folder}"
        log.warning("#%d %s; here it has %s", trial.number, reason, end)

    def put_off(self, trial: Trial, outcome: Outcome) -> None:
        """Let a trial go on once its folder is free, or when the command is given again if the machine lacks something."""
        if outcome.is_held:
            log.warning("#%d waits for its folder, which another process holds: %s", trial.number, outcome.folder)
            self.queue.give_up(trial)
            return
        self.queue.postpone(trial, outcome.lack, outcome.error[:500])
        log.warning("#%d lacks %s, and goes on when the command is given again: %s", trial.number, outcome.lack, outcome.error)

    def has_trials_left(self) -> bool:
        """Return True if the study has trials to begin or to resume."""
        return self.queue.count_used([t for t in self.queue.list_trials() if t.state.is_finished()]) < self.plan.total

    def update_progress(self) -> None:
        """Print what other processes have done since; print nothing while the storage is unreachable."""
        try:
            self.progress.update()
        except Exception as error:
            if not is_storage_unreachable(error):
                raise

    def list_failed(self) -> list[FrozenTrial]:
        """Return the failed trials of the study's total."""
        return [trial for trial in self.queue.list_trials(TrialState.FAIL) if EXCLUDED_ATTR not in trial.user_attrs]

    def check_failures(self) -> None:
        """Raise ValueError if more trials failed than may (of a grid, none may), or if some lack room or a store."""
        failed, lacking, is_study = self.list_failed(), self.queue.list_postponed(), self.plan.grid is None
        lacks = dict.fromkeys(str(trial.user_attrs.get(LACK_ATTR)) for trial in lacking)
        count, more = f"{len(failed) + len(lacking)} of {self.plan.total}", ""
        if lacking:
            more = f"\n{len(lacking)} of them lack {' or '.join(lacks)}, and go on when the same command is given again"
        if len(failed) + len(lacking) > self.plan.study_spec.max_failures or not {*lacks} <= {"memory"}:
            setting = f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate:g}: " if is_study else ""
            error = lacking[-1].user_attrs[POSTPONED_ATTR] if lacking else failed[-1].user_attrs.get("error", "")
            raise ValueError(f"{setting}{count} trials failed, the last with: {error}{more}") from self.last_error
