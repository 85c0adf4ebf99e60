"""What `hydra.sweeper` takes, as Hydra's config groups know it. Hydra imports this file at every start: nothing heavy here."""

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.grokbit_sweeper.sweeper import StudySweeper

PUBLISHED_PACKAGE = "hydra_plugins.hydra_optuna_sweeper"


@dataclass
class Repeats:
    """Each configuration is run so many times; the objective is reduced over them."""

    n: int = 1
    over: str = "seed"  # the key that counts up from its value
    reduce: str = "mean"  # mean | median | min | max


@dataclass
class SweeperConf:
    """hydra/sweeper=grokbit. Only `sampler`, `pruner` and the storage know Optuna; what is null has Optuna's default."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"sampler": None}, {"pruner": None}])
    _target_: str = "hydra_plugins.grokbit_sweeper.sweeper.StudySweeper"
    _recursive_: bool = False  # a sampler is built for each trial, from its own seed

    sampler: Any = None  # group hydra/sweeper/sampler; null: a grid where all is choices and ranges, or else TPE
    pruner: Any = None  # group hydra/sweeper/pruner; null: every trial runs to its end
    direction: Any = None  # minimize | maximize, or a list of them; null: as `monitor` is better, or else minimize
    metrics: Any = None  # names in summary.json or in the dict that a job returns; null: the number that it returns
    storage: Any = None  # a URL (journal:// sqlite:// postgresql:// redis:// grpc://) or a _target_; null: a journal file
    study_name: str | None = None  # null: a new one, unless the same command has left one that is not finished
    home: str | None = None  # the folder of the sweeps; null: out/name where the configuration has these
    n_trials: int | None = None  # of the study in all; null: the whole grid, or else 20
    n_jobs: int | None = None  # jobs that the launcher gets at once; null: 1 with the basic launcher, or else 2
    workers: int = 1  # processes of this machine that run trials, none waiting for another
    devices: list[int] | None = None  # a GPU for each worker, in turn; null: CUDA_VISIBLE_DEVICES as it is
    max_failure_rate: float = 0.5  # of n_trials; more failed trials end the sweep
    max_retries: int = 2  # times that a trial whose process died goes on where it stopped
    lease: float = 60.0  # seconds without a sign of life after which a trial on another machine is given up
    params: Any = None  # the space: key: choice(..) | range(..) | interval(..) | {type, low, high, ..}
    search_space: Any = None  # the old name of params
    custom_search_space: str | None = None  # module.function(cfg, trial) that suggests more
    when: Any = None  # key: expression of other keys; the parameter is there only where it holds
    constraints: Any = None  # metric: "<= 2e6"
    enqueue: list[Any] = field(default_factory=list)  # configurations to begin with, each key: value
    dedup: str = "reuse"  # a configuration that was run before: reuse | resample | allow
    repeats: Repeats = field(default_factory=Repeats)
    timeout: float | None = None  # seconds after which no trial begins
    patience: int | None = None  # trials in a row that are no better than the best
    target_value: float | None = None  # end once a trial has reached it
    terminator: Any = None  # an optuna.terminator.Terminator as _target_
    dry_run: bool = False  # tell what would be run
    plots: bool = True  # pictures in the report


@dataclass
class OptunaConf(SweeperConf):
    """hydra/sweeper=optuna, as the published hydra-optuna-sweeper has it: configurations written for that run unchanged."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"sampler": "tpe"}, {"pruner": None}])
    _target_: str = f"{PUBLISHED_PACKAGE}.optuna_sweeper.OptunaSweeper"
    max_failure_rate: float = 0.0
    dedup: str = "allow"


