"""The sweeper that Hydra finds, a shell: Optuna and all else is imported once a sweep begins."""

from dataclasses import dataclass

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from research.sweep.settings import SweepSettings


@dataclass(eq=False)
class StudySweeper(SweepSettings, Sweeper):
    """Optuna studies and grids; its arguments are the settings."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.composed_config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from research.sweep.sweep import run_sweep

        run_sweep(vars(self), arguments, self.composed_config, self.context, self.task)
