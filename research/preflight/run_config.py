"""The run that a composed configuration stands for: its name, its folder, and what it is resumed from."""

import copy
import os
import re
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from research import rules, run_dir
from research.cli import redact
from research.composition.complete import complete
from research.composition.recorded import list_differences, load_config
from research.contracts import contract
from research.options.conf import find_target, list_groups, read_yaml
from research.options.finetuning import get_kind
from research.preflight.folders import check_subdir
from research.preflight.resume import check_same_run
from research.run_dir import SWEPT_ENV_VAR, TRIAL_ENV_VAR, RunConfig
from research.signals import get_launched_ranks
from research.tracking.fields import join_name

NAMED_KEYS = ("name", "model", "optim", "seed", "local")  # what a run's name does not repeat


@contract
def complete_config(cfg: DictConfig) -> DictConfig:
    """Return a copy with what the run starts from and learns from. Raise ValueError where that does not go with it."""
    hydra = HydraConfig.get()
    typed = [line.lstrip("+~").partition("=")[0].partition("@")[0] for line in hydra.overrides.task]
    composed = cast(dict[str, Any], OmegaConf.to_container(cfg))
    choices = cast(dict[str, Any], OmegaConf.to_container(hydra.runtime.choices))
    settings, _, conflict = complete(composed, typed, choices, is_final=True)
    rules.enforce(conflict)
    copied = copy.deepcopy(cfg)
    with open_dict(copied):
        for key, value in settings.items():
            OmegaConf.update(copied, key, value, merge=False)
    return copied


@contract
def build_run_config(cfg: DictConfig) -> RunConfig:
    """Return what was requested, in plain types and without passwords, with a name that tells this run from its neighbours."""
    rules.enforce(rules.check_name(str(cfg.name)))
    hydra = HydraConfig.get()
    overrides = redact(list(hydra.overrides.task))
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if "hydra/" not in k}
    values = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    swept = {key: values[key] for key in os.environ.get(SWEPT_ENV_VAR, "").split(",") if key in values}
    is_multirun = hydra.mode == RunMode.MULTIRUN
    name = " ".join(f"{k}={v}" for k, v in swept.items()) or build_name(choices, values, cfg)
    config = redact(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    folder, resume = Path(hydra.runtime.output_dir).resolve(), None
    in_sweep, has_checkpoints = TRIAL_ENV_VAR in os.environ, bool(run_dir.list_checkpoints(folder))
    continues = has_checkpoints and (cfg.resume.path == "auto" or in_sweep)  # a trial that was killed, wherever it began
    if continues or cfg.resume.path == "auto":
        rules.enforce(check_same_run(folder, config, is_multirun))  # the trials of a sweep have not been through the preflight
    if continues:
        resume = folder
    elif cfg.resume.path == "auto" and get_launched_ranks()[0] == 0 and not is_multirun:
        print(f"resume=auto: no checkpoint of a run with this very configuration below {folder.parent}: a fresh start")
        if text := describe_newest_run(folder, config):
            print(f"resume=auto: {text}; give resume=FOLDER to go on with it")
    elif cfg.resume.path and cfg.resume.path != "auto":
        resume = run_dir.expand_path(cfg.resume.path).resolve()
    sweep_folder = Path(hydra.sweep.dir).resolve() if is_multirun else None
    if sweep_folder:
        rules.enforce(check_subdir(os.path.relpath(folder, sweep_folder)))
    is_own = resume is not None and folder == run_dir.to_run_folder(resume)
    return RunConfig(
        name=name,
        study=cfg.name,
        folder=folder,
        config=config,
        overrides=overrides,
        choices=choices,
        sweep_folder=sweep_folder,
        swept_values=swept,
        in_sweep=in_sweep,
        resume=resume,
        resumed=continues or (is_own and not cfg.resume.weights_only),
    )


def build_name(choices: dict[str, str], values: dict[str, str], cfg: DictConfig) -> str:
    """Return a run's name: model, optimizer and seed, then what else this command line has set that the result depends on."""
    kind = get_kind(cast(dict[str, Any], cfg))  # of fine-tuning
    words = [name_model(choices["model"], cfg) if kind else choices["model"], choices["optim"], f"seed={cfg.seed}"]
    words[1:1] = [kind] if kind else []
    for key, value in values.items():
        # The study has the name of its data.
        is_told = key in NAMED_KEYS or (kind and key == "finetune") or (key, value) == ("data", cfg.name)
        if not is_told and key.split(".")[0] not in run_dir.OUTER_KEYS:
            words.append(f"{key}={value}")
    return join_name(words)


def name_model(option: str, cfg: DictConfig) -> str:
    """Return the option of the model that is fine-tuned: a base brings its own in place of the chosen one."""
    is_full = OmegaConf.select(cfg, "model.linear._target_") == find_target("linear", "full")
    trained = (OmegaConf.select(cfg, "model._target_"), "full" if is_full else "bitnet")

    def describe(name: str) -> tuple[str, str]:
        return find_target("model", name), "".join(re.findall(r"/linear@_global_\.linear: (\w+)", read_yaml("model", name)))

    return next((name for name in (option, *list_groups()["model"]) if describe(name) == trained), option)


def describe_newest_run(folder: Path, settings: dict[str, Any]) -> str:
    """Return the newest run with checkpoints beside a folder, and its other settings; empty where there are none."""
    runs = [run for run in folder.parent.glob("*/") if run != folder and run_dir.list_checkpoints(run)]
    newest = max(runs, key=lambda run: run.stat().st_mtime, default=None)
    differences = list_differences(settings, load_config(newest)[0]) if newest else []
    return f"{newest} has other settings: {'; '.join(map(str, differences[:3]))}" if differences else ""