def make_node(target: str, arguments: tuple[str, ...], preset: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config whose arguments are null unless they are set: those that stay so are not passed on."""
    return {"_target_": target} | dict.fromkeys(arguments) | (preset or {})


TPE_ARGUMENTS = (
    "seed", "consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints", "n_startup_trials", "gamma",
    "n_ei_candidates", "n_ehvi_candidates", "weights", "multivariate", "group", "warn_independent_sampling",
    "constant_liar", "constraints_func", "categorical_distance_func",
)  # fmt: skip
GENETIC_ARGUMENTS = ("seed", "population_size", "mutation_prob", "mutation", "crossover", "crossover_prob", "swapping_prob",
           "constraints_func", "elite_population_selection_strategy", "child_generation_strategy",
           "after_trial_strategy")  # fmt: skip
SAMPLERS = {
    "tpe": ("TPESampler", TPE_ARGUMENTS),
    "motpe": ("TPESampler", TPE_ARGUMENTS),  # its name before Optuna 4
    "random": ("RandomSampler", ("seed",)),
    "cmaes": ("CmaEsSampler", ("seed", "x0", "sigma0", "n_startup_trials", "independent_sampler", "warn_independent_sampling",
                               "consider_pruned_trials", "restart_strategy", "inc_popsize", "use_separable_cma", "popsize",
                               "with_margin", "lr_adapt", "source_trials")),
    "nsgaii": ("NSGAIISampler", GENETIC_ARGUMENTS),
    "nsgaiii": ("NSGAIIISampler", (*GENETIC_ARGUMENTS, "reference_points", "dividing_parameter")),
    "gp": ("GPSampler", ("seed", "independent_sampler", "n_startup_trials", "deterministic_objective", "constraints_func",
                         "warn_independent_sampling")),
    "qmc": ("QMCSampler", ("seed", "qmc_type", "scramble", "independent_sampler", "warn_asynchronous_seeding",
                           "warn_independent_sampling")),
    "bruteforce": ("BruteForceSampler", ("seed", "avoid_premature_stop")),
    "grid": ("GridSampler", ("seed", "_partial_")),
}  # fmt: skip
PRUNERS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "none": ("NopPruner", (), {}),
    "median": ("MedianPruner", ("n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials"), {}),
    "percentile": ("PercentilePruner", ("n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials"),
                   {"percentile": 25.0}),
    "successive_halving": ("SuccessiveHalvingPruner", ("min_resource", "reduction_factor", "min_early_stopping_rate",
                                                       "bootstrap_count"), {}),
    "hyperband": ("HyperbandPruner", ("min_resource", "max_resource", "reduction_factor", "bootstrap_count"), {}),
    "patient": ("PatientPruner", ("min_delta",),
                {"wrapped_pruner": {"_target_": "optuna.pruners.MedianPruner"}, "patience": 3}),
    "threshold": ("ThresholdPruner", ("lower", "upper", "n_warmup_steps", "interval_steps"), {}),
    "wilcoxon": ("WilcoxonPruner", ("n_startup_steps",), {"p_threshold": 0.1}),
}  # fmt: skip


def is_published_installed() -> bool:
    """Whether the published plugin is installed; our own stand-in is none."""
    if PUBLISHED_PACKAGE in sys.modules:
        return "stand_in" not in sys.modules[PUBLISHED_PACKAGE].__dict__
    return find_spec(PUBLISHED_PACKAGE) is not None


def install_stand_in() -> type[StudySweeper]:
    """The published plugin's modules with our sweeper in them: a `_target_` that was written for it finds this one."""
    package, module = ModuleType(PUBLISHED_PACKAGE), ModuleType(f"{PUBLISHED_PACKAGE}.optuna_sweeper")
    own = type("OptunaSweeper", (StudySweeper,), {"__module__": module.__name__, "__doc__": StudySweeper.__doc__})
    package.__dict__.update(stand_in=True, __path__=[], optuna_sweeper=module)
    module.__dict__.update(OptunaSweeper=own)
    sys.modules.update({package.__name__: package, module.__name__: module})
    return own


def register_option(group: str, name: str, node: Any) -> None:
    """An option of a group, once: the process of a launcher may have been given all that was registered."""
    known: Any = ConfigStore.instance().repo
    for part in group.split("/"):
        known = known.get(part, {})
    if f"{name}.yaml" not in known:
        ConfigStore.instance().store(group=group, name=name, node=node, provider="grokbit")


def register() -> None:
    """The groups hydra/sweeper, hydra/sweeper/sampler and hydra/sweeper/pruner; what the published plugin has stays its own."""
    register_option("hydra/sweeper", "grokbit", SweeperConf)
    for name, (target, arguments, preset) in PRUNERS.items():
        register_option("hydra/sweeper/pruner", name, make_node(f"optuna.pruners.{target}", arguments, preset))
    theirs = is_published_installed()
    for name, (target, arguments) in SAMPLERS.items():
        if name == "bruteforce" or not theirs:
            register_option("hydra/sweeper/sampler", name, make_node(f"optuna.samplers.{target}", arguments))
    if not theirs:
        register_option("hydra/sweeper", "optuna", OptunaConf)


register()
if not is_published_installed():
    OptunaSweeper = install_stand_in()  # Hydra knows the sweepers that it finds in modules, by their names
elif {"-m", "--multirun"} & set(sys.argv):
    message = "hydra-optuna-sweeper is installed: hydra/sweeper=optuna means that plugin, hydra/sweeper=grokbit this one"
    print(f"warning: {message}", file=sys.stderr)
