"""The study of a sweep: its sampler, its pruner, its storage, and when it ends before its last trial."""

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, cast

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from research.contracts import contract
from research.options.trigger import NO_DIRECTIONS, higher_is_better
from research.sweep.optuna_private import restrict_unpickling
from research.sweep.settings import SweepSettings
from research.tracking.optuna_storage import instantiate_spec, silence_optuna

Direction = Literal["minimize", "maximize"]
SamplerFactory = Callable[[int], BaseSampler]  # seed -> sampler
MISMATCH_HINT = "give the same again to resume it, or another hydra.sweeper.study_name"


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


class InOrderSampler(RandomSampler):
    """A grid: trial n has combination n."""

    @contract
    def __init__(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.combinations = combinations

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.combinations[trial.number % len(self.combinations)][param_name]


@contract
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
        fixed = instantiate_setting({"independent_sampler": RandomSampler(seed), **node}, setting)
        return ReseededSampler(lambda _: fixed, seed, RandomSampler)
    return ReseededSampler(lambda derived: instantiate_setting({**node, "seed": derived}, setting), seed)


@contract
def instantiate_setting(node: Mapping[str, Any], setting: str) -> Any:
    """Return the object of a `_target_` node. Raise ValueError, naming the setting, for arguments that it does not take."""
    restrict_unpickling()
    try:
        with silence_optuna():
            return instantiate_spec(dict(node), setting)
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{setting}: {str(node.get('_target_')).rpartition('.')[2]}: {error}") from error


def parse_directions(requested: Any, metrics: Sequence[str], own: Mapping[str, bool] = NO_DIRECTIONS) -> list[Direction]:
    """Return a direction for each objective; a null one is that of its metric, by `own` or else its name.

    Raise ValueError for what is no direction.
    """
    if requested is None:
        # A metric of another program is minimized, as the published plugin does.
        return ["maximize" if name.startswith("val/") and higher_is_better(name, own) else "minimize" for name in metrics]
    values = requested if isinstance(requested, list | tuple) else [requested]
    names = [str(getattr(value, "name", value)) for value in values]
    if wrong := [name for name in names if name not in ("minimize", "maximize")]:
        raise ValueError(f"hydra.sweeper.direction={', '.join(wrong)}: give minimize or maximize, one for each objective")
    if len(names) != len(metrics) > 1:
        count = len(metrics)
        raise ValueError(f"hydra.sweeper.direction={names}: hydra.sweeper.metrics names {count} objectives; give {count}")
    return cast(list[Direction], names)


@contract
def check_same_spec(name: str, saved: Any, requested: Any) -> None:
    """Raise ValueError with the differences if a study was begun for something else."""
    if differences := find_differences(saved, requested):
        raise ValueError(f"hydra.sweeper.study_name={name} is for something else: {'; '.join(differences)}\n{MISMATCH_HINT}")


@contract
def find_differences(saved: Any, requested: Any, key: str = "") -> list[str]:
    """Return what differs between two specs, a line for each key."""
    lines, left = list[str](), [(key, saved, requested)]
    while left:
        key, old, new = left.pop()
        if isinstance(old, dict) and isinstance(new, dict):
            names = sorted({*old, *new}, reverse=True)
            left += [(f"{key}.{name}".lstrip("."), old.get(name), new.get(name)) for name in names]
            continue
        if isinstance(old, list) and isinstance(new, list) and sorted(map(str, old)) != sorted(map(str, new)):
            old, new = [item for item in old if item not in new], [item for item in new if item not in old]
        lines += [] if old == new else [f"{key} was {old}, is {new}"]
    return lines


@contract
class Stopping:
    """When a study ends before its last trial; `get_reason` is called before each trial."""

    def __init__(self, settings: SweepSettings, start_time: float) -> None:
        self.settings, self.start_time = settings, start_time  # in seconds since the epoch: the same in all workers
        self.terminator = instantiate_setting(settings.terminator, "hydra.sweeper.terminator") if settings.terminator else None

    def get_reason(self, study: Study) -> str:
        """Return why no other trial begins; an empty text while there is no reason."""
        s = self.settings
        if s.timeout is not None and time.time() - self.start_time >= s.timeout:
            return f"timeout: {s.timeout:g} s are over"
        if s.target_value is None and s.patience is None and self.terminator is None:
            return ""
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        best, since = math.inf, 0  # the best loss, and the trials that have ended after it
        for trial in sorted(ended, key=lambda trial: trial.datetime_complete or datetime.max):
            loss = sign * trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else math.inf
            best, since = (loss, 0) if loss < best else (best, since + 1)
        if s.target_value is not None and best <= sign * s.target_value:
            return f"target_value: {sign * best:g} reached {s.target_value:g}"
        if s.patience is not None and since >= s.patience:
            return f"patience: {since} trials in a row were no better than {sign * best:g}"
        with silence_optuna():
            should_end = self.terminator is not None and best < math.inf and self.terminator.should_terminate(study)
        return "terminator: no improvement is to be expected" if should_end else ""
