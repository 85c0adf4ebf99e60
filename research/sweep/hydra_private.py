"""Every private name of Hydra that sweeps use, each behind a function; tests/sweep/test_private.py pins them."""

from typing import Any

from hydra._internal import config_loader_impl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig


def is_group(loader: Any, name: str) -> bool:
    """Return True if the config loader knows a group of this name."""
    return bool(loader.repository.group_exists(name))


def update_override_dirname(config: DictConfig, overrides: list[Override]) -> None:
    """Set hydra.job.override_dirname to what these overrides make it; Hydra 1.4 has an interpolation there instead."""
    join = vars(config_loader_impl).get("get_overrides_dirname")
    if join:
        own = [override for override in overrides if not override.is_hydra_override()]
        config.hydra.job.override_dirname = join(overrides=own, **config.hydra.job.config.override_dirname)
