"""Hydra's groups hydra/sweeper, hydra/sweeper/sampler and hydra/sweeper/pruner. Hydra imports this file at every start."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from hydra_plugins.grokbit_sweeper.sweeper import StudySweeper
from research.sweep.options import PRUNERS, SAMPLERS, make_option
from research.sweep.schema import make_node, register

PUBLISHED_PACKAGE = "hydra_plugins.hydra_optuna_sweeper"
IS_PUBLISHED_INSTALLED = find_spec(PUBLISHED_PACKAGE) is not None

register("hydra/sweeper", "grokbit", {"defaults": ["_self_", {"sampler": None}, {"pruner": None}]} | make_node(StudySweeper))
for name, text in PRUNERS.items():
    register("hydra/sweeper/pruner", name, make_option("optuna.pruners", name, text))
for name, text in SAMPLERS.items():
    if name == "bruteforce" or not IS_PUBLISHED_INSTALLED:  # the published plugin registers the others itself
        register("hydra/sweeper/sampler", name, make_option("optuna.samplers", name, text))

if not IS_PUBLISHED_INSTALLED:

    @dataclass(eq=False)
    class OptunaSweeper(StudySweeper):
        """hydra/sweeper=optuna: the defaults of hydra-optuna-sweeper, whose configurations run unchanged."""

        max_failure_rate: float = 0.0
        dedup: Literal["reuse", "resample", "allow"] = "allow"

    # Hydra knows a sweeper by its module and name, so a `_target_` of the published plugin means this class.
    OptunaSweeper.__module__ = f"{PUBLISHED_PACKAGE}.optuna_sweeper"
    register(
        "hydra/sweeper", "optuna", {"defaults": ["_self_", {"sampler": "tpe"}, {"pruner": None}]} | make_node(OptunaSweeper)
    )
elif {"-m", "--multirun"} & set(sys.argv):
    message = "hydra-optuna-sweeper is installed: hydra/sweeper=optuna means that plugin, hydra/sweeper=grokbit this one"
    print(f"warning: {message}", file=sys.stderr)
