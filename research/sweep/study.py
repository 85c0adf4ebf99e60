"""The study of a sweep: where it is kept, what it is for, who chooses its configurations and who gives trials up."""

import logging
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from research.tracking import optuna_storage
from research.trigger import higher_is_better

Direction = Literal["minimize", "maximize"]
SPEC_ATTR = "grokbit"  # the study's attribute with what it is for
log = logging.getLogger(__name__)


SamplerFactory = Callable[[int], BaseSampler]


class ReseededSampler(BaseSampler):
    """Draws that are a function of (seed, trial, parameter): a study that was killed asks for the same as one that was not."""

    def __init__(
        self, make: Callable[[int], BaseSampler], seed: int, make_independent: Callable[[int], BaseSampler] | None = None
    ) -> None:
        self.make, self.seed, self.make_independent = make, seed, make_independent or make  # alone: draws a parameter by itself
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
        return self.make_independent(self._derive_seed(trial, param_name)).sample_independent(
            study, trial, param_name, param_distribution
        )

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.inner.after_trial(study, trial, state, values)

    def _derive_seed(self, trial: FrozenTrial, name: str = "") -> int:
        spread = np.random.SeedSequence([self.seed, trial.number, zlib.crc32(name.encode())])
        return int(spread.generate_state(1)[0])


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
    """The sampler that a config names; with a seed, one whose draws do not depend on what this process did before."""
    if node is None:
        return None
    if node.get("seed") is None:
        return cast(BaseSampler, instantiate_setting(node, "hydra.sweeper.sampler"))
    seed = int(node["seed"])
    if str(node["_target_"]).endswith("QMCSampler"):  # it counts trials: one seed for all of them
        fixed = instantiate_setting(
            {"independent_sampler": optuna.samplers.RandomSampler(seed), **node}, "hydra.sweeper.sampler"
        )
        return ReseededSampler(lambda _: fixed, seed, optuna.samplers.RandomSampler)
    return ReseededSampler(lambda each: instantiate_setting({**node, "seed": each}, "hydra.sweeper.sampler"), seed)


@contextmanager
def silence_optuna_warnings() -> Iterator[None]:
    """Without Optuna's warnings about its own parts: they were chosen."""
    with warnings.catch_warnings():
        for kind in (ExperimentalWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


def instantiate_setting(node: Mapping[str, Any], setting: str) -> Any:
    """What the node's `_target_` makes. Raises ValueError for arguments that it does not take."""
    try:
        with silence_optuna_warnings():
            return optuna_storage.instantiate_spec(dict(node))
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{setting}: {str(node.get('_target_')).rpartition('.')[2]}: {error}") from error


def parse_directions(requested: Any, metrics: Sequence[str]) -> list[Direction]:
    """One for each objective, as its metric is better where it is one of ours. Raises ValueError for what is no direction."""
    count = len(metrics)
    if requested is None and not any(name.startswith("val/") for name in metrics):
        return ["minimize"] * count
    if requested is None:
        return ["maximize" if name.startswith("val/") and higher_is_better(name) else "minimize" for name in metrics]
    names = [str(getattr(each, "name", each)) for each in (requested if isinstance(requested, list | tuple) else [requested])]
    if wrong := [name for name in names if name not in ("minimize", "maximize")]:
        raise ValueError(f"hydra.sweeper.direction={', '.join(wrong)}: give minimize or maximize, one for each objective")
    if count > 1 and len(names) != count:
        raise ValueError(f"hydra.sweeper.direction={names}: hydra.sweeper.metrics names {count} objectives")
    return cast(list[Direction], names)


def load_or_create_study(
    name: str, storage: Any, sampler: BaseSampler | None, pruner: Any, directions: Sequence[Direction], spec: dict[str, Any]
) -> Study:
    """The study, made where it is not there yet. Raises ValueError where it is for something else."""
    told = redact_url(storage)
    try:
        place = optuna_storage.get_storage(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=name, storage=place, sampler=sampler, pruner=pruner, directions=[*directions], load_if_exists=True
        )
    except Exception as error:  # each kind of storage has its own
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"hydra.sweeper.storage={told} cannot be used: {said[0]}") from error
    found = [way.name.lower() for way in study.directions]
    if found != list(directions):
        raise ValueError(
            f"hydra.sweeper.direction: the study {name} has {', '.join(found)}, not {', '.join(directions)}\n{MISMATCH_HINT}"
        )
    held = study.user_attrs.get(SPEC_ATTR)
    if held is None:
        study.set_user_attr(SPEC_ATTR, spec)
    elif different := find_differences(held, spec):
        raise ValueError(f"hydra.sweeper.study_name={name} is for something else: {'; '.join(different)}\n{MISMATCH_HINT}")
    return study


def redact_url(storage: Any) -> str:
    """A storage without a user's name and password."""
    return re.sub(r"//.*@", "//", re.sub(r"\?.*", "", str(storage)))


MISMATCH_HINT = "give the same again to go on with it, or another hydra.sweeper.study_name"


def find_differences(saved: Any, requested: Any, key: str = "") -> list[str]:
    """What was asked for then and is now, key by key."""
    if isinstance(saved, dict) and isinstance(requested, dict):
        keys = sorted({*saved, *requested})
        return [line for k in keys for line in find_differences(saved.get(k), requested.get(k), f"{key}.{k}".lstrip("."))]
    if isinstance(saved, list) and isinstance(requested, list) and sorted(map(str, saved)) != sorted(map(str, requested)):
        saved, requested = [each for each in saved if each not in requested], [each for each in requested if each not in saved]
    return [] if saved == requested else [f"{key} was {saved}, is {requested}"]


def make_absolute(storage: Any) -> Any:
    """The same storage for jobs that are elsewhere."""
    kind, mark, path = str(storage).partition({"journal": "://", "sqlite": ":///"}.get(str(storage).partition(":")[0], "\n"))
    file = mark and path not in ("", ":memory:") and not isinstance(storage, dict)
    return f"{kind}{mark}{Path(path).expanduser().absolute()}" if file else storage


def get_journal_url(folder: Path) -> str:
    """The storage of a sweep that names none."""
    return f"journal://{folder.absolute() / 'study.journal'}"
