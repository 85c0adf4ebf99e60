"""One process of a sweep: it takes trials, launches their jobs and tells the study what came of them."""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.utils import get_method
from omegaconf import OmegaConf
from optuna.study import Study
from optuna.trial import Trial, TrialState

from hydra_plugins.grokbit_sweeper import _workers
from hydra_plugins.grokbit_sweeper._compose import Composer
from hydra_plugins.grokbit_sweeper._objective import Outcome, constrain, outcome, reduced
from hydra_plugins.grokbit_sweeper._plan import Plan
from hydra_plugins.grokbit_sweeper._queue import Queue
from hydra_plugins.grokbit_sweeper._ranks import Ranks
from hydra_plugins.grokbit_sweeper._screen import Screen
from hydra_plugins.grokbit_sweeper._stop import Ending
from research.preflight.overrides import written
from research.trial import PRUNED, VARIABLE

log = logging.getLogger(__name__)


class Work:
    """One process of a sweep: takes trials until there are no more."""

    def __init__(self, plan: Plan, study: Study, launcher: Any, ranks: Ranks, composer: Composer) -> None:
        self.composer = composer
        self.plan, self.study, self.launcher, self.ranks, self.settings = plan, study, launcher, ranks, plan.settings
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
        if reason := self.ending.reason(self.study):
            if not reason.startswith("timeout"):  # that is this process's own
                self.study.set_user_attr("over", reason)
            self.screen.row("stopped", reason)
            return True
        return self.failures() > self.allowed() or _workers.orphaned()

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
            self.queue.done(trial)
            self.study.tell(trial, same[0].values)
            log.info("#%d is #%d again: its result is used", trial.number, same[0].number)
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
            self.told(trial, self.outcome(trial, result))

    def repeated(self, trial: Trial) -> Outcome:
        """One configuration over several seeds: the pruner sees the value so far after each."""
        repeats, found = self.settings.repeats, list[Outcome]()
        key = repeats["over"]
        given = self.plan.space.fixed.get(key, "").partition("=")[2] or OmegaConf.select(self.plan.config, key)
        for index in range(repeats["n"]):
            overrides = [o for o in self.overrides(trial) if o.partition("=")[0] != key]
            jobs = [(trial, [*overrides, f"{key}={int(given) + index}"], f"{trial.number}/{index}")]
            found.append(self.outcome(trial, self.launched(jobs)[0]))
            if found[-1].error:
                return found[-1]
            so_far = reduced(found, repeats["reduce"])
            trial.set_user_attr("repeats", [each.values[0] for each in found])
            if self.settings.prunes:
                self.study._storage.set_trial_intermediate_value(trial._trial_id, index, so_far.values[0])
                if self.study.pruner.prune(self.study, self.study._storage.get_trial(trial._trial_id)):
                    trial.set_user_attr(PRUNED, index)
                    break
        return so_far

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
        if OmegaConf.select(self.plan.config, "resume") is not None:
            lines.append("resume.path=auto")
        handle: dict[str, Any] = {"number": trial.number}
        short = json.dumps(handle)
        handle |= {"storage": self.plan.storage, "study": self.study.study_name, "id": trial._trial_id}
        if self.settings.prunes and self.settings.repeats["n"] == 1:
            handle["pruner"] = self.settings.pruner
        self.composer.whole[short] = json.dumps(handle)
        return [*lines, f"++hydra.job.env_set.{VARIABLE}={written(short)}"]

    def outcome(self, trial: Trial, result: JobReturn) -> Outcome:
        """What came of a job."""
        found = outcome(result, self.settings.metrics, len(self.plan.ways), tuple(self.settings.constraints))
        self.last = found.cause or self.last
        repeated = self.settings.repeats["n"] > 1
        trial.set_user_attr("folder", str((found.folder.parent if repeated else found.folder) if found.folder else ""))
        return found

    def told(self, trial: Trial, found: Outcome) -> None:
        """The study hears of it, unless somebody else has taken the trial over."""
        self.queue.done(trial)
        if not self.queue.owns(trial):
            log.warning("#%d was taken over by another process, after a pause longer than hydra.sweeper.lease", trial.number)
            return
        attrs = self.study._storage.get_trial_user_attrs(trial._trial_id)
        constrain(trial, found, self.settings.constraints)
        if found.error:
            trial.set_user_attr("error", found.error[:500])
            self.study.tell(trial, state=TrialState.FAIL)
            log.warning("#%d failed: %s", trial.number, found.error)
        elif PRUNED in attrs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, found.values)
        self.screen.look()

    def look(self) -> None:
        """Tell of what others have done since."""
        self.screen.look()

    def failures(self) -> int:
        return sum(t.state == TrialState.FAIL and "aside" not in t.user_attrs for t in self.study.get_trials(deepcopy=False))

    def allowed(self) -> int:
        return int(self.settings.max_failure_rate * self.plan.total + 1e-9)

    def judge(self) -> None:
        """Raises ValueError where more trials failed than may, or one of a grid did."""
        failed = self.failures()
        if failed > self.allowed() or (failed and self.plan.grid is not None):
            errors = [t.user_attrs["error"] for t in self.study.get_trials(deepcopy=False) if "error" in t.user_attrs]
            rate = f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate:g}"
            told = f"{failed} of {self.plan.total} trials failed, the last with: {errors[-1] if errors else ''}"
            raise ValueError(f"{rate}: {told}") from self.last
