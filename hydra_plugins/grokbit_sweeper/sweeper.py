"""The sweeper that Hydra finds, a shell: Optuna and all else is imported once a sweep begins."""

from collections.abc import Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Optuna studies and grids; config.SweeperConf says what each setting means."""

    def __init__(
        self,
        sampler: Any = None,
        pruner: Any = None,
        direction: Any = None,
        metrics: Any = None,
        storage: Any = None,
        study_name: str | None = None,
        home: str | None = None,
        n_trials: int | None = None,
        n_jobs: int | None = None,
        workers: int = 1,
        devices: Sequence[int] | None = None,
        max_failure_rate: float = 0.0,
        max_retries: int = 2,
        lease: float = 60.0,
        params: Any = None,
        search_space: Any = None,
        custom_search_space: str | None = None,
        when: Any = None,
        constraints: Any = None,
        enqueue: Any = (),
        dedup: str = "allow",
        repeats: Any = None,
        timeout: float | None = None,
        patience: int | None = None,
        target_value: float | None = None,
        terminator: Any = None,
        dry_run: bool = False,
        plots: bool = True,
    ) -> None:
        self.settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.composed_config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from research.sweep.sweep import run_sweep

        run_sweep(self.settings, arguments, self.composed_config, self.context, self.task)
