"""The configuration of each trial, composed once for all trials that differ in plain values only, and their launcher.

Hydra composes every job from its files anew, which is nearly all that a sweep costs between two trials. But a plain value
(key=value, no group and no container) is set after the composition, which does not depend on it. So the composed
configuration of an earlier trial with this trial's values is the same to the last node. Anything else is left to Hydra.
"""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from research.preflight.overrides import to_override
from research.sweep.hydra_private import is_group, update_override_dirname

PER_TRIAL_SETTINGS = ("hydra.job.env_set.", "hydra.sweep.subdir")  # settings of Hydra that change from trial to trial
CACHE_SIZE = 8  # configurations, each of other choices


class Composer:
    """Stands where a launcher expects Hydra's config loader."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.parser = loader, OverridesParser.create()
        self.cache: dict[tuple[str, ...], tuple[DictConfig, list[Override]]] = {}
        # Launchers print overrides: they hold a short value of an environment variable, jobs get the full one.
        self.full_values: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)  # while a launcher unpickles it
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return what Hydra's load_sweep_config does, with the full values of shortened environment variables."""
        composed = self._compose(master_config, sweep_overrides)
        for name, short in composed.hydra.job.env_set.items():
            if short in self.full_values:
                composed.hydra.job.env_set[name] = self.full_values[short]
        return composed

    def make_launcher(self, config: DictConfig, context: HydraContext, folder: Path | None, task: TaskFunction) -> Any:
        """Return the launcher that `config` chooses, with this composer; `folder` becomes the folder of its jobs."""
        if folder is not None:
            with read_write(config.hydra), open_dict(config):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={to_override(str(folder))}")
                config.hydra.sweep.dir = str(folder)
        own = HydraContext(config_loader=cast(ConfigLoader, self), callbacks=context.callbacks)
        return Plugins.instance().instantiate_launcher(config=config, hydra_context=own, task_function=task)

    def _compose(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        overrides = self.parser.parse_overrides(sweep_overrides)
        key = tuple(self._strip_value(override) for override in overrides)
        if self._has_overlap(overrides):
            return cast(DictConfig, self.loader.load_sweep_config(master_config, sweep_overrides))
        try:
            if key in self.cache:
                return self._apply_values(*self.cache[key], overrides, master_config)
        except Exception:  # a value that does not fit: Hydra's own message is the better one
            del self.cache[key]
        composed: DictConfig = self.loader.load_sweep_config(master_config, sweep_overrides)
        if len(self.cache) == CACHE_SIZE:
            del self.cache[next(iter(self.cache))]  # the oldest
        self.cache[key] = copy.deepcopy(composed), overrides
        return composed

    def _strip_value(self, override: Override) -> str:
        """Return the override without its value where only that may change, or else the complete line."""
        key, value = override.key_or_group, override.value()
        is_plain = override.type is not None and not override.is_delete() and not override.is_add()
        is_plain = is_plain and override.package is None and not override.is_sweep_override()
        is_plain = is_plain and not isinstance(value, dict | list) and not self._is_group(override)
        is_plain = is_plain and (key.startswith(PER_TRIAL_SETTINGS) or not key.startswith("hydra"))
        return f"{override.get_key_element()}=" if is_plain else str(override.input_line)

    def _is_group(self, override: Override) -> bool:
        return "/" in override.key_or_group or is_group(self.loader, override.key_or_group)

    def _has_overlap(self, overrides: list[Override]) -> bool:
        """Return True if two of them set the same key, or a node and a part of it: then their order counts."""
        keys = sorted(f"{override.key_or_group}." for override in overrides if not self._is_group(override))
        return any(after.startswith(before) for before, after in pairwise(keys))

    def _apply_values(
        self, composed: DictConfig, before: list[Override], after: list[Override], master_config: DictConfig
    ) -> DictConfig:
        """Return a copy of `composed`, which has the values `before`, with the values `after`."""
        config = copy.deepcopy(composed)
        lines = {True: config.hydra.overrides.hydra, False: config.hydra.overrides.task}
        for old, new in zip(before, after, strict=True):
            if old.input_line == new.input_line:
                continue
            OmegaConf.update(config, new.key_or_group, new.value(), merge=True, force_add=new.is_force_add())
            recorded = lines[new.is_hydra_override()]
            last = len(recorded) - 1 - list(recorded)[::-1].index(old.input_line)
            recorded[last] = new.input_line
        update_override_dirname(config, after)
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config
