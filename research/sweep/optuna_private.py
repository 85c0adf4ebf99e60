"""Every private name of Optuna that this project uses, each behind a function; tests/sweep/test_private.py pins them.

Optuna's public objects do not tell a trial's id in its storage. A lease needs it: it is written by whoever holds the trial,
also where that is no longer the process that asked for it.
"""

from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial


def get_storage(study: Study) -> BaseStorage:
    """Return the storage of a study."""
    return study._storage


def get_trial_id(trial: Trial | FrozenTrial) -> int:
    """Return a trial's id in its storage, which is not its number in the study."""
    return trial._trial_id


def enable_stop(study: Study) -> None:
    """Let samplers call `study.stop` outside of `study.optimize`: they do once nothing is left to try."""
    study._thread_local.in_optimize_loop = True


def has_stopped(study: Study) -> bool:
    """Return True once `study.stop` was called in this process."""
    return bool(study._stop_flag)


def list_settings(distribution: BaseDistribution) -> dict[str, Any]:
    """Return what a distribution was made from, as low, high, log and step."""
    return distribution._asdict()


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return True if the distribution can give this value."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False
