"""Every private name of Optuna that this project uses, each behind a function; tests/sweep/test_private.py pins them.

Optuna's public objects do not tell a trial's id in its storage. A lease needs it: it is written by whoever holds the trial,
also where that is no longer the process that asked for it. CMA-ES keeps its state as a pickle in the trials, which may be
another's.
"""

import io
import pickle
from types import SimpleNamespace
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import _cmaes
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from research.contracts import contract

CMA_TYPES = {  # all that a pickle of CMA-ES names; numpy 1 has its own two functions at another place
    *(("cmaes._cma", "CMA"), ("cmaes._sepcma", "SepCMA"), ("cmaes._cmawm", "CMAwM"), ("numpy", "ndarray"), ("numpy", "dtype")),
    *((f"numpy.{core}.multiarray", name) for core in ("_core", "core") for name in ("_reconstruct", "scalar")),
}


@contract
def get_storage(study: Study) -> BaseStorage:
    """Return the storage of a study."""
    return study._storage


@contract
def get_trial_id(trial: Trial | FrozenTrial) -> int:
    """Return a trial's id in its storage, which is not its number in the study."""
    return trial._trial_id


@contract
def enable_stop(study: Study) -> None:
    """Let samplers call `study.stop` outside of `study.optimize`: they do once nothing is left to try."""
    study._thread_local.in_optimize_loop = True


@contract
def has_stopped(study: Study) -> bool:
    """Return True once `study.stop` was called in this process."""
    return bool(study._stop_flag)


@contract
def list_settings(distribution: BaseDistribution) -> dict[str, Any]:
    """Return what a distribution was made from, as low, high, log and step."""
    return distribution._asdict()


@contract
def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return True if the distribution can give this value."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


class OptimizerUnpickler(pickle.Unpickler):
    """Reads the state of CMA-ES, and nothing that could run code."""

    @contract
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a type of CMA_TYPES. Raise ValueError for any other."""
        if (module_name, global_name) not in CMA_TYPES:
            what = f"the study holds a pickle that names {module_name}.{global_name}, which is no part of CMA-ES"
            raise ValueError(f"hydra/sweeper/sampler=cmaes: {what}: it could run code\ngive another hydra.sweeper.study_name")
        return super().find_class(module_name, global_name)


def restrict_unpickling() -> None:
    """Let CMA-ES read from a storage its own state alone: no other sampler of Optuna unpickles anything."""
    reader = SimpleNamespace(dumps=pickle.dumps, loads=lambda content: OptimizerUnpickler(io.BytesIO(content)).load())
    vars(_cmaes)["pickle"] = reader
