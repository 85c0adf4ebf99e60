"""The best trials of a sweep in yaml: as a preset that repeats one, and as hydra-optuna-sweeper keeps them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from research.preflight.help import CONF, list_groups
from research.preflight.overrides import get_key as key_of
from research.preflight.overrides import parse
from research.report.results import FLOAT, INT, Row, Sweep, parse_value

EXCLUDED_KEYS = ("out", "tracker", "resume", "hydra")  # where a run goes and who watches: none of a preset's business


class QuotingDumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes a text in quotes unless it is a plain word: OmegaConf takes more for numbers than YAML does, as 1e-3."""


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
    """A conf/experiment/NAME.yaml that repeats a trial: what the sweep held fixed, and what the trial had."""
    lines = [*sweep.spec.get("fixed", []), *(f"{key}={text}" for key, text in row.params.items())]
    defaults, chosen, config, beyond = list[Any](), dict[str, Any](), dict[str, Any](), list[str]()
    for override in sorted(parse(lines)[0], key=_sort_key):
        key, value = key_of(override), None if override.is_delete() else override.value()
        names = [name for name in (value if isinstance(value, list) else [value]) if name]
        if re.split(r"[./]", key)[0] in EXCLUDED_KEYS:
            continue
        if override.is_delete() or re.search(r"\.\d+(\.|$)|\[|:", key):  # keys away, parts of a list, packages
            beyond.append(str(override.input_line))
        elif key == "sweep":
            for name in names:
                _merge_study_preset(CONF / "sweep" / f"{name}.yaml", defaults, chosen, config)
        elif key == "experiment":
            defaults += [f"/experiment/{name}" for name in names]
        elif key in list_groups() and not isinstance(value, dict):
            chosen[f"{'' if override.is_add() else 'override '}/{key}"] = value
        else:
            _set_key(config, key.split("."), value)
    told = ", ".join(f"{name} {value:.6g}" for name, value in zip(sweep.objectives, sweep.compute_mean(row), strict=True))
    head = ["# @package _global_", f"# python train.py experiment=NAME: trial {row.number} of {sweep.name}, {told}"]
    head += ["# Copy this file to conf/experiment/NAME.yaml."]
    over, runs = sweep.repeat_key, len(row.repeats) or len(sweep.repeat_groups[row.number])
    head += [f"# The value is that of {runs} runs, {over} after {over}; this is the first."] if row.repeats or runs > 1 else []
    head += [f"# On the command line, for a preset cannot say it: {' '.join(beyond)}"] if beyond else []
    added = [{key: value} for key, value in chosen.items() if not key.startswith("override")]
    overridden = [{key: value} for key, value in chosen.items() if key.startswith("override")]
    content = ({"defaults": [*defaults, *added, "_self_", *overridden]} if defaults or chosen else {}) | config
    return "\n".join(head) + "\n" + (dump_yaml(content) if content else "")


def _sort_key(override: Any) -> tuple[bool, int]:
    """What a preset says comes before what was said of it, and a whole node before its parts."""
    return key_of(override) not in ("sweep", "experiment"), key_of(override).count(".")


def _merge_study_preset(file: Path, defaults: list[Any], group_choices: dict[str, Any], config: dict[str, Any]) -> None:
    """What a study's preset says of its runs: with its space in it, `experiment=NAME -m seed=0,1` would search again."""
    told = (yaml.load(file.read_text(), Loader=NumberLoader) or {}) if file.exists() else {}
    for entry in told.pop("defaults", []):
        if isinstance(entry, dict):
            group_choices |= {key: value for key, value in entry.items() if "hydra/" not in key}
        elif entry != "_self_":
            defaults.append(entry if entry.startswith("/") else f"/sweep/{entry}")
    for key, value in told.items():
        if key != "hydra":
            _set_key(config, [key], value)


def _set_key(config: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set a key, as the command line does: a node is merged into what is there."""
    for part in parts[:-1]:
        held = config.get(part)
        config[part] = held if isinstance(held, dict) else {}
        config = config[part]
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            _set_key(config, [*parts[-1:], str(name)], inner)
    else:
        config[parts[-1]] = value


def build_solution(sweep: Sweep) -> dict[str, Any]:
    """What hydra-optuna-sweeper keeps, under its names, and which trials these were."""
    sets = [{key: parse_value(text) for key, text in row.params.items()} for row in sweep.best]
    which = [{"folder": row.folder, "mlflow_run_id": row.run_ids} for row in sweep.best]
    first = {"best_trial": sweep.best[0].number} | which[0]
    if sweep.repeat_key in sweep.space:
        first |= {"mean_over": sweep.repeat_key, "runs": len(sweep.repeat_groups[sweep.best[0].number])}
    if len(sweep.directions) == 1:
        return {"name": "optuna", "best_params": sets[0], "best_value": sweep.compute_mean(sweep.best[0])[0]} | first
    told = zip(sets, which, sweep.best, strict=True)
    found = [
        {"params": params, "values": [*sweep.compute_mean(row)], "trial": row.number} | where for params, where, row in told
    ]
    return {"name": "optuna", "solutions": found} | first
