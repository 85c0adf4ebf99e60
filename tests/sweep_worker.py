"""One process of a sweep without Hydra: its launcher is a function of the test's."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from sweeping import connect_journal

from research.sweep.compose import Composer
from research.sweep.plan import Plan, make_grid
from research.sweep.ranks import Ranks
from research.sweep.settings import SweepSettings
from research.sweep.space import parse_space
from research.sweep.study import InOrderSampler
from research.sweep.worker import Worker

Job = Callable[[int, Path], float]  # trial number, its folder -> the objective


def make_worker(folder: Path, job: Job, *space: str, **settings: Any) -> Worker:
    """Return a worker of the grid that `space` spans, with its own view of the journal in `folder`."""
    chosen = SweepSettings(**{"plots": False, "n_jobs": 1} | settings)
    parsed = parse_space({}, space or ("x=1,2,3",), {}, None)
    grid = make_grid(chosen, parsed)
    assert grid is not None
    plan = Plan(chosen, parsed, OmegaConf.create(), ["minimize"], grid, len(grid), folder=folder, name="s", storage="journal")
    study = optuna.create_study(
        study_name="s", storage=connect_journal(folder), sampler=InOrderSampler(grid), load_if_exists=True
    )

    def launch(lines: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        return [run_job(job, number, folder / str(number)) for number, _ in enumerate(lines, initial_job_idx)]

    return Worker(plan, study, SimpleNamespace(launch=launch), Ranks(), Composer(None))


def run_job(job: Job, number: int, folder: Path) -> JobReturn:
    """Return what Hydra's launcher returns of a job."""
    result = JobReturn(hydra_cfg=OmegaConf.create({"hydra": {"runtime": {"output_dir": str(folder)}}}))
    try:
        result.return_value, result.status = job(number, folder), JobStatus.COMPLETED
    except Exception as error:
        result.return_value, result.status = error, JobStatus.FAILED
    return result
