"""What `hydra.sweeper` takes with hydra/sweeper=pbt. Hydra imports this file at every start: nothing heavy here."""

from dataclasses import asdict

from hydra.core.config_store import ConfigStore

from research.pbt.settings import PopulationConf

# Without its types: research.pbt.settings tells of a wrong one, and of the right one, more clearly than OmegaConf does.
# Once: the process of a launcher may have been given all that was registered.
if "pbt.yaml" not in ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}):
    ConfigStore.instance().store(group="hydra/sweeper", name="pbt", node=asdict(PopulationConf()), provider="grokbit")
