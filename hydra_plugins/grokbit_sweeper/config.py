"""Hydra's groups hydra/sweeper, hydra/sweeper/sampler and hydra/sweeper/pruner. Hydra imports this file at every start."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Literal

from hydra_plugins.grokbit_sweeper.sweeper import StudySweeper
from research.sweep.options import PRUNERS, SAMPLERS, make_option
from research.sweep.schema import make_node, register

PUBLISHED_PACKAGE = "hydra_plugins.hydra_optuna_sweeper"


def is_published_installed() -> bool:
    """Return True if hydra-optuna-sweeper is installed; the stand-in below has no spec."""
    loaded = sys.modules.get(PUBLISHED_PACKAGE)
    return (loaded.__spec__ if loaded else find_spec(PUBLISHED_PACKAGE)) is not None


register("hydra/sweeper", "grokbit", {"defaults": ["_self_", {"sampler": None}, {"pruner": None}]} | make_node(StudySweeper))
for name, text in PRUNERS.items():
    register("hydra/sweeper/pruner", name, make_option("optuna.pruners", name, text))
for name, text in SAMPLERS.items():
    if name == "bruteforce" or not is_published_installed():  # the published plugin registers the others itself
        register("hydra/sweeper/sampler", name, make_option("optuna.samplers", name, text))

if not is_published_installed():

    @dataclass(eq=False)
    class OptunaSweeper(StudySweeper):
        """hydra/sweeper=optuna: the defaults of hydra-optuna-sweeper, whose configurations run unchanged."""

        max_failure_rate: float = 0.0
        dedup: Literal["reuse", "resample", "allow"] = "allow"

    # A `_target_` written for the published plugin means this class: Hydra looks it up by this name, then imports that.
    OptunaSweeper.__module__ = f"{PUBLISHED_PACKAGE}.optuna_sweeper"
    sys.modules[PUBLISHED_PACKAGE] = ModuleType(PUBLISHED_PACKAGE)
    vars(sys.modules[PUBLISHED_PACKAGE])["optuna_sweeper"] = SimpleNamespace(OptunaSweeper=OptunaSweeper)
    register(
        "hydra/sweeper", "optuna", {"defaults": ["_self_", {"sampler": "tpe"}, {"pruner": None}]} | make_node(OptunaSweeper)
    )
elif {"-m", "--multirun"} & set(sys.argv):
    message = "hydra-optuna-sweeper is installed: hydra/sweeper=optuna means that plugin, hydra/sweeper=grokbit this one"
    print(f"warning: {message}", file=sys.stderr)
