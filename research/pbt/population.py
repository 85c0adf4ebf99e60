"""Train a population: check its settings, run its generations, write its report."""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from research.cli import describe_error, redact, redact_output
from research.composition.overrides import to_override
from research.contracts import contract
from research.files.locks import lock
from research.pbt import lineage
from research.pbt.evolve import Member, create_first_generation, evolve_generation, rank_members
from research.pbt.plan import POPULATION_FILE, Plan, PopulationRecord, can_resume, describe_plan, make_plan, read_population
from research.run_dir import TRIAL_ENV_VAR, Summary, check_links, list_checkpoints, read_summary
from research.sweep.compose import Composer
from research.sweep.objective import find_lack
from research.sweep.plan import format_row, hash_record, resolve_folder
from research.sweep.study import check_same_spec
from research.tracking.jsonl import FAILED, FINISHED, KILLED

log = logging.getLogger(__name__)


def run_population(
    raw_settings: dict[str, Any], arguments: list[str], config: DictConfig, context: HydraContext, task: TaskFunction
) -> None:
    """Train the population. Raise ValueError before the first member where something is wrong."""
    redact_output()
    plan = make_plan(raw_settings, arguments, config, context)
    if plan.settings.dry_run:
        print(redact("\n".join(describe_plan(plan))))
        return
    plan.folder = resolve_folder(plan.settings, config, POPULATION_FILE, lambda folder: can_resume(plan, folder))
    check_links(plan.folder)
    with lock(plan.folder):
        population = Population(plan, Composer(context.config_loader).make_launcher(config, context, plan.folder, task))
        status = KILLED
        try:
            population.run_all()
            status = FINISHED
        except Exception:
            status = FAILED
            raise
        finally:
            finish(population, status)


@contract
def finish(population: "Population", status: str) -> None:
    """Write the report on the generations that have ended and print where it is; also after Ctrl-C."""
    plan, members = population.plan, population.members
    sizes = Counter(member.generation for member in members)
    ended = [generation for generation, size in sizes.items() if size == plan.settings.population]
    if ended:
        try:
            best = lineage.report(plan, members, max(ended))
            lineage.conclude(plan, members, best, status)
            where = f"it and its ancestors: {plan.folder / 'lineage.png'}"
            print(format_row("best", f"{best.name}: {plan.monitor} {best.value:.4g}; {where}"))
        except Exception as error:  # the members are safe: the same command makes the report again
            log.warning("no report: %s: %s", type(error).__name__, error, exc_info=True)
            status = FAILED if status == FINISHED else status
    if status == FINISHED:
        population.save(finished=True)
    elif status == KILLED:
        print(format_row("interrupted", f"after {len(members)} runs: the same command runs the rest"), flush=True)


