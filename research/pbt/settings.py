"""A population's settings as plain values, looked at before anything begins."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

INTEGER_HINT, NUMBER_HINT = "a whole number, as", "a number, as"
HINTS = {
    "params": "a mapping, as {lr: 'interval(1e-4,1e-2)'}",
    "population": f"{INTEGER_HINT} 8",
    "interval": f"{INTEGER_HINT} 100",
    "share": f"{NUMBER_HINT} 0.25",
    "factors": "numbers above 0, as [0.8,1.2]",
    "resample_probability": f"{NUMBER_HINT} 0.25",
    "seed": f"{INTEGER_HINT} 0",
    "n_jobs": f"{INTEGER_HINT} 4, or null",
    "dry_run": "true or false",
}


@dataclass
class PopulationConf:
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846); docs/pbt.md tells when to use it."""

    _target_: str = "hydra_plugins.grokbit_pbt.sweeper.PopulationSweeper"
    params: dict[str, Any] | None = None  # the space: key: choice(..) | range(..) | interval(..) | {type, low, high, ..}
    population: int = 8  # members, [2, inf)
    interval: int = 100  # steps of a generation, fewer than those of the run
    exploit: str = "truncation"  # truncation | tournament: who takes over whose state
    share: float = 0.25  # of the members, (0, 0.5]: with truncation so many of the worst copy so many of the best
    explore: str = "perturb"  # perturb | resample: what a copy does to the parameters
    factors: list[float] = field(default_factory=lambda: [0.8, 1.2])  # perturb: one of them, (0, inf)
    resample_probability: float = 0.25  # resample: how often a parameter is drawn anew, [0, 1]
    direction: str | None = None  # minimize | maximize; null: as `monitor` is better
    seed: int = 0  # every draw is a function of (seed, generation, member)
    n_jobs: int | None = None  # members that the launcher gets at once; null: 1 with the basic launcher, or else all
    study_name: str | None = None  # its folder in home; null: a new one, unless the same command has left one unfinished
    home: str | None = None  # the folder of the sweeps; null: out/name
    dry_run: bool = False  # tell what would be run


def parse_settings(raw_settings: Mapping[str, Any]) -> PopulationConf:
    """The settings, checked. Raises ValueError, naming the one that is wrong and what would be right."""
    plain: dict[str, Any] = {
        k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in raw_settings.items()
    }
    for key, value in plain.items():
        if key in HINTS and not fits(key, value):
            raise ValueError(f"hydra.sweeper.{key}={'null' if value is None else value}: give {HINTS[key]}")
    plain |= {key: float(plain[key]) for key in ("share", "resample_probability") if key in plain}
    plain |= {key: str(plain[key]) for key in ("study_name", "home") if plain.get(key) is not None}
    if "factors" in plain:
        plain["factors"] = [float(each) for each in plain["factors"]]
    settings = PopulationConf(**plain)
    for wrong in find_mistakes(settings):
        raise ValueError(f"hydra.sweeper.{wrong}")
    return settings


def fits(key: str, value: Any) -> bool:
    """Whether the value has the type that the setting asks for."""
    match key:
        case "params":
            return value is None or isinstance(value, dict)
        case "factors":
            return isinstance(value, list | tuple) and all(is_number(each) for each in value)
        case "share" | "resample_probability":
            return is_number(value)
        case "dry_run":
            return isinstance(value, bool)
    return (isinstance(value, int) and not isinstance(value, bool)) or (key == "n_jobs" and value is None)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def find_mistakes(s: PopulationConf) -> list[str]:
    """What is wrong with the settings by themselves."""
    options = {"exploit": ("truncation", "tournament"), "explore": ("perturb", "resample")}
    wrong = [f"{k}={getattr(s, k)}: give {' or '.join(o)}" for k, o in options.items() if getattr(s, k) not in o]
    least = {"population": 2, "interval": 1, "n_jobs": 1}
    wrong += [f"{k}={v}: give {n} or more" for k, n in least.items() if (v := getattr(s, k)) is not None and v < n]
    if not 0 < s.share <= 0.5:
        wrong.append(f"share={s.share}: give more than 0 and at most 0.5, as 0.25 for the worst quarter")
    if not s.factors or min(s.factors) <= 0:
        wrong.append(f"factors={s.factors}: give {HINTS['factors']}")
    if not 0 <= s.resample_probability <= 1:
        wrong.append(f"resample_probability={s.resample_probability}: give a probability from 0 to 1")
    return wrong
