"""The sweeper that Hydra finds, a shell: all else is imported once a sweep begins."""

from dataclasses import dataclass

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from research.pbt.settings import PopulationSettings


@dataclass(eq=False)
class PopulationSweeper(PopulationSettings, Sweeper):
    """Population-based training; its arguments are the settings."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.composed_config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from research.pbt.population import run_population

        run_population(vars(self), arguments, self.composed_config, self.context, self.task)
