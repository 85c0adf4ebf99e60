"""The best trials of a sweep in yaml: a preset that repeats one, and the file that hydra-optuna-sweeper writes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from research.preflight.help import CONF, list_groups
from research.preflight.overrides import get_key, parse
from research.report.results import FLOAT, INT, Row, Sweep, parse_value

EXCLUDED_KEYS = ("out", "tracker", "resume", "hydra")  # where a run goes and who watches it: no part of a preset


class QuotingDumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes text in quotes unless it is a plain word: OmegaConf reads more text as numbers than YAML does, as 1e-3."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if re.fullmatch(r"[A-Za-z_][\w /.-]*", text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


QuotingDumper.add_representer(str, _represent_text)


def dump_yaml(content: dict[str, Any]) -> str:
    return str(yaml.dump(content, Dumper=QuotingDumper, sort_keys=False, allow_unicode=True, width=1000))


class NumberLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads numbers as OmegaConf does."""


for _kind, _number in (("float", FLOAT), ("int", INT)):
    NumberLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"{_number.pattern}$"), list("-+.0123456789"))


def build_preset(sweep: Sweep, row: Row) -> str:
    """Return a conf/experiment/NAME.yaml that repeats a trial: the sweep's fixed overrides, and the trial's parameters."""
    lines = [*(sweep.spec.fixed or []), *(f"{key}={text}" for key, text in row.params.items())]
    defaults, group_choices, config, command_line_only = list[Any](), dict[str, Any](), dict[str, Any](), list[str]()
    for override in sorted(parse(lines)[0], key=_sort_key):
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
            _set_key(config, key.split("."), value)
    added = [{key: value} for key, value in group_choices.items() if not key.startswith("override")]
    overridden = [{key: value} for key, value in group_choices.items() if key.startswith("override")]
    content = {"defaults": [*defaults, *added, "_self_", *overridden]} if defaults or group_choices else {}
    head = "\n".join(_list_comments(sweep, row, command_line_only)) + "\n"
    return head + (dump_yaml(content | config) if content or config else "")


def _list_comments(sweep: Sweep, row: Row, command_line_only: Sequence[str]) -> list[str]:
    """Return the first lines of a preset: its package, where it comes from and how to use it."""
    values = ", ".join(f"{name} {value:.6g}" for name, value in zip(sweep.objectives, sweep.compute_mean(row), strict=True))
    lines = ["# @package _global_", f"# python train.py experiment=NAME: trial {row.number} of {sweep.name}, {values}"]
    lines += ["# Copy this file to conf/experiment/NAME.yaml."]
    key, runs = sweep.repeat_key, len(row.repeats) or len(sweep.repeat_groups[row.number])
    if row.repeats or runs > 1:
        lines += [f"# The value is that of {runs} runs over {key}; this is the first of them."]
    if command_line_only:
        lines += [f"# Give these on the command line, a preset cannot have them: {' '.join(command_line_only)}"]
    return lines


def _sort_key(override: Any) -> tuple[bool, int]:
    """Sort presets before the overrides that change them, and a node before its parts."""
    return get_key(override) not in ("sweep", "experiment"), get_key(override).count(".")


def _merge_study_preset(file: Path, defaults: list[Any], group_choices: dict[str, Any], config: dict[str, Any]) -> None:
    """Merge a conf/sweep preset without its search space: with it, `experiment=NAME -m seed=0,1` would search again."""
    content = (yaml.load(file.read_text(), Loader=NumberLoader) or {}) if file.exists() else {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            group_choices |= {key: value for key, value in entry.items() if "hydra/" not in key}
        elif entry != "_self_":
            defaults.append(entry if entry.startswith("/") else f"/sweep/{entry}")
    for key, value in content.items():
        if key != "hydra":
            _set_key(config, [key], value)


def _set_key(config: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set a dotted key as the command line does: a node is merged into the one that is there."""
    for part in parts[:-1]:
        node = config.get(part)
        config[part] = node if isinstance(node, dict) else {}
        config = config[part]
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            _set_key(config, [*parts[-1:], str(name)], inner)
    else:
        config[parts[-1]] = value


def build_solution(sweep: Sweep) -> dict[str, Any]:
    """Return optimization_results.yaml: hydra-optuna-sweeper's keys, and the trials' numbers, folders and MLflow runs."""
    params = [{key: parse_value(text) for key, text in row.params.items()} for row in sweep.best]
    runs = [{"folder": row.folder, "mlflow_run_id": row.run_ids} for row in sweep.best]
    first = {"best_trial": sweep.best[0].number} | runs[0]
    if sweep.repeat_key in sweep.space:
        first |= {"mean_over": sweep.repeat_key, "runs": len(sweep.repeat_groups[sweep.best[0].number])}
    if len(sweep.directions) == 1:
        value = sweep.compute_mean(sweep.best[0])[0]
        return {"name": "optuna", "best_params": params[0], "best_value": value} | first
    solutions = [
        {"params": own_params, "values": [*sweep.compute_mean(row)], "trial": row.number} | run
        for own_params, run, row in zip(params, runs, sweep.best, strict=True)
    ]
    return {"name": "optuna", "solutions": solutions} | first
