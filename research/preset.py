"""The best trials of a sweep in yaml: as a preset that repeats one, and as hydra-optuna-sweeper keeps them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from research.preflight.help import CONF, groups
from research.preflight.overrides import key as key_of
from research.preflight.overrides import parse
from research.sweeps import FLOAT, INT, Row, Sweep, read

UNSAID = ("out", "tracker", "resume", "hydra")  # where a run goes and who watches: none of a preset's business


class Quoting(yaml.SafeDumper):  # type: ignore[misc]
    """Writes a text in quotes unless it is a plain word: OmegaConf takes more for numbers than YAML does, as 1e-3."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if re.fullmatch(r"[A-Za-z_][\w /.-]*", text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Quoting.add_representer(str, _quoted)


def as_yaml(content: dict[str, Any]) -> str:
    return str(yaml.dump(content, Dumper=Quoting, sort_keys=False, allow_unicode=True, width=1000))


class Reading(yaml.SafeLoader):  # type: ignore[misc]
    """Reads numbers as OmegaConf does."""


for _kind, _number in (("float", FLOAT), ("int", INT)):
    Reading.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"{_number.pattern}$"), list("-+.0123456789"))


def preset(sweep: Sweep, row: Row) -> str:
    """A conf/experiment/NAME.yaml that repeats a trial: what the sweep held fixed, and what the trial had."""
    lines = [*sweep.asked.get("fixed", []), *(f"{key}={text}" for key, text in row.params.items())]
    defaults, chosen, config, beyond = list[Any](), dict[str, Any](), dict[str, Any](), list[str]()
    for override in sorted(parse(lines)[0], key=_place):
        key, value = key_of(override), None if override.is_delete() else override.value()
        names = [name for name in (value if isinstance(value, list) else [value]) if name]
        if re.split(r"[./]", key)[0] in UNSAID:
            continue
        if override.is_delete() or re.search(r"\.\d+(\.|$)|\[|:", key):  # keys away, parts of a list, packages
            beyond.append(str(override.input_line))
        elif key == "sweep":
            for name in names:
                _take_over(CONF / "sweep" / f"{name}.yaml", defaults, chosen, config)
        elif key == "experiment":
            defaults += [f"/experiment/{name}" for name in names]
        elif key in groups() and not isinstance(value, dict):
            chosen[f"{'' if override.is_add() else 'override '}/{key}"] = value
        else:
            _put(config, key.split("."), value)
    told = ", ".join(f"{name} {value:.6g}" for name, value in zip(sweep.objectives, sweep.mean(row), strict=True))
    head = ["# @package _global_", f"# python train.py experiment=NAME: trial {row.number} of {sweep.name}, {told}"]
    head += ["# Copy this file to conf/experiment/NAME.yaml."]
    over, runs = sweep.repeated, len(row.repeats) or len(sweep.sets[row.number])
    head += [f"# The value is that of {runs} runs, {over} after {over}; this is the first."] if row.repeats or runs > 1 else []
    head += [f"# On the command line, for a preset cannot say it: {' '.join(beyond)}"] if beyond else []
    added = [{key: value} for key, value in chosen.items() if not key.startswith("override")]
    overridden = [{key: value} for key, value in chosen.items() if key.startswith("override")]
    content = ({"defaults": [*defaults, *added, "_self_", *overridden]} if defaults or chosen else {}) | config
    return "\n".join(head) + "\n" + (as_yaml(content) if content else "")


def _place(override: Any) -> tuple[bool, int]:
    """What a preset says comes before what was said of it, and a whole node before its parts."""
    return key_of(override) not in ("sweep", "experiment"), key_of(override).count(".")


def _take_over(file: Path, defaults: list[Any], chosen: dict[str, Any], config: dict[str, Any]) -> None:
    """What a study's preset says of its runs: with its space in it, `experiment=NAME -m seed=0,1` would search again."""
    told = (yaml.load(file.read_text(), Loader=Reading) or {}) if file.exists() else {}
    for entry in told.pop("defaults", []):
        if isinstance(entry, dict):
            chosen |= {key: value for key, value in entry.items() if "hydra/" not in key}
        elif entry != "_self_":
            defaults.append(entry if entry.startswith("/") else f"/sweep/{entry}")
    for key, value in told.items():
        if key != "hydra":
            _put(config, [key], value)


def _put(config: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set a key, as the command line does: a node is merged into what is there."""
    for part in parts[:-1]:
        held = config.get(part)
        config[part] = held if isinstance(held, dict) else {}
        config = config[part]
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            _put(config, [*parts[-1:], str(name)], inner)
    else:
        config[parts[-1]] = value


def solution(sweep: Sweep) -> dict[str, Any]:
    """What hydra-optuna-sweeper keeps, under its names, and which trials these were."""
    sets = [{key: read(text) for key, text in row.params.items()} for row in sweep.best]
    which = [{"folder": row.folder, "mlflow_run_id": row.run_ids} for row in sweep.best]
    first = {"best_trial": sweep.best[0].number} | which[0]
    if sweep.repeated in sweep.space:
        first |= {"mean_over": sweep.repeated, "runs": len(sweep.sets[sweep.best[0].number])}
    if len(sweep.ways) == 1:
        return {"name": "optuna", "best_params": sets[0], "best_value": sweep.mean(sweep.best[0])[0]} | first
    told = zip(sets, which, sweep.best, strict=True)
    found = [{"params": params, "values": [*sweep.mean(row)], "trial": row.number} | where for params, where, row in told]
    return {"name": "optuna", "solutions": found} | first
