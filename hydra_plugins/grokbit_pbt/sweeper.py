"""The sweeper that Hydra finds, a shell: all else is imported once a sweep begins."""

from collections.abc import Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PopulationSweeper(Sweeper):
    """Population-based training; config.PopulationConf says what each setting means."""

    def __init__(
        self,
        params: Any = None,
        population: int = 8,
        interval: int = 100,
        exploit: str = "truncation",
        share: float = 0.25,
        explore: str = "perturb",
        factors: Sequence[float] = (0.8, 1.2),
        resample_probability: float = 0.25,
        direction: str | None = None,
        seed: int = 0,
        n_jobs: int | None = None,
        study_name: str | None = None,
        home: str | None = None,
        dry_run: bool = False,
    ) -> None:
        self.settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.composed_config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from research.pbt.population import run_population

        run_population(self.settings, arguments, self.composed_config, self.context, self.task)
