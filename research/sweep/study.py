"""The study of a sweep: what it is for, its sampler, its pruner and its storage."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from research.cli import first_line
from research.tracking.optuna_storage import get_storage, instantiate_spec, silence_optuna
from research.tracking.storage import redact_url
from research.trigger import higher_is_better

Direction = Literal["minimize", "maximize"]
SPEC_ATTR = "grokbit"  # the study's attribute with what it is for
MISMATCH_HINT = "give the same again to resume it, or another hydra.sweeper.study_name"

SamplerFactory = Callable[[int], BaseSampler]  # seed -> sampler


class ReseededSampler(BaseSampler):
    """A sampler whose draws are a function of (seed, trial, parameter): a resumed study draws what it would have drawn."""

    def __init__(self, make: SamplerFactory, seed: int, make_independent: SamplerFactory | None = None) -> None:
        self.make, self.seed, self.make_independent = make, seed, make_independent or make
        self.inner = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner = self.make(self._derive_seed(trial))
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self.make_independent(self._derive_seed(trial, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.inner.after_trial(study, trial, state, values)

    def _derive_seed(self, trial: FrozenTrial, name: str = "") -> int:
        sequence = np.random.SeedSequence([self.seed, trial.number, zlib.crc32(name.encode())])
        return int(sequence.generate_state(1)[0])


class InOrderSampler(BaseSampler):
    """A grid: trial n has combination n."""

    def __init__(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        self.combinations = combinations

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.combinations[trial.number % len(self.combinations)][param_name]


def make_sampler(node: Any) -> BaseSampler | None:
    """Return the sampler that a config names; with a seed its draws do not depend on what this process did before."""
    setting = "hydra.sweeper.sampler"
    if node is None:
        return None
    if node.get("seed") is None:
        return cast(BaseSampler, instantiate_setting(node, setting))
    seed = int(node["seed"])
    if str(node["_target_"]).endswith("QMCSampler"):
        # It counts trials in the study, so all of them need the same seed.
        fixed = instantiate_setting({"independent_sampler": optuna.samplers.RandomSampler(seed), **node}, setting)
        return ReseededSampler(lambda _: fixed, seed, optuna.samplers.RandomSampler)
    return ReseededSampler(lambda derived: instantiate_setting({**node, "seed": derived}, setting), seed)


def instantiate_setting(node: Mapping[str, Any], setting: str) -> Any:
    """Return the object of a `_target_` node. Raises ValueError, naming the setting, for arguments that it does not take."""
    try:
        with silence_optuna():
            return instantiate_spec(dict(node))
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{setting}: {str(node.get('_target_')).rpartition('.')[2]}: {error}") from error


def parse_directions(requested: Any, metrics: Sequence[str]) -> list[Direction]:
    """Return a direction for each objective; a null one is that of its metric. Raises ValueError for what is no direction."""
    count = len(metrics)
    if requested is None:
        # A metric of another program is minimized, as the published plugin does.
        return ["maximize" if name.startswith("val/") and higher_is_better(name) else "minimize" for name in metrics]
    values = requested if isinstance(requested, list | tuple) else [requested]
    names = [str(getattr(value, "name", value)) for value in values]
    if wrong := [name for name in names if name not in ("minimize", "maximize")]:
        raise ValueError(f"hydra.sweeper.direction={', '.join(wrong)}: give minimize or maximize, one for each objective")
    if count > 1 and len(names) != count:
        raise ValueError(f"hydra.sweeper.direction={names}: hydra.sweeper.metrics names {count} objectives; give {count}")
    return cast(list[Direction], names)


def load_or_create_study(
    name: str, storage: Any, sampler: BaseSampler | None, pruner: Any, directions: Sequence[Direction], spec: dict[str, Any]
) -> Study:
    """Return the study of a name, created where it is not there. Raises ValueError if it is for something else."""
    try:
        backend = get_storage(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=name, storage=backend, sampler=sampler, pruner=pruner, directions=[*directions], load_if_exists=True
        )
    except Exception as error:  # each kind of storage raises its own
        raise ValueError(f"hydra.sweeper.storage={redact_url(storage)} cannot be used: {first_line(error)}") from error
    known = [direction.name.lower() for direction in study.directions]
    if known != list(directions):
        raise ValueError(
            f"hydra.sweeper.direction: the study {name} has {', '.join(known)}, not {', '.join(directions)}\n{MISMATCH_HINT}"
        )
    saved = study.user_attrs.get(SPEC_ATTR)
    if saved is None:
        study.set_user_attr(SPEC_ATTR, spec)
    else:
        check_same_spec(name, saved, spec)
    return study


def check_same_spec(name: str, saved: Any, requested: Any) -> None:
    """Raise ValueError with the differences if a study was begun for something else."""
    if differences := find_differences(saved, requested):
        raise ValueError(f"hydra.sweeper.study_name={name} is for something else: {'; '.join(differences)}\n{MISMATCH_HINT}")


def find_differences(saved: Any, requested: Any, key: str = "") -> list[str]:
    """Return what differs between two specs, a line for each key."""
    if isinstance(saved, dict) and isinstance(requested, dict):
        keys = sorted({*saved, *requested})
        return [line for k in keys for line in find_differences(saved.get(k), requested.get(k), f"{key}.{k}".lstrip("."))]
    if isinstance(saved, list) and isinstance(requested, list) and sorted(map(str, saved)) != sorted(map(str, requested)):
        saved, requested = [x for x in saved if x not in requested], [x for x in requested if x not in saved]
    return [] if saved == requested else [f"{key} was {saved}, is {requested}"]


def make_absolute(storage: Any) -> Any:
    """Return the storage with an absolute path, for jobs that run in another folder."""
    kind, separator, path = str(storage).partition(
        {"journal": "://", "sqlite": ":///"}.get(str(storage).partition(":")[0], "\n")
    )
    is_file = separator and path not in ("", ":memory:") and not isinstance(storage, dict)
    return f"{kind}{separator}{Path(path).expanduser().absolute()}" if is_file else storage


def get_journal_url(folder: Path) -> str:
    """Return the storage of a sweep that names none."""
    return f"journal://{folder.absolute() / 'study.journal'}"
