"""The configuration of each trial, composed once for all trials that differ in plain values only.

Hydra composes every job from its files anew, which is nearly all that a sweep costs between two trials. But a plain value
(key=value, no group and no container) is set after the composition, which does not depend on it: so the composed
configuration of an earlier trial with this trial's values is the same to the last node. Anything else is left to Hydra.
"""

import copy
from itertools import pairwise
from typing import Any, cast

from hydra._internal import config_loader_impl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

PER_TRIAL_SETTINGS = ("hydra.job.env_set.", "hydra.sweep.subdir")  # settings of Hydra that change from trial to trial
CACHE_SIZE = 8  # configurations, each of other choices


class Composer:
    """Stands where a launcher expects Hydra's config loader."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.parser = loader, OverridesParser.create()
        self.cache: dict[tuple[str, ...], tuple[DictConfig, list[Override]]] = {}
        self.full_values: dict[str, str] = {}  # what a variable of the environment says in short, and what jobs get for it

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)  # while a launcher unpickles it
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """What Hydra's own load_sweep_config returns, but for variables that overrides say in short: launchers print those."""
        composed = self._compose(master_config, sweep_overrides)
        for name, short in composed.hydra.job.env_set.items():
            if short in self.full_values:
                composed.hydra.job.env_set[name] = self.full_values[short]
        return composed

    def _compose(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        overrides = self.parser.parse_overrides(sweep_overrides)
        mark = tuple(self._strip_value(override) for override in overrides)
        if self._has_overlap(overrides):
            return cast(DictConfig, self.loader.load_sweep_config(master_config, sweep_overrides))
        try:
            if mark in self.cache:
                return self._apply_values(*self.cache[mark], overrides, master_config)
        except Exception:  # a value that does not fit: Hydra's own message is the better one
            del self.cache[mark]
        composed: DictConfig = self.loader.load_sweep_config(master_config, sweep_overrides)
        if len(self.cache) == CACHE_SIZE:
            del self.cache[next(iter(self.cache))]  # the oldest
        self.cache[mark] = copy.deepcopy(composed), overrides
        return composed

    def _strip_value(self, override: Override) -> str:
        """The override without its value, where only that may change; or else the whole of it."""
        key, value = override.key_or_group, override.value()
        plain = override.type is not None and not override.is_delete() and not override.is_add() and override.package is None
        plain = plain and not isinstance(value, dict | list) and not override.is_sweep_override()
        ours = key.startswith(PER_TRIAL_SETTINGS) if key.startswith("hydra") else True
        plain = plain and ours and not self._is_group(override)
        return f"{override.get_key_element()}=" if plain else str(override.input_line)

    def _is_group(self, override: Override) -> bool:
        return "/" in override.key_or_group or bool(self.loader.repository.group_exists(override.key_or_group))

    def _has_overlap(self, overrides: list[Override]) -> bool:
        """Whether two of them set the same key, or a node and a part of it: then their order counts."""
        keys = sorted(f"{override.key_or_group}." for override in overrides if not self._is_group(override))
        return any(after.startswith(before) for before, after in pairwise(keys))

    def _apply_values(
        self, composed: DictConfig, before: list[Override], after: list[Override], master_config: DictConfig
    ) -> DictConfig:
        cfg = copy.deepcopy(composed)
        lines = {True: cfg.hydra.overrides.hydra, False: cfg.hydra.overrides.task}
        for old, new in zip(before, after, strict=True):
            if old.input_line == new.input_line:
                continue
            OmegaConf.update(cfg, new.key_or_group, new.value(), merge=True, force_add=new.is_force_add())
            told = lines[new.is_hydra_override()]
            told[len(told) - 1 - list(told)[::-1].index(old.input_line)] = new.input_line
        named = vars(config_loader_impl).get("get_overrides_dirname")
        if named:  # Hydra 1.4 has an interpolation instead
            ours = [override for override in after if not override.is_hydra_override()]
            cfg.hydra.job.override_dirname = named(overrides=ours, **cfg.hydra.job.config.override_dirname)
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg
