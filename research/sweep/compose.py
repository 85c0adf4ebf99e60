"""The configuration of each trial, composed once for all trials that differ in plain values only, and their launcher.

Hydra composes every job from its files anew, which is nearly all that a sweep costs between two trials. But a plain value
(key=value, no group and no container) is set after the composition, which does not depend on it. So the composed
configuration of an earlier trial with this trial's values is the same to the last node. Anything else is left to Hydra.

Private names of Hydra are used in this file only; tests/sweep/test_private.py pins them.
"""

import copy
import logging
import reprlib
import signal
from functools import partial, update_wrapper
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from hydra._internal import config_loader_impl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from research.cli import describe_error
from research.composition.overrides import to_override
from research.contracts import contract
from research.signals import Stopped

PER_TRIAL_SETTINGS = ("hydra.job.env_set.", "hydra.sweep.subdir")  # settings of Hydra that change from trial to trial
SIGNAL_CODES = (129, 130, 143)  # of processes that SIGHUP, SIGINT or SIGTERM has ended
CACHE_SIZE = 8  # configurations, each of other choices
log = logging.getLogger(__name__)


class Composer:
    """Stands where a launcher expects Hydra's config loader."""

    @contract
    def __init__(self, loader: Any) -> None:
        self.loader, self.parser = loader, OverridesParser.create()
        self.cache: dict[tuple[str, ...], tuple[DictConfig, list[str]]] = {}  # with the overrides of the configuration
        # Launchers print overrides: they hold a short value of an environment variable, jobs get the full one.
        self.full_values: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)  # while a launcher unpickles it
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return what Hydra's load_sweep_config does, with the full values of shortened environment variables."""
        config = self._compose(master_config, sweep_overrides)
        for name, short in config.hydra.job.env_set.items():
            if short in self.full_values:
                config.hydra.job.env_set[name] = self.full_values[short]
        return config

    @contract
    def make_launcher(self, config: DictConfig, context: HydraContext, folder: Path | None, task: TaskFunction) -> Any:
        """Return the launcher that `config` chooses, with this composer; `folder` becomes the folder of its jobs."""
        if folder is not None:
            with read_write(config.hydra), open_dict(config):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={to_override(str(folder))}")
                config.hydra.sweep.dir = str(folder)
        own = HydraContext(config_loader=cast(ConfigLoader, self), callbacks=context.callbacks)
        run = update_wrapper(partial(run_task, task), task)
        return Plugins.instance().instantiate_launcher(config=config, hydra_context=own, task_function=run)

    def _compose(self, master_config: DictConfig, lines: list[str]) -> DictConfig:
        overrides = self.parser.parse_overrides(lines)
        key = tuple(f"{o.get_key_element()}=" if self._is_plain(o) else str(o.input_line) for o in overrides)
        if key in self.cache:
            try:
                return apply_values(*self.cache[key], overrides, master_config)
            except Exception as error:  # a value that does not fit: Hydra's own message is the better one
                log.debug("%s is composed anew: %s", lines, error)
                del self.cache[key]
        composed: DictConfig = self.loader.load_sweep_config(master_config, lines)
        if not self._has_overlap(overrides):
            if len(self.cache) == CACHE_SIZE:
                del self.cache[next(iter(self.cache))]  # the oldest
            self.cache[key] = copy.deepcopy(composed), lines
        return composed

    def _is_plain(self, override: Override) -> bool:
        """Return True if only a single value may change."""
        key, is_set = override.key_or_group, override.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD)
        if not is_set or override.package is not None or override.is_sweep_override() or is_group(self.loader, key):
            return False
        is_fixed = key.startswith("hydra") and not key.startswith(PER_TRIAL_SETTINGS)
        return not is_fixed and not isinstance(override.value(), dict | list)

    def _has_overlap(self, overrides: list[Override]) -> bool:
        """Return True if two of them set the same key, or a node and a part of it: then their order counts."""
        keys = sorted(f"{override.key_or_group}." for override in overrides if not is_group(self.loader, override.key_or_group))
        return any(after.startswith(before) for before, after in pairwise(keys))


def run_task(task: TaskFunction, config: DictConfig) -> Any:
    """Return what a job returns. Raise RuntimeError where it calls sys.exit or ends oddly, which fails this job alone.

    Raise as they are what it raises after a signal: that ends the sweep too.
    """
    try:
        return task(config)
    except (Exception, KeyboardInterrupt, Stopped):
        raise
    except SystemExit as error:
        if error.code in SIGNAL_CODES and has_seen_signal(error):
            raise
        raise RuntimeError(f"the job called sys.exit({'' if error.code is None else reprlib.repr(error.code)})") from error
    except BaseException as error:  # as asyncio.CancelledError
        raise RuntimeError(f"the job ended by {describe_error(error)}") from error


def has_seen_signal(error: SystemExit) -> bool:
    """Return whether a signal made a job call sys.exit: one that we or the job caught, or that the job has a handler for."""
    handler = signal.getsignal(int(str(error.code)) - 128)
    is_own = callable(handler) and handler is not signal.default_int_handler
    return is_own or isinstance(error.__context__ or error.__cause__, KeyboardInterrupt | Stopped)


def apply_values(composed: DictConfig, lines: list[str], overrides: list[Override], master_config: DictConfig) -> DictConfig:
    """Return a copy of `composed`, which was composed with `lines`, with the values of `overrides`."""
    config = copy.deepcopy(composed)
    for line, override in zip(lines, overrides, strict=True):
        if line != override.input_line:
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_force_add())
    for kind in ("hydra", "task"):
        own = [str(override.input_line) for override in overrides if override.is_hydra_override() == (kind == "hydra")]
        recorded = cast(list[str], OmegaConf.to_container(config.hydra.overrides[kind]))
        config.hydra.overrides[kind] = recorded[: len(recorded) - len(own)] + own
    update_override_dirname(config, overrides)
    OmegaConf.copy_cache(from_config=master_config, to_config=config)
    return config


@contract
def is_group(loader: Any, name: str) -> bool:
    """Return True if the name is a group's: one of several parts, or one that the config loader knows."""
    return "/" in name or bool(loader.repository.group_exists(name))


def update_override_dirname(config: DictConfig, overrides: list[Override]) -> None:
    """Set hydra.job.override_dirname to what these overrides make it; Hydra 1.4 has an interpolation there instead."""
    join = vars(config_loader_impl).get("get_overrides_dirname")
    if join:
        own = [override for override in overrides if not override.is_hydra_override()]
        config.hydra.job.override_dirname = join(overrides=own, **config.hydra.job.config.override_dirname)
