"""The settings of a sweep as plain values, looked at before anything begins; config.SweeperConf says what each means."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from omegaconf import OmegaConf

Dedup = Literal["reuse", "resample", "allow"]
Reduce = Literal["mean", "median", "min", "max"]
BOUND = re.compile(r"\s*(<=|>=|<|>)\s*([-+.\w]+)\s*")


@dataclass(frozen=True)
class Settings:
    """See config.SweeperConf."""

    sampler: Any
    pruner: Any
    direction: Any
    metrics: tuple[str, ...]
    storage: Any
    study_name: str | None
    home: str | None
    n_trials: int | None
    n_jobs: int | None
    workers: int
    devices: tuple[int, ...]
    max_failure_rate: float
    max_retries: int
    lease: float
    params: dict[str, Any]
    custom_search_space: str | None
    when: dict[str, str]
    constraints: dict[str, str]
    enqueue: tuple[dict[str, Any], ...]
    dedup: Dedup
    repeats: dict[str, Any]
    timeout: float | None
    patience: int | None
    target_value: float | None
    terminator: Any
    dry_run: bool
    plots: bool

    @property
    def is_multi_objective(self) -> bool:
        """Whether there is more than one objective."""
        return len(self.metrics) > 1 or (isinstance(self.direction, list) and len(self.direction) > 1)

    @property
    def has_pruner(self) -> bool:
        """Whether somebody may give a trial up."""
        return self.pruner is not None and not str(self.pruner["_target_"]).endswith("NopPruner")


def parse_settings(raw_settings: Mapping[str, Any]) -> Settings:
    """The settings, checked. Raises ValueError, naming the one that is wrong and what would be right."""
    found: dict[str, Any] = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in raw_settings.items()
    }
    old = found.pop("search_space", None)
    found["params"] = found["params"] or old or {}
    found["metrics"] = (found["metrics"],) if isinstance(found["metrics"], str) else tuple(found["metrics"] or ())
    for key in ("devices", "enqueue"):
        found[key] = tuple(found[key] or ())
    for key in ("when", "constraints"):
        found[key] = found[key] or {}
    if not isinstance(found["repeats"], str):
        found["repeats"] = {"n": 1, "over": "seed", "reduce": "mean"} | dict(found["repeats"] or {})
    for wrong in find_wrong_types(found):
        raise ValueError(f"hydra.sweeper.{wrong}")
    settings = Settings(**{each.name: found[each.name] for each in fields(Settings)})
    for wrong in find_mistakes(settings):
        raise ValueError(f"hydra.sweeper.{wrong}")
    return settings


def find_wrong_types(values: Mapping[str, Any]) -> list[str]:
    """Settings of another kind than they can have: names where a group has the options, texts where keys have values."""
    wrong = [f"{key}={values[key]}: choose an option, as hydra/sweeper/{key}={values[key]}" for key in ("sampler", "pruner")
             if values[key] is not None and (not isinstance(values[key], Mapping) or "_target_" not in values[key])
    ]  # fmt: skip
    shapes = {"params": "{lr: 'interval(0,1)'}", "when": "{optim.lamb: \"optim == 'grokfast'\"}",
              "constraints": "{params: '<= 2e6'}", "repeats": "{n: 3, over: seed}"}  # fmt: skip
    wrong += [f"{key}={values[key]}: give keys and values, as {shape}" for key, shape in shapes.items()
              if values[key] and not isinstance(values[key], Mapping)]  # fmt: skip
    return wrong


def find_mistakes(s: Settings) -> list[str]:
    """What is wrong, each with what would be right."""
    least = {"n_trials": 1, "n_jobs": 1, "workers": 1, "max_retries": 0, "patience": 1}
    wrong = [
        f"{k}={getattr(s, k)}: give {n} or more" for k, n in least.items() if getattr(s, k) is not None and getattr(s, k) < n
    ]
    wrong += [
        f"{k}={getattr(s, k)}: give seconds, more than 0"
        for k in ("timeout", "lease")
        if getattr(s, k) is not None and getattr(s, k) <= 0
    ]
    if not 0 <= s.max_failure_rate <= 1:
        wrong.append(f"max_failure_rate={s.max_failure_rate}: give a share from 0 to 1")
    if s.dedup not in get_args(Dedup):
        wrong.append(f"dedup={s.dedup}: give {', '.join(get_args(Dedup))}")
    if s.repeats["reduce"] not in get_args(Reduce):
        wrong.append(f"repeats.reduce={s.repeats['reduce']}: give {', '.join(get_args(Reduce))}")
    if s.repeats["n"] < 1:
        wrong.append(f"repeats.n={s.repeats['n']}: give 1 or more")
    if s.is_multi_objective and s.has_pruner:
        wrong.append("pruner: a study with several objectives cannot prune; give one objective, or hydra/sweeper/pruner=none")
    if s.is_multi_objective and (s.target_value is not None or s.patience is not None or s.terminator is not None):
        wrong.append("target_value, patience and terminator are for one objective; with several give timeout or n_trials")
    if s.is_multi_objective and s.repeats["n"] > 1:
        wrong.append("repeats: with several objectives give repeats.n=1")
    if len(s.devices) > s.workers:
        wrong.append(
            f"devices={list(s.devices)}: that is more devices than workers; give hydra.sweeper.workers={len(s.devices)}"
        )
    if s.workers > 1 and ("InMemory" in str(s.storage) or str(s.storage) in ("sqlite://", "sqlite:///:memory:")):
        wrong.append(f"storage={s.storage}: workers cannot share one process's memory; leave it out for a journal")
    wrong += [f"constraints.{k}={v}: give a bound, as '<= 2e6'" for k, v in s.constraints.items() if parse_bound(v) is None]
    wrong += [f"enqueue={each}: give configurations, as [{{lr: 1e-3}}]" for each in s.enqueue if not isinstance(each, dict)]
    return wrong


def parse_bound(text: str) -> tuple[str, float] | None:
    """The sign and the number of a constraint."""
    found = BOUND.fullmatch(str(text))
    try:
        return (found[1], float(found[2])) if found else None
    except ValueError:
        return None
