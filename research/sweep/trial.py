"""A trial under way, as its run and its worker see it: report, prune.

The sweeper names a run's trial in the environment. Optuna is imported once there is something to report.
"""

import json
import os
from typing import Any

from research.contracts import contract
from research.run_dir import TRIAL_ENV_VAR
from research.tracking.optuna_storage import PRUNED_ATTR, get_storage, instantiate_spec, silence_optuna


@contract
class Trial:
    """A trial under way. Any of its methods raises what its storage raises while that is unreachable."""

    def __init__(self, study: Any, storage: Any, trial_id: int) -> None:
        self.study, self.storage, self.id = study, storage, trial_id

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
    if not spec.get("pruner"):
        return None
    import optuna

    storage = get_storage(spec["storage"])
    with silence_optuna():
        pruner = instantiate_spec(spec["pruner"], "hydra.sweeper.pruner")
        study = optuna.load_study(study_name=spec["study"], storage=storage, pruner=pruner)
    return Trial(study, storage, int(spec["id"]))
