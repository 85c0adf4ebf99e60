"""Connects a training run to its Optuna trial: report, prune.

The sweeper names the trial in the environment. Optuna is imported once there is something to report.
"""

import json
import os
from typing import Any

from research.run_dir import TRIAL_ENV_VAR
from research.tracking.optuna_storage import PRUNED_ATTR, get_storage, instantiate_spec, silence_optuna


class Trial:
    """The trial that this run belongs to. Any of its methods raises what its storage raises while that is unreachable."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import optuna

        self.number, self.id = int(spec["number"]), int(spec["id"])
        self.storage = get_storage(spec["storage"])
        with silence_optuna():
            self.study = optuna.load_study(
                study_name=spec["study"], storage=self.storage, pruner=instantiate_spec(spec["pruner"])
            )

    def report(self, value: float, step: int) -> None:
        """Store the objective at a step. A resumed run may report a step twice: the value is the same."""
        self.storage.set_trial_intermediate_value(self.id, step, value)

    def should_prune(self) -> bool:
        """Return True if the pruner stops this trial; the study keeps a True for later processes of the run."""
        frozen = self.storage.get_trial(self.id)
        if PRUNED_ATTR not in frozen.user_attrs:
            if not self.study.pruner.prune(self.study, frozen):
                return False
            self.storage.set_trial_user_attr(self.id, PRUNED_ATTR, frozen.last_step)
        return True

    def is_pruned(self) -> bool:
        """Return True if an earlier process of this run was pruned."""
        return PRUNED_ATTR in self.storage.get_trial(self.id).user_attrs


def get_current_trial() -> Trial | None:
    """Return the trial that this process runs; None outside of a sweep and in one without a pruner."""
    spec = json.loads(os.environ.get(TRIAL_ENV_VAR) or "{}")
    return Trial(spec) if spec.get("pruner") else None
