"""Hydra's option hydra/sweeper=pbt. Hydra imports this file at every start."""

from hydra.core.config_store import ConfigStore

from hydra_plugins.grokbit_pbt.sweeper import PopulationSweeper
from research.sweep.options import make_node

ConfigStore.instance().store(group="hydra/sweeper", name="pbt", node=make_node(PopulationSweeper), provider="grokbit")