@contract
class Population:
    """Trains generation after generation; population.json holds the members that have ended."""

    def __init__(self, plan: Plan, launcher: Any) -> None:
        self.plan, self.launcher, self.settings = plan, launcher, plan.settings
        is_basic = type(launcher).__name__ == "BasicLauncher"
        self.launch_size = self.settings.n_jobs or (1 if is_basic else self.settings.population)
        self.last_error: BaseException | None = None
        record = read_population(plan.folder)
        if record.requested:
            check_same_spec(self.settings.study_name or plan.folder.name, record.requested, plan.spec)
        self.members = list(record.members)
        self.save(finished=record.finished)  # from here on the same command finds it
        resumed = f": resumed after {len(self.members)} runs" if self.members else ""
        size = f"{plan.generations} generations of {self.settings.interval} steps, {plan.monitor}"
        print(format_row("population", f"{self.settings.population} members, {size}{resumed}"))
        print(format_row("folder", str(plan.folder)), flush=True)

    def get_members(self, generation: int) -> list[Member]:
        """Return the members of a generation that have ended, by their number."""
        return sorted((m for m in self.members if m.generation == generation), key=lambda m: m.number)

    def save(self, finished: bool = False) -> None:
        """Write population.json."""
        PopulationRecord(hash_record(self.plan.spec), finished, self.plan.spec, self.members).write(self.plan.folder)

    def run_all(self) -> None:
        """Run the generations that are left. Raise ValueError if all members of one failed; it is run again then."""
        started, first = time.monotonic(), len(self.members)
        for generation in range(self.plan.generations):
            members = self.run_generation(generation)
            if all(member.value is None for member in members):
                self.members = [member for member in self.members if member.generation != generation]
                self.save()
                failure = f"all {len(members)} members of generation {generation} failed"
                raise ValueError(f"hydra/sweeper=pbt: {failure}, the last with: {members[-1].error}") from self.last_error
            runs_left = self.settings.population * (self.plan.generations - generation - 1)
            if len(self.members) > first:
                seconds_left = runs_left * (time.monotonic() - started) / (len(self.members) - first)
                print(format_row("generation", f"{self.describe(members)}, about {seconds_left:.0f} s left"), flush=True)
            reasons = {member.stop for member in members if member.value is not None}
            if all(reasons) and generation < self.plan.generations - 1:
                print(format_row("population", f"no member continues: {', '.join(sorted(reasons))}"), flush=True)
                return

    def run_generation(self, generation: int) -> list[Member]:
        """Run the members that have not ended yet, and return all of the generation."""
        s, parameters = self.settings, self.plan.space.parameters
        if generation:
            members = evolve_generation(self.get_members(generation - 1), parameters, s, self.plan.maximize)
        else:
            members = create_first_generation(parameters, s)
        ended = {member.number for member in self.get_members(generation)}
        left = [member for member in members if member.number not in ended]
        for start in range(0, len(left), self.launch_size):
            self.run(left[start : start + self.launch_size])
        return self.get_members(generation)

    def run(self, members: list[Member]) -> None:
        """Launch members and save their results. After a signal they are not saved, for a later process to resume."""
        first = members[0].generation * self.settings.population + members[0].number
        lines = [self.build_overrides(member) for member in members]
        returns: Sequence[JobReturn] = self.launcher.launch(lines, initial_job_idx=first)
        lacking = dict[str, str]()  # they are not saved either, and so go on with the next start
        for member, result in zip(members, returns, strict=True):
            self.record_result(member, result)
            if member.error and (lack := find_lack(self.last_error)) in ("room", "a store"):
                lacking[member.name] = f"{member.name} lacks {lack}: {member.error}"
        ended = [member for member in members if member.name not in lacking]
        lineage.tag_runs(self.plan, ended, self.get_members(members[0].generation - 1))
        self.members += ended
        self.save()
        for message in lacking.values():
            raise ValueError(f"hydra/sweeper=pbt: {message}\nthe same command goes on with it") from self.last_error

    def build_overrides(self, member: Member) -> list[str]:
        """Return a member's overrides: it resumes where it was killed, or at the last checkpoint of its ancestors."""
        folder, end = self.plan.folder / member.name, self.plan.get_last_step(member.generation)
        lines = [*self.plan.space.to_overrides(member.params), f"hydra.sweep.subdir={member.name}"]
        lines.append(f"++hydra.job.env_set.{TRIAL_ENV_VAR}='{{}}'")  # in a sweep a run prints no table of its own
        if list_checkpoints(folder):
            lines.append("resume.path=auto")
        else:
            (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
            if member.parent is not None:
                parent = next(m for m in self.get_members(member.generation - 1) if m.number == member.parent)
                # An ancestor that took no step has saved nothing.
                source = lineage.select_trained(lineage.trace_ancestry(self.members, parent))[-1]
                lines.append(f"resume.path={to_override(str(self.plan.folder / source.name))}")
        if end < self.plan.steps:
            lines += ["++callbacks.pause._target_=research.callbacks.pause.Pause", f"++callbacks.pause.step={end}"]
        return lines

    def record_result(self, member: Member, result: JobReturn) -> None:
        """Set the member's results at the end of the generation, or its error, and print them."""
        from research.callbacks.pause import describe_pause  # torch comes with it

        summary = read_summary(self.plan.folder / member.name) or Summary("")
        member.run_id, member.steps = summary.mlflow_run_id, summary.steps
        try:
            _ = result.return_value
            member.value = summary.metrics[self.plan.monitor]
            member.best = self.choose_best(member, summary.best.get(self.plan.monitor))
            stop, paused = summary.stop, describe_pause(self.plan.get_last_step(member.generation))
            member.stop = stop if stop != paused else ""
            member.error = "" if member.value is not None else f"{self.plan.monitor} is not a number"
        except Exception as error:  # whatever the run raised fails this member alone
            self.last_error, member.error = error, describe_error(error)[:500]
        params = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in member.params.items())
        outcome = member.error.partition("\n")[0] if member.error else f"{self.plan.monitor} {member.value:.4g}"
        copied = f" (from m{member.parent})" if member.parent not in (None, member.number) else ""
        print(format_row("member", f"{member.name}{copied} {params}: {outcome}"), flush=True)

    def choose_best(self, member: Member, own: float | None) -> float | None:
        """Return the best value of a member, whose run knows its own, and of its ancestors."""
        ancestors = [m.best for m in self.get_members(member.generation - 1) if m.number == member.parent]
        values = [value for value in (own, *ancestors) if value is not None]
        return (max if self.plan.maximize else min)(values, default=None)

    def describe(self, members: list[Member]) -> str:
        """Return how good the members of a generation are."""
        best = rank_members(members, self.plan.maximize)[0]
        median = statistics.median(member.value for member in members if member.value is not None)
        copies = sum(member.parent not in (None, member.number) for member in members)
        standing = f"best {best.value:.4g} ({best.name}), median {median:.4g}, {copies} copies"
        return f"{best.generation} at step {best.steps}: {standing}"
