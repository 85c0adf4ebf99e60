"""Hydra's groups hydra/sweeper, hydra/sweeper/sampler and hydra/sweeper/pruner. Hydra imports this file at every start."""

import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Literal

from hydra.core.config_store import ConfigStore

from hydra_plugins.grokbit_sweeper.sweeper import PopulationSweeper, StudySweeper
from research.sweep.options import PRUNERS, SAMPLERS, make_node, make_option

PUBLISHED_PACKAGE = "hydra_plugins.hydra_optuna_sweeper"
loaded = sys.modules.get(PUBLISHED_PACKAGE)  # the stand-in below has no spec
is_published_installed = (loaded.__spec__ if loaded else find_spec(PUBLISHED_PACKAGE)) is not None
store = partial(ConfigStore.instance().store, provider="grokbit")

store(group="hydra/sweeper", name="grokbit", node=make_node(StudySweeper, sampler=None, pruner=None))
store(group="hydra/sweeper", name="pbt", node=make_node(PopulationSweeper))
for name, text in PRUNERS.items():
    store(group="hydra/sweeper/pruner", name=name, node=make_option("optuna.pruners", name, text))
for name, text in SAMPLERS.items():
    if name == "bruteforce" or not is_published_installed:  # the published plugin registers the others itself
        store(group="hydra/sweeper/sampler", name=name, node=make_option("optuna.samplers", name, text))

if not is_published_installed:

    @dataclass(eq=False)
    class OptunaSweeper(StudySweeper):
        """hydra/sweeper=optuna: the defaults of hydra-optuna-sweeper, whose configurations run unchanged."""

        max_failure_rate: float = 0.0
        dedup: Literal["reuse", "resample", "allow"] = "allow"

    # A `_target_` written for the published plugin means this class: Hydra looks it up by this name, then imports that.
    OptunaSweeper.__module__ = f"{PUBLISHED_PACKAGE}.optuna_sweeper"
    sys.modules[PUBLISHED_PACKAGE] = ModuleType(PUBLISHED_PACKAGE)
    vars(sys.modules[PUBLISHED_PACKAGE])["optuna_sweeper"] = SimpleNamespace(OptunaSweeper=OptunaSweeper)
    store(group="hydra/sweeper", name="optuna", node=make_node(OptunaSweeper, sampler="tpe", pruner=None))
elif {"-m", "--multirun"} & set(sys.argv):
    message = "hydra-optuna-sweeper is installed: hydra/sweeper=optuna means that plugin, hydra/sweeper=grokbit this one"
    print(f"warning: {message}", file=sys.stderr)
