"""Which classes and functions a `_target_` may name, and the one import of what it names."""

import os
import re
import sysconfig
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from research.contracts import contract
from research.rules import PRESET_GROUPS, Conflict
from research.run_dir import ROOT, TARGETS_ENV_VAR

# Whose classes and functions a composed configuration may name besides the components of conf/: below `hydra`, and elsewhere.
COMPONENT_PACKAGES = (
    *("research.models", "research.nn", "research.optim", "research.data", "research.losses", "research.callbacks"),
    *("research.metrics", "research.distill", "torch.nn", "torch.optim", "torchmetrics"),
)
HYDRA_PACKAGES = (
    *("optuna.samplers", "optuna.pruners", "optuna.storages", "optuna.terminator"),
    *("hydra_plugins", "hydra._internal.core_plugins", "hydra.experimental.callbacks.LogJobReturnCallback"),
)
PROGRAM_PACKAGES = ("research", "hydra_plugins", "benchmarks", "tests")  # below the project folder, yet not the user's


@cache
def list_components() -> frozenset[str]:
    """Return the `_target_`s that the groups of conf/ name."""
    texts = []
    for file in (ROOT / "conf").glob("*/*.yaml"):
        if file.parent.name not in PRESET_GROUPS:
            with suppress(OSError):  # what is no file, or not there, is told where it is chosen
                texts.append(file.read_text(encoding="utf-8", errors="replace"))
    return frozenset(name for text in texts for name in re.findall(r"(?m)^[^#\n]*_target_: ([\w.]+)", text))


@cache
def is_own_module(name: str) -> bool:
    """Return whether a top-level module is the user's own: a file below the project folder that is not an installed one."""
    try:
        spec = find_spec(name) if name and name not in PROGRAM_PACKAGES else None
    except ValueError:  # as for __main__
        return False
    if spec is None or not spec.has_location or spec.origin is None:
        return False  # a folder without __init__.py may be anybody's, as one that runs were copied into
    file, projects = Path(spec.origin).resolve(), {ROOT, Path.cwd().resolve()}
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()} | {root / "outputs" for root in projects}
    is_installed = any(file.is_relative_to(folder) and not ROOT.is_relative_to(folder) for folder in installed)
    return any(file.is_relative_to(root) for root in projects) and not is_installed


@contract
def check_target(key: str, target: str, is_foreign: bool = False, alias: str = "") -> Conflict | None:
    """Return the conflict of a `_target_` that names no component of conf/ and none that GROKBIT_TARGETS adds.

    One that is composed here may also name another of ours, of torch or of the user.

    `is_foreign`: it was read from a run folder, which may be another's. `alias`: the name in the configuration, where `target`
    is what that name stands for.
    """
    more = tuple(filter(None, re.split(r"[,\s]+", os.environ.get(TARGETS_ENV_VAR, ""))))
    packages = more if is_foreign else (*more, *(HYDRA_PACKAGES if key.startswith("hydra.") else COMPONENT_PACKAGES))
    is_named = target in list_components() or any(f"{target}.".startswith(f"{package}.") for package in packages)
    if is_named or (not is_foreign and is_own_module(target.partition(".")[0])):
        return None
    what = f"{key}={alias} is {target}" if alias else f"{key}={target}"
    whose = "Optuna and Hydra" if key.startswith("hydra.") else "torch"
    names = "the components of conf/ alone" if is_foreign else f"components of conf/ and {whose}, and your own modules here"
    why = f"{'what is read from a folder' if is_foreign else 'a configuration'} may name {names}"
    module = target.rpartition(".")[0] or target
    fix = f"if you trust it, set {TARGETS_ENV_VAR}={module}: packages and modules, with commas"
    if not all(map(str.isidentifier, target.split("."))):
        fix = "a _target_ is a name, as package.module.Class"
    return Conflict((key,), f"{what}: {why}", fix)


class TargetRefusedError(ValueError):
    """A `_target_` that a configuration may not name."""


def locate_target(key: str, target: str, is_foreign: bool = False) -> Any:
    """Return the class or function that a `_target_` names. Check the name, import its module, then check what it stands for.

    Raise TargetRefusedError for one that `check_target` refuses, ImportError or AttributeError where there is none.
    """
    if conflict := check_target(key, target, is_foreign):
        raise TargetRefusedError(str(conflict))
    component = resolve_name(target)
    module, name = (getattr(component, attribute, None) for attribute in ("__module__", "__qualname__"))
    own_name = f"{module}.{name}" if module and name else type(component).__name__
    if target not in list_components() and (conflict := check_target(key, own_name, is_foreign, target)):
        raise TargetRefusedError(str(conflict))
    return component
