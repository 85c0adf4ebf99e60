"""A population from its first look at the settings to its report."""

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from research.pbt import lineage
from research.pbt.evolve import Member, create_first_generation, evolve_generation, rank_members
from research.pbt.plan import POPULATION_FILE, Plan, describe_plan, make_plan, resolve_folder
from research.preflight.overrides import to_override
from research.run_dir import TRIAL_ENV_VAR, list_checkpoints, lock, read_json, write_json
from research.sweep.compose import Composer
from research.sweep.study import MISMATCH_HINT, find_differences
from research.tracking.jsonl import FAILED, FINISHED, KILLED

log = logging.getLogger(__name__)


def run_population(
    raw_settings: dict[str, Any], arguments: list[str], config: DictConfig, context: HydraContext, task: TaskFunction
) -> None:
    """Train the population. Raises ValueError before the first member where something is wrong."""
    plan = make_plan(raw_settings, arguments, config, context)
    if plan.settings.dry_run:
        print("\n".join(describe_plan(plan)))
        return
    plan.folder = resolve_folder(plan)
    with lock(plan.folder):
        with read_write(config.hydra), open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={to_override(str(plan.folder))}")
            config.hydra.sweep.dir = str(plan.folder)
        quick = HydraContext(config_loader=cast(ConfigLoader, Composer(context.config_loader)), callbacks=context.callbacks)
        launcher = Plugins.instance().instantiate_launcher(config=config, hydra_context=quick, task_function=task)
        population = Population(plan, launcher)
        status = KILLED
        try:
            population.run_all()
            status = FINISHED
        except Exception:
            status = FAILED
            raise
        finally:
            finish(population, status)


def finish(population: "Population", status: str) -> None:
    """The report on the generations that have ended, and where it is; also after Ctrl-C."""
    plan, members = population.plan, population.members
    ended = [generation for generation in range(plan.generations) if population.has_ended(generation)]
    if ended:
        try:
            best = lineage.report(plan, members, ended[-1])
            lineage.conclude(plan, members, best, status)
            where = f"it and its ancestors: {plan.folder / 'lineage.png'}"
            print(f"{'best':<16} {best.name}: {plan.monitor} {best.value:.4g}; {where}")
        except Exception as error:  # the members are kept: the same command makes the report again
            log.warning("no report: %s: %s", type(error).__name__, error, exc_info=True)
            status = FAILED if status == FINISHED else status
    if status == FINISHED:
        population.save(finished=True)
    elif status == KILLED:
        print(f"{'interrupted':<16} after {len(members)} runs: the same command goes on with the rest", flush=True)


