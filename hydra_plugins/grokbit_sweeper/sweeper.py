"""The sweepers that Hydra finds, shells: Optuna and all else is imported once a sweep begins."""

from dataclasses import dataclass

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from research.contracts import contract
from research.pbt.settings import PopulationSettings
from research.sweep.settings import SweepSettings


class SweeperShell(Sweeper):
    """What both share. It cannot be instantiated, so Hydra does not list it."""

    @contract
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.composed_config = hydra_context, task_function, config


@dataclass(eq=False)
class StudySweeper(SweepSettings, SweeperShell):
    """Optuna studies and grids; its arguments are the settings."""

    @contract
    def sweep(self, arguments: list[str]) -> None:
        from research.sweep.sweep import run_sweep

        run_sweep(vars(self), arguments, self.composed_config, self.context, self.task)


@dataclass(eq=False)
class PopulationSweeper(PopulationSettings, SweeperShell):
    """Population-based training; its arguments are the settings."""

    @contract
    def sweep(self, arguments: list[str]) -> None:
        from research.pbt.population import run_population

        run_population(vars(self), arguments, self.composed_config, self.context, self.task)
