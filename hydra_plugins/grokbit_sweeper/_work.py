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

from hydra_plugins.grokbit_sweeper import _workers
from hydra_plugins.grokbit_sweeper._compose import Composer
from hydra_plugins.grokbit_sweeper._objective import Outcome, constrain, outcome, reduced
from hydra_plugins.grokbit_sweeper._plan import Plan, first_of
from hydra_plugins.grokbit_sweeper._queue import Queue
from hydra_plugins.grokbit_sweeper._ranks import Ranks
from hydra_plugins.grokbit_sweeper._screen import Screen
from hydra_plugins.grokbit_sweeper._stop import Ending
from research.preflight.overrides import written
from research.trial import PRUNED, VARIABLE, gone

log = logging.getLogger(__name__)


class Work:
    """One process of a sweep: takes trials until there are no more."""

    def __init__(self, plan: Plan, study: Study, launcher: Any, ranks: Ranks, composer: Composer) -> None:
        self.composer = composer
        self.plan, self.study, self.launcher, self.ranks, self.settings = plan, study, launcher, ranks, plan.settings
        study._thread_local.in_optimize_loop = True  # ours is none of Optuna's, yet a sampler may call study.stop
        self.queue = Queue(study, plan.folder, plan.total, self.settings.lease, self.settings.max_retries)
        self.ending = Ending(self.settings, float((_workers.mine() or {}).get("begun", time.time())))
        self.screen = Screen(study, plan.space, plan.folder, plan.total, self.settings.workers)
        basic = type(launcher).__name__ == "BasicLauncher"
        self.batch = self.settings.n_jobs or (1 if basic else len(plan.grid) if plan.grid is not None else 2)
        self.last: BaseException | None = None
        custom = self.settings.custom_search_space
        self.more = get_method(custom) if custom else None

    def all(self) -> None:
        """Trial after trial; where others still run, wait: they may die, and somebody has to go on with theirs."""
        while not self.over():
            trials, later = self.taken()
            if trials:
                self.run(trials)
            elif not later:
                return
            else:
                time.sleep(0.5)

    def over(self) -> bool:
        """Whether no other trial begins; whoever finds that first leaves word."""
        if reason := self.ending.reason(self.study) or self.exhausted():
            if not reason.startswith("timeout"):  # that is this process's own
                self.study.set_user_attr("over", reason)
            self.screen.row("stopped", reason)
            return True
        return (self.plan.grid is None and self.failures() > self.allowed()) or _workers.orphaned()

    def exhausted(self) -> str:
        """Why no other trial begins although more were asked for: the sampler has called study.stop."""
        left = self.study._stop_flag and self.queue.counted(self.study.get_trials(deepcopy=False)) < self.plan.total
        return "sampler: every configuration has been tried" if left else ""

    def taken(self) -> tuple[list[Trial], bool]:
        """As many trials as the launcher gets at once, each with its values; those that need not run are told at once."""
        trials: list[Trial] = []
        later = True
        while later and len(trials) < self.batch:
            trial, later = self.queue.next()
            if trial is None:
                break
            if self.suggested(trial):
                trials.append(trial)
        return trials, later

    def suggested(self, trial: Trial) -> bool:
        """Whether the trial, which has its values now, has to be run."""
        self.plan.space.suggest(trial)
        if self.more is not None:
            for key, override in self.plan.space.fixed.items():
                trial.set_user_attr(key, override.partition("=")[2])
            self.more(self.plan.config, trial)
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
            self.queue.done(trial)
            self.study.tell(trial, same[0].values)
            self.screen.look()
            return False
        again = sum("again" in t.user_attrs for t in self.study.get_trials(deepcopy=False))
        if again >= 10 * self.plan.total:
            return True  # the space has no more to give
        trial.set_user_attr("again", same[0].number)
        self.queue.put_aside(trial, f"the same as {same[0].number}")
        return False

    def run(self, trials: list[Trial]) -> None:
        """Launch and judge them. Where a signal ends this process, they stay to be gone on with."""
        if self.settings.repeats["n"] > 1:
            for trial in trials:
                self.told(trial, self.repeated(trial))
            return
        returns = self.launched([(trial, self.overrides(trial), str(trial.number)) for trial in trials])
        for trial, result in zip(trials, returns, strict=True):
            self.told(trial, self.outcome(result))

    def repeated(self, trial: Trial) -> Outcome:
        """One configuration over several seeds; where somebody prunes, one after the other, and he looks after each."""
        repeats, found = self.settings.repeats, list[Outcome]()
        key, own = repeats["over"], self.overrides(trial)
        first = first_of(self.plan.space, self.plan.config, key)
        overrides = [line for line in own if line.partition("=")[0] != key]
        jobs = [(trial, [*overrides, f"{key}={first + index}"], f"{trial.number}/{index}") for index in range(repeats["n"])]
        for some in [[job] for job in jobs] if self.settings.prunes else [jobs]:
            found += [self.outcome(result) for result in self.launched(some)]
            if (failed := next((each for each in found if each.error), None)) or not self.queue.owns(trial):
                return failed or found[-1]
            so_far = reduced(found, repeats["reduce"])
            trial.set_user_attr("repeats", [each.values[0] for each in found])
            if self.settings.prunes and self.given_up(trial, len(found) - 1, so_far.values[0]):
                break
        return so_far

    def given_up(self, trial: Trial, step: int, value: float) -> bool:
        """Whether the pruner has seen enough."""
        storage = self.study._storage
        storage.set_trial_intermediate_value(trial._trial_id, step, value)
        pruned = self.study.pruner.prune(self.study, storage.get_trial(trial._trial_id))
        if pruned:
            trial.set_user_attr(PRUNED, step)
        return pruned

    def launched(self, jobs: list[tuple[Trial, list[str], str]]) -> Sequence[JobReturn]:
        """The launcher's answers; each job runs in its trial's folder."""
        first = jobs[0][0].number
        for trial, _, place in jobs:
            self.screen.begins(place, trial.params)
        plain = all(place == str(first + i) for i, (_, _, place) in enumerate(jobs))
        lines = [overrides if plain else [*overrides, f"hydra.sweep.subdir={place}"] for _, overrides, place in jobs]
        self.ranks.tell([lines, first])
        result: Sequence[JobReturn] = self.launcher.launch(lines, initial_job_idx=first)
        return result

    def overrides(self, trial: Trial) -> list[str]:
        """What the job of a trial is started with. A run of ours goes on where an earlier process of it has stopped."""
        lines = self.plan.space.overrides(trial.params)
        if OmegaConf.is_dict(OmegaConf.select(self.plan.config, "resume")):
            lines.append("resume.path=auto")
        handle: dict[str, Any] = {"number": trial.number}
        short = json.dumps(handle)
        handle |= {"storage": self.plan.storage, "study": self.study.study_name, "id": trial._trial_id}
        if self.settings.prunes and self.settings.repeats["n"] == 1:
            handle["pruner"] = self.settings.pruner
        self.composer.whole[short] = json.dumps(handle)
        return [*lines, f"++hydra.job.env_set.{VARIABLE}={written(short)}"]

    def outcome(self, result: JobReturn) -> Outcome:
        """What came of a job."""
        found = outcome(result, self.settings.metrics, len(self.plan.ways), tuple(self.settings.constraints))
        self.last = found.cause or self.last
        return found

    def told(self, trial: Trial, found: Outcome) -> None:
        """The study hears of it, unless somebody else has taken the trial over."""
        self.queue.done(trial)
        try:
            if not self.queue.owns(trial):
                raise UpdateFinishedTrialError
            trial.set_user_attr("folder", str(found.folder or ""))
            constrain(trial, found, self.settings.constraints)
            if found.error:
                trial.set_user_attr("error", found.error[:500])
                self.study.tell(trial, state=TrialState.FAIL)
                log.warning("#%d failed: %s", trial.number, found.error)
            elif PRUNED in self.study._storage.get_trial_user_attrs(trial._trial_id):
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, found.values)
        except UpdateFinishedTrialError:
            log.warning("#%d was taken over by another process, after a pause longer than hydra.sweeper.lease", trial.number)
        self.screen.look()

    def left(self) -> bool:
        """Whether the study has trials to run or to go on with."""
        trials = self.study.get_trials(deepcopy=False)
        return self.queue.counted([t for t in trials if t.state.is_finished()]) < self.plan.total

    def look(self) -> None:
        """Tell of what others have done since; a storage that is away for a while has nothing to tell."""
        try:
            self.screen.look()
        except Exception as error:
            if not gone(error):
                raise

    def failures(self) -> int:
        return sum(t.state == TrialState.FAIL and "aside" not in t.user_attrs for t in self.study.get_trials(deepcopy=False))

    def allowed(self) -> int:
        return int(self.settings.max_failure_rate * self.plan.total + 1e-9)

    def judge(self) -> None:
        """Raises ValueError where more trials failed than may; of a grid, none may."""
        failed = self.failures()
        if failed <= (0 if self.plan.grid is not None else self.allowed()):
            return
        errors = [t.user_attrs["error"] for t in self.study.get_trials(deepcopy=False) if "error" in t.user_attrs]
        told = f"{failed} of {self.plan.total} trials failed, the last with: {errors[-1] if errors else ''}"
        rate = f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate:g}: "
        raise ValueError(f"{'' if self.plan.grid is not None else rate}{told}") from self.last
