"""The options of Hydra's groups. Samplers and pruners are classes of Optuna by name, for Optuna is not imported here.

An argument that an option lists can be set without `+`; it is null, and so not passed on, unless somebody sets it.
"""

from typing import Any

from research.contracts import contract

TPE = """TPESampler seed consider_prior prior_weight consider_magic_clip consider_endpoints n_startup_trials gamma
n_ei_candidates n_ehvi_candidates weights multivariate group warn_independent_sampling constant_liar constraints_func
categorical_distance_func"""
GENETIC = """seed population_size mutation_prob mutation crossover crossover_prob swapping_prob constraints_func
elite_population_selection_strategy child_generation_strategy after_trial_strategy"""
SAMPLERS = {
    "tpe": TPE,
    "motpe": TPE,  # its name before Optuna 4
    "random": "RandomSampler seed",
    "cmaes": """CmaEsSampler seed x0 sigma0 n_startup_trials independent_sampler warn_independent_sampling
        consider_pruned_trials restart_strategy inc_popsize use_separable_cma popsize with_margin lr_adapt source_trials""",
    "nsgaii": f"NSGAIISampler {GENETIC}",
    "nsgaiii": f"NSGAIIISampler {GENETIC} reference_points dividing_parameter",
    "gp": """GPSampler seed independent_sampler n_startup_trials deterministic_objective constraints_func
        warn_independent_sampling""",
    "qmc": "QMCSampler seed qmc_type scramble independent_sampler warn_asynchronous_seeding warn_independent_sampling",
    "bruteforce": "BruteForceSampler seed avoid_premature_stop",
    "grid": "GridSampler seed _partial_",
}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner n_startup_trials n_warmup_steps interval_steps n_min_trials",
    "percentile": "PercentilePruner percentile n_startup_trials n_warmup_steps interval_steps n_min_trials",
    "successive_halving": "SuccessiveHalvingPruner min_resource reduction_factor min_early_stopping_rate bootstrap_count",
    "hyperband": "HyperbandPruner min_resource max_resource reduction_factor bootstrap_count",
    "patient": "PatientPruner wrapped_pruner patience min_delta",
    "threshold": "ThresholdPruner lower upper n_warmup_steps interval_steps",
    "wilcoxon": "WilcoxonPruner p_threshold n_startup_steps",
}
REQUIRED: dict[str, dict[str, Any]] = {  # arguments that Optuna has no default for
    "percentile": {"percentile": 25.0},
    "patient": {"wrapped_pruner": {"_target_": "optuna.pruners.MedianPruner"}, "patience": 3},
    "wilcoxon": {"p_threshold": 0.1},
}


@contract
def make_option(module: str, name: str, text: str) -> dict[str, Any]:
    """Return the config node of an option whose text is a class of `module` and its arguments."""
    class_name, *arguments = text.split()
    return {"_target_": f"{module}.{class_name}"} | dict.fromkeys(arguments) | REQUIRED.get(name, {})


@contract
def make_node(sweeper: type[Any], **choices: str | None) -> dict[str, Any]:
    """Return the config node of a sweeper: its class as `_target_`, its defaults, and its `choices` of options by group.

    Empty mappings and lists become null, which an override can replace: a config refuses new keys in a mapping.
    """
    settings = {key: None if value in ({}, []) else value for key, value in vars(sweeper()).items()}
    defaults = {"defaults": ["_self_", *({group: option} for group, option in choices.items())]} if choices else {}
    # A sampler is instantiated for each trial, from its own seed, so Hydra must not do it.
    return defaults | {"_target_": f"{sweeper.__module__}.{sweeper.__name__}", "_recursive_": False} | settings
