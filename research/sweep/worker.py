"""One process of a sweep: it takes trials, launches their jobs and tells the study what came of them."""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.utils import get_method
from omegaconf import OmegaConf
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import Trial, TrialState

from research.preflight.overrides import to_override
from research.run_dir import TRIAL_ENV_VAR
from research.sweep import supervisor
from research.sweep.compose import Composer
from research.sweep.objective import Outcome, read_outcome, reduce_outcomes, set_constraints
from research.sweep.plan import Plan, get_first_value
from research.sweep.progress import ProgressDisplay
from research.sweep.queue import Queue
from research.sweep.ranks import Ranks
from research.sweep.stopping import Stopping
from research.tracking.optuna_storage import PRUNED_ATTR, is_storage_unreachable

log = logging.getLogger(__name__)


class Worker:
    """One process of a sweep: takes trials until there are no more."""

    def __init__(self, plan: Plan, study: Study, launcher: Any, ranks: Ranks, composer: Composer) -> None:
        self.composer = composer
        self.plan, self.study, self.launcher, self.ranks, self.settings = plan, study, launcher, ranks, plan.settings
        study._thread_local.in_optimize_loop = True  # ours is none of Optuna's, yet a sampler may call study.stop
        self.queue = Queue(study, plan.folder, plan.total, self.settings.lease, self.settings.max_retries)
        self.stopping = Stopping(self.settings, float((supervisor.get_worker_spec() or {}).get("begun", time.time())))
        self.progress = ProgressDisplay(study, plan.space, plan.folder, plan.total, self.settings.workers)
        basic = type(launcher).__name__ == "BasicLauncher"
        self.launch_size = self.settings.n_jobs or (1 if basic else len(plan.grid) if plan.grid is not None else 2)
        self.last_error: BaseException | None = None
        custom = self.settings.custom_search_space
        self.suggest_custom = get_method(custom) if custom else None

    def run_all(self) -> None:
        """Trial after trial; where others still run, wait: they may die, and somebody has to go on with theirs."""
        while not self.is_finished():
            trials, later = self.take_trials()
            if trials:
                self.run(trials)
            elif not later:
                return
            else:
                time.sleep(0.5)

    def is_finished(self) -> bool:
        """Whether no other trial begins; whoever finds that first leaves word."""
        if reason := self.stopping.get_reason(self.study) or self.get_exhausted_reason():
            if not reason.startswith("timeout"):  # that is this process's own
                self.study.set_user_attr("over", reason)
            self.progress.print_row("stopped", reason)
            return True
        return (self.plan.grid is None and self.count_failures() > self.get_max_failures()) or supervisor.is_orphaned()

    def get_exhausted_reason(self) -> str:
        """Why no other trial begins although more were asked for: the sampler has called study.stop."""
        left = self.study._stop_flag and self.queue.count_used(self.study.get_trials(deepcopy=False)) < self.plan.total
        return "sampler: every configuration has been tried" if left else ""

    def take_trials(self) -> tuple[list[Trial], bool]:
        """As many trials as the launcher gets at once, each with its values; those that need not run are told at once."""
        trials: list[Trial] = []
        later = True
        while later and len(trials) < self.launch_size:
            trial, later = self.queue.take_next()
            if trial is None:
                break
            if self.prepare_trial(trial):
                trials.append(trial)
        return trials, later

    def prepare_trial(self, trial: Trial) -> bool:
        """Whether the trial, which has its values now, has to be run."""
        self.plan.space.suggest(trial)
        if self.suggest_custom is not None:
            for key, override in self.plan.space.fixed.items():
                trial.set_user_attr(key, override.partition("=")[2])
            self.suggest_custom(self.plan.config, trial)
        if self.settings.dedup == "allow" or self.plan.grid is not None:
            return True
        same = [t for t in self.study.get_trials(deepcopy=False)
                if t.number < trial.number and t.params == trial.params and t.state == TrialState.COMPLETE]  # fmt: skip
        if not same:
            return True
        if self.settings.dedup == "reuse":
            trial.set_user_attr("reused", same[0].number)
            trial.set_user_attr("folder", same[0].user_attrs.get("folder", ""))
            for name, beyond in same[0].constraints.items():
                trial.set_constraint(name, beyond)
            self.queue.release(trial)
            self.study.tell(trial, same[0].values)
            self.progress.update()
            return False
        again = sum("again" in t.user_attrs for t in self.study.get_trials(deepcopy=False))
        if again >= 10 * self.plan.total:
            return True  # the space has no more to give
        trial.set_user_attr("again", same[0].number)
        self.queue.exclude(trial, f"the same as {same[0].number}")
        return False

    def run(self, trials: list[Trial]) -> None:
        """Launch and judge them. Where a signal ends this process, they stay to be gone on with."""
        if self.settings.repeats["n"] > 1:
            for trial in trials:
                self.tell_study(trial, self.run_repeats(trial))
            return
        returns = self.launch_jobs([(trial, self.build_overrides(trial), str(trial.number)) for trial in trials])
        for trial, result in zip(trials, returns, strict=True):
            self.tell_study(trial, self.collect_outcome(result))

    def run_repeats(self, trial: Trial) -> Outcome:
        """One configuration over several seeds; where somebody prunes, one after the other, and he looks after each."""
        repeats, found = self.settings.repeats, list[Outcome]()
        key, own = repeats["over"], self.build_overrides(trial)
        first = get_first_value(self.plan.space, self.plan.config, key)
        overrides = [line for line in own if line.partition("=")[0] != key]
        jobs = [(trial, [*overrides, f"{key}={first + index}"], f"{trial.number}/{index}") for index in range(repeats["n"])]
        for some in [[job] for job in jobs] if self.settings.has_pruner else [jobs]:
            found += [self.collect_outcome(result) for result in self.launch_jobs(some)]
            if (failed := next((each for each in found if each.error), None)) or not self.queue.owns(trial):
                return failed or found[-1]
            so_far = reduce_outcomes(found, repeats["reduce"])
            trial.set_user_attr("repeats", [each.values[0] for each in found])
            if self.settings.has_pruner and self.should_prune(trial, len(found) - 1, so_far.values[0]):
                break
        return so_far

    def should_prune(self, trial: Trial, step: int, value: float) -> bool:
        """Whether the pruner has seen enough."""
        storage = self.study._storage
        storage.set_trial_intermediate_value(trial._trial_id, step, value)
        pruned = self.study.pruner.prune(self.study, storage.get_trial(trial._trial_id))
        if pruned:
            trial.set_user_attr(PRUNED_ATTR, step)
        return pruned

    def launch_jobs(self, jobs: list[tuple[Trial, list[str], str]]) -> Sequence[JobReturn]:
        """The launcher's answers; each job runs in its trial's folder."""
        first = jobs[0][0].number
        for trial, _, place in jobs:
            self.progress.print_trial_start(place, trial.params)
        plain = all(place == str(first + i) for i, (_, _, place) in enumerate(jobs))
        lines = [overrides if plain else [*overrides, f"hydra.sweep.subdir={place}"] for _, overrides, place in jobs]
        self.ranks.send([lines, first])
        result: Sequence[JobReturn] = self.launcher.launch(lines, initial_job_idx=first)
        return result

    def build_overrides(self, trial: Trial) -> list[str]:
        """What the job of a trial is started with. A run of ours goes on where an earlier process of it has stopped."""
        lines = self.plan.space.to_overrides(trial.params)
        if OmegaConf.is_dict(OmegaConf.select(self.plan.config, "resume")):
            lines.append("resume.path=auto")
        handle: dict[str, Any] = {"number": trial.number}
        short = json.dumps(handle)
        handle |= {"storage": self.plan.storage, "study": self.study.study_name, "id": trial._trial_id}
        if self.settings.has_pruner and self.settings.repeats["n"] == 1:
            handle["pruner"] = self.settings.pruner
        self.composer.full_values[short] = json.dumps(handle)
        return [*lines, f"++hydra.job.env_set.{TRIAL_ENV_VAR}={to_override(short)}"]

    def collect_outcome(self, result: JobReturn) -> Outcome:
        """What came of a job."""
        found = read_outcome(result, self.settings.metrics, len(self.plan.directions), tuple(self.settings.constraints))
        self.last_error = found.cause or self.last_error
        return found

    def tell_study(self, trial: Trial, outcome: Outcome) -> None:
        """The study hears of it, unless somebody else has taken the trial over."""
        self.queue.release(trial)
        try:
            if not self.queue.owns(trial):
                raise UpdateFinishedTrialError
            trial.set_user_attr("folder", str(outcome.folder or ""))
            set_constraints(trial, outcome, self.settings.constraints)
            if outcome.error:
                trial.set_user_attr("error", outcome.error[:500])
                self.study.tell(trial, state=TrialState.FAIL)
                log.warning("#%d failed: %s", trial.number, outcome.error)
            elif PRUNED_ATTR in self.study._storage.get_trial_user_attrs(trial._trial_id):
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, outcome.values)
        except UpdateFinishedTrialError:
            log.warning("#%d was taken over by another process, after a pause longer than hydra.sweeper.lease", trial.number)
        self.progress.update()

    def has_trials_left(self) -> bool:
        """Whether the study has trials to run or to go on with."""
        trials = self.study.get_trials(deepcopy=False)
        return self.queue.count_used([t for t in trials if t.state.is_finished()]) < self.plan.total

    def update_progress(self) -> None:
        """Tell of what others have done since; a storage that is away for a while has nothing to tell."""
        try:
            self.progress.update()
        except Exception as error:
            if not is_storage_unreachable(error):
                raise

    def count_failures(self) -> int:
        return sum(t.state == TrialState.FAIL and "aside" not in t.user_attrs for t in self.study.get_trials(deepcopy=False))

    def get_max_failures(self) -> int:
        return int(self.settings.max_failure_rate * self.plan.total + 1e-9)

    def check_failures(self) -> None:
        """Raises ValueError where more trials failed than may; of a grid, none may."""
        failed = self.count_failures()
        if failed <= (0 if self.plan.grid is not None else self.get_max_failures()):
            return
        errors = [t.user_attrs["error"] for t in self.study.get_trials(deepcopy=False) if "error" in t.user_attrs]
        told = f"{failed} of {self.plan.total} trials failed, the last with: {errors[-1] if errors else ''}"
        rate = f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate:g}: "
        raise ValueError(f"{'' if self.plan.grid is not None else rate}{told}") from self.last_error
