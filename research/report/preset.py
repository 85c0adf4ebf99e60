"""The best trials of a sweep in yaml: a preset that repeats one, and the file that hydra-optuna-sweeper writes."""

import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from research.cli import UNPRINTABLE
from research.composition.compose import ComposedConfig
from research.composition.overrides import format_command, get_key, parse
from research.contracts import contract
from research.options.conf import CONF, list_groups
from research.report.results import FLOAT, Row, Sweep, parse_value
from research.run_dir import OUTER_KEYS

EXCLUDED_KEYS = (*OUTER_KEYS, "hydra")  # no part of a preset


class QuotingDumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes text in quotes unless it is a plain word: OmegaConf reads more text as numbers than YAML does, as 1e-3."""


def format_preset_command() -> str:
    """Return the line that runs conf/experiment/NAME.yaml of the folder that one is in; only the clone's is read unasked."""
    return format_command(["experiment=NAME"], argv=[] if Path("conf").resolve() == CONF else ["--config-dir", "conf"])


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if re.fullmatch(r"[A-Za-z_][\w /.-]*", text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


QuotingDumper.add_representer(str, _represent_text)


@contract
def dump_yaml(content: dict[str, Any]) -> str:
    return str(yaml.dump(content, Dumper=QuotingDumper, sort_keys=False, allow_unicode=True, width=1000))


class NumberLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads numbers as OmegaConf does."""


NumberLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"{FLOAT.pattern}$"), list("-+.0123456789"))


@contract
def build_preset(sweep: Sweep, row: Row) -> str:
    """Return a conf/experiment/NAME.yaml that repeats a trial: the sweep's fixed overrides, and the trial's parameters."""
    lines = [*(sweep.spec.fixed or []), *(f"{key}={text}" for key, text in row.params.items())]
    defaults, group_choices, config, command_line_only = list[Any](), dict[str, Any](), dict[str, Any](), list[str]()
    # Presets stand before the overrides that change them, and a node before its parts.
    for override in sorted(parse(lines)[0], key=lambda o: (get_key(o) not in ("sweep", "experiment"), get_key(o).count("."))):
        key, value = get_key(override), None if override.is_delete() else override.value()
        names = [name for name in (value if isinstance(value, list) else [value]) if name]
        if re.split(r"[./]", key)[0] in EXCLUDED_KEYS:
            continue
        # A preset can neither delete a key, nor change an item of a list, nor place a group in another package.
        if override.is_delete() or re.search(r"\.\d+(\.|$)|\[|:", key):
            command_line_only.append(str(override.input_line))
        elif key == "sweep":
            for name in names:
                _merge_study_preset(CONF / "sweep" / f"{name}.yaml", defaults, group_choices, config)
        elif key == "experiment":
            defaults += [f"/experiment/{name}" for name in names]
        elif key in list_groups() and not isinstance(value, dict):
            group_choices[f"{'' if override.is_add() else 'override '}/{key}"] = value
        else:
            ComposedConfig(config).set(key, _merge(ComposedConfig(config).get(key), value))
    added = [{key: value} for key, value in group_choices.items() if not key.startswith("override")]
    overridden = [{key: value} for key, value in group_choices.items() if key.startswith("override")]
    content = {"defaults": [*defaults, *added, "_self_", *overridden]} if defaults or group_choices else {}
    head = "\n".join(_list_comments(sweep, row, command_line_only)) + "\n"
    return head + (dump_yaml(content | config) if content or config else "")


def _list_comments(sweep: Sweep, row: Row, command_line_only: Sequence[str]) -> list[str]:
    """Return the first lines of a preset: its package, where it comes from and how to use it."""
    values = ", ".join(f"{name} {value:.6g}" for name, value in zip(sweep.objectives, sweep.compute_mean(row), strict=True))
    lines = ["# @package _global_", f"# {format_preset_command()}: trial {row.number} of {sweep.name}, {values}"]
    lines += ["# Copy this file to conf/experiment/NAME.yaml."]
    key, runs = sweep.spec.repeat_key, len(row.repeats) or len(sweep.repeats[row.number])
    if row.repeats or runs > 1:
        lines += [f"# The value is that of {runs} runs over {key}; this is the first of them."]
    if command_line_only:
        lines += [f"# Give these on the command line, a preset cannot have them: {' '.join(command_line_only)}"]
    return [UNPRINTABLE.sub(" ", line) for line in lines]  # or else the rest of a comment would be settings


def _merge_study_preset(file: Path, defaults: list[Any], group_choices: dict[str, Any], config: dict[str, Any]) -> None:
    """Merge a conf/sweep preset without its search space: with it, `experiment=NAME -m seed=0,1` would search again."""
    content = (yaml.load(file.read_text(encoding="utf-8"), Loader=NumberLoader) or {}) if file.exists() else {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            group_choices |= {key: value for key, value in entry.items() if "hydra/" not in key}
        elif entry != "_self_":
            defaults.append(entry if entry.startswith("/") else f"/sweep/{entry}")
    for key, value in content.items():
        if key != "hydra":
            config[key] = _merge(config.get(key), value)


def _merge(old: Any, value: Any) -> Any:
    """Return a value as the command line sets it: a node is merged into the one that is there."""
    if not (isinstance(old, dict) and isinstance(value, dict)):
        return value
    pairs = [(merged := deepcopy(old), value)]
    while pairs:
        target, source = pairs.pop()
        for key, inner in source.items():
            if isinstance(inner, dict) and isinstance(target.get(key), dict):
                pairs.append((target[key], inner))
            else:
                target[key] = inner
    return merged


@contract
def build_solution(sweep: Sweep) -> dict[str, Any]:
    """Return optimization_results.yaml: hydra-optuna-sweeper's keys, and the trials' numbers, folders and MLflow runs."""
    solutions: list[dict[str, Any]] = []
    for row in sweep.best:
        params = {key: parse_value(text) for key, text in row.params.items()}
        run = {"folder": row.folder, "mlflow_run_id": row.run_ids}
        solutions.append({"params": params, "values": [*sweep.compute_mean(row)], "trial": row.number} | run)
    best = solutions[0]
    first = {"best_trial": best["trial"], "folder": best["folder"], "mlflow_run_id": best["mlflow_run_id"]}
    if sweep.spec.repeat_key in sweep.space:
        first |= {"mean_over": sweep.spec.repeat_key, "runs": len(sweep.repeats[best["trial"]])}
    if len(sweep.directions) == 1:
        return {"name": "optuna", "best_params": best["params"], "best_value": best["values"][0]} | first
    return {"name": "optuna", "solutions": solutions} | first