class Population:
    """Trains generation after generation; what has ended stands in population.json."""

    def __init__(self, plan: Plan, launcher: Any) -> None:
        self.plan, self.launcher, self.settings = plan, launcher, plan.settings
        basic = type(launcher).__name__ == "BasicLauncher"
        self.launch_size = self.settings.n_jobs or (1 if basic else self.settings.population)
        self.last_error: BaseException | None = None
        held = read_json(plan.folder / POPULATION_FILE)
        if held and (different := find_differences(held.get("asked"), plan.spec)):
            name = self.settings.study_name or plan.folder.name
            raise ValueError(f"hydra.sweeper.study_name={name} is for something else: {'; '.join(different)}\n{MISMATCH_HINT}")
        self.members = [Member(**each) for each in held.get("members", ())]
        self.save(finished=bool(held.get("over")))  # from here on the same command finds it
        going_on = f": going on after {len(self.members)} runs" if self.members else ""
        told = f"{plan.generations} generations of {self.settings.interval} steps, {plan.monitor}"
        print(f"{'population':<16} {self.settings.population} members, {told}{going_on}")
        print(f"{'folder':<16} {plan.folder}", flush=True)

    def get_members(self, generation: int) -> list[Member]:
        """Those that have ended, in their order."""
        return sorted((m for m in self.members if m.generation == generation), key=lambda m: m.number)

    def has_ended(self, generation: int) -> bool:
        """Whether all members of a generation have."""
        return len(self.get_members(generation)) == self.settings.population

    def save(self, finished: bool = False) -> None:
        """Whole or not at all."""
        told = {"digest": self.plan.digest, "over": finished, "asked": self.plan.spec}
        write_json(self.plan.folder / POPULATION_FILE, told | {"members": [asdict(member) for member in self.members]})

    def run_all(self) -> None:
        """Raises ValueError where all members of a generation failed; the same command tries that generation again."""
        began, first = time.monotonic(), len(self.members)
        for generation in range(self.plan.generations):
            members = self.run_generation(generation)
            if all(member.value is None for member in members):
                self.members = [member for member in self.members if member.generation != generation]
                self.save()
                told = f"all {len(members)} members of generation {generation} failed, the last with: {members[-1].error}"
                raise ValueError(f"hydra/sweeper=pbt: {told}") from self.last_error
            runs = self.settings.population * (self.plan.generations - generation - 1)
            if len(self.members) > first:
                self.print_progress(members, runs * (time.monotonic() - began) / (len(self.members) - first))
            reasons = {member.stop for member in members if member.value is not None}
            if all(reasons) and generation < self.plan.generations - 1:
                print(f"{'population':<16} no member goes on: {', '.join(sorted(reasons))}", flush=True)
                return

    def run_generation(self, generation: int) -> list[Member]:
        """Run who has not ended yet."""
        s, parameters = self.settings, self.plan.space.parameters
        before = self.get_members(generation - 1)
        planned = (
            evolve_generation(before, parameters, s, self.plan.maximize)
            if generation
            else create_first_generation(parameters, s)
        )
        ended = {member.number for member in self.get_members(generation)}
        left = [member for member in planned if member.number not in ended]
        for start in range(0, len(left), self.launch_size):
            self.run(left[start : start + self.launch_size])
        return self.get_members(generation)

    def run(self, members: list[Member]) -> None:
        """Launch some, and write down what came of them. Where a signal ends this process, they stay to be gone on with."""
        first = members[0].generation * self.settings.population + members[0].number
        lines = [self.build_overrides(member) for member in members]
        returns: Sequence[JobReturn] = self.launcher.launch(lines, initial_job_idx=first)
        for member, result in zip(members, returns, strict=True):
            self.record_result(member, result)
        uri = OmegaConf.select(self.plan.config, "tracker.uri")
        lineage.tag_runs(uri, members, self.get_members(members[0].generation - 1))
        self.members += members
        self.save()

    def build_overrides(self, member: Member) -> list[str]:
        """What a member's run is started with: it goes on where it was killed, or from the last checkpoint of its ancestors."""
        folder, end = self.plan.folder / member.name, self.plan.get_last_step(member.generation)
        lines = [*self.plan.space.to_overrides(member.params), f"hydra.sweep.subdir={member.name}"]
        lines.append(f"++hydra.job.env_set.{TRIAL_ENV_VAR}='{{}}'")  # the screen is the sweep's
        if list_checkpoints(folder):
            lines.append("resume.path=auto")
        else:
            (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed before it could save
            if member.parent is not None:
                parent = next(m for m in self.get_members(member.generation - 1) if m.number == member.parent)
                source = lineage.select_trained(lineage.trace_ancestry(self.members, parent))[
                    -1
                ]  # who took no step saved nothing
                lines.append(f"resume.path={to_override(str(self.plan.folder / source.name))}")
        if end < self.plan.steps:
            lines += ["++callbacks.pause._target_=research.callbacks.pause.Pause", f"++callbacks.pause.step={end}"]
        return lines

    def record_result(self, member: Member, result: JobReturn) -> None:
        """How the member stands at the end of the generation, or why it failed."""
        from research.callbacks.pause import describe_pause  # torch comes with it

        summary = read_json(self.plan.folder / member.name / "summary.json")
        member.run_id, member.steps = summary.get("mlflow_run_id"), summary.get("steps") or 0
        try:
            _ = result.return_value
            member.value = summary["metrics"][self.plan.monitor]
            member.best = summary["best"][self.plan.monitor]
            stop, paused = summary["stop"], describe_pause(self.plan.get_last_step(member.generation))
            member.stop = stop if stop != paused else ""
            member.error = "" if member.value is not None else f"{self.plan.monitor} is not a number"
        except Exception as error:  # whatever the run raised is this member's affair alone
            self.last_error, member.error = error, f"{type(error).__name__}: {error}"[:500]
        params = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in member.params.items())
        told = member.error.partition("\n")[0] if member.error else f"{self.plan.monitor} {member.value:.4g}"
        copied = f" (from m{member.parent})" if member.parent not in (None, member.number) else ""
        print(f"{'member':<16} {member.name}{copied} {params}: {told}", flush=True)

    def print_progress(self, members: list[Member], left: float) -> None:
        """One line after each generation."""
        best = rank_members(members, self.plan.maximize)[0]
        values = [member.value for member in members if member.value is not None]
        copies = sum(member.parent not in (None, member.number) for member in members)
        told = f"best {best.value:.4g} ({best.name}), median {statistics.median(values):.4g}, {copies} copies"
        print(f"{'generation':<16} {best.generation} at step {best.steps}: {told}, about {left:.0f} s left", flush=True)
