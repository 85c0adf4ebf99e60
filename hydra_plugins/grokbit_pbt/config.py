"""Hydra's option hydra/sweeper=pbt. Hydra imports this file at every start."""

from hydra_plugins.grokbit_pbt.sweeper import PopulationSweeper
from research.sweep.schema import make_node, register

register("hydra/sweeper", "pbt", make_node(PopulationSweeper))
