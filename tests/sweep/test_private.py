"""The private names of Optuna and Hydra that sweeps use: a release that changes one fails here, by name."""

from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from program import ROOT

from research.sweep import compose, optuna_private


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study()


def test_a_trial_is_reached_through_its_storage(study: optuna.Study) -> None:
    trial = study.ask()
    trial_id = optuna_private.get_trial_id(trial)
    assert optuna_private.get_trial_id(study.trials[0]) == trial_id
    storage = optuna_private.get_storage(study)
    storage.set_trial_user_attr(trial_id, "lease", {"token": "a"})
    assert storage.get_trial_user_attrs(trial_id) == {"lease": {"token": "a"}}
    assert storage.get_trial(trial_id).number == trial.number


def test_a_running_trial_is_loaded_with_its_values(study: optuna.Study) -> None:
    value = study.ask().suggest_float("x", 0, 1)
    again = optuna.trial.Trial(study, optuna_private.get_trial_id(study.trials[0]))
    assert again.suggest_float("x", 0, 1) == value
    study.tell(again, 1.0)
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_sampler_may_stop_a_study_outside_of_optimize(study: optuna.Study) -> None:
    with pytest.raises(RuntimeError):
        study.stop()
    assert not optuna_private.has_stopped(study)
    optuna_private.enable_stop(study)
    study.stop()
    assert optuna_private.has_stopped(study)


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (FloatDistribution(0.0, 1.0), 0.5, 2.0),
        (IntDistribution(1, 5, step=2), 3, 2),
        (CategoricalDistribution(("a", 1)), "a", "b"),
        (FloatDistribution(0.0, 1.0), 1, "text"),
    ],
)
def test_a_distribution_knows_its_values(distribution: Any, inside: Any, outside: Any) -> None:
    assert optuna_private.contains(distribution, inside)
    assert not optuna_private.contains(distribution, outside)
    settings = optuna_private.list_settings(distribution)
    assert settings.keys() >= (
        {"choices"} if isinstance(distribution, CategoricalDistribution) else {"low", "high", "log", "step"}
    )


def test_hydras_loader_knows_groups_and_names_folders_by_overrides() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert compose.is_group(loader, "model")
        assert not compose.is_group(loader, "lr")
        config = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        compose.update_override_dirname(config, OverridesParser.create().parse_overrides(["lr=0.1"]))
        if "override_dirname" in config.hydra.job:
            assert config.hydra.job.override_dirname in ("lr=0.1", "")
