"""Studies of trials that nobody ran, for the tests of a sweep's report, and what a report leaves."""

import csv
import json
import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from research.composition.overrides import to_override
from research.tracking.optuna_storage import get_storage

KINDS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "optim": CategoricalDistribution(["adamw", "grokfast"]),
    "optim.lamb": FloatDistribution(0.0, 5.0),
    "model.depth": IntDistribution(1, 4),
    "odd": CategoricalDistribution([None, 1, 2.5, "a,b", "true"]),
}
SPACE = {
    "lr": "low=0.0001 high=0.1 log=True",
    "optim": "2 values: adamw, grokfast",
    "optim.lamb": "high=5.0 low=0.0 when optim == 'grokfast'",
    "model.depth": "low=1 high=4 step=1",
    "odd": "5 values: null, 1, 2.5, 'a,b', 'true'",
}
START = datetime(2026, 1, 2, 3, 4, 5)


def make_study(directions: Sequence[str] = ("maximize",), keys: Sequence[str] = tuple(KINDS), **changes: Any) -> Study:
    """A study as the sweeper leaves it, without a trial; `changes` are of its spec."""
    study = optuna.create_study(study_name="sweep_x", directions=list(directions))  # type: ignore[arg-type]
    spec = {"space": {key: SPACE[key] for key in keys}, "fixed": ["model=mlp", "data.p=11", "out=elsewhere"]}
    spec |= {"directions": list(directions), "metrics": [], "repeats": {"n": 1, "over": "seed", "reduce": "mean"}}
    study.set_user_attr("grokbit", spec | {"kind": "study", "total": 30} | changes)
    return study


def make_trial(number: int, params: dict[str, Any], state: TrialState = TrialState.COMPLETE, **more: Any) -> FrozenTrial:
    trial = create_trial(state=state, params=params, distributions={key: KINDS[key] for key in params}, **more)
    trial.datetime_start = None if state == TrialState.WAITING else START + timedelta(seconds=20 * number)
    trial.datetime_complete = START + timedelta(seconds=20 * number + 31.5) if state.is_finished() else None
    return trial


def draw_params(number: int, generator: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {"lr": 10 ** generator.uniform(-4, -1), "optim": generator.choice(["adamw", "grokfast"])}
    params |= {"optim.lamb": generator.uniform(0, 5)} if params["optim"] == "grokfast" else {}
    return params | {"model.depth": generator.randint(1, 4), "odd": [None, 1, 2.5, "a,b", "true"][number % 5]}


def fill_study(folder: Path, count: int = 30, repeats: int = 1) -> Study:
    """A study whose trials ended in every way, with the folders of their runs."""
    generator, study = random.Random(0), make_study(repeats={"n": repeats, "over": "seed", "reduce": "mean"})
    for number in range(count):
        params = draw_params(number, generator)
        value = 1 / (1 + abs(math.log10(params["lr"]) + 2.5)) + 0.1 * (params["optim"] == "grokfast")
        state = {6: TrialState.FAIL, 7: TrialState.PRUNED}.get(number % 8, TrialState.COMPLETE)
        attrs: dict[str, Any] = {"folder": str(folder / str(number))}
        attrs |= {"error": "ValueError: lower lr\nsecond line"} if state == TrialState.FAIL else {}
        attrs |= {"pruned": 200} if state == TrialState.PRUNED else {}
        if repeats > 1:
            attrs["repeats"] = [value + 0.01 * index for index in range(repeats)]
        for index in range(repeats):
            run_folder = folder / str(number) / (str(index) if repeats > 1 else "")
            _write_run(run_folder, params, value, f"{number:016x}{index:016x}", generator)
        values = {"value": value} if state == TrialState.COMPLETE else {}
        study.add_trial(make_trial(number, params, state, user_attrs=attrs, **values))
    return study


def _write_run(folder: Path, params: dict[str, Any], value: float, run_id: str, generator: random.Random) -> None:
    """A run folder, whose last line of metrics.jsonl is incomplete."""
    folder.mkdir(parents=True)
    lines = [f"{key}={to_override(params[key])}\n" for key in params]
    (folder / "overrides.txt").write_text("model=mlp\ndata.p=11\n" + "".join(lines))
    (folder / "summary.json").write_text(json.dumps({"monitor": "val/acc", "steps": 400, "wall_s": 3.0}))
    (folder / "mlflow_run_id").write_text(run_id)
    curve = [
        {"step": step, "val/acc": value * (1 - math.exp(-step / 90)) + generator.uniform(0, 0.03)}
        for step in range(10, 410, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve) + '{"step": 410, "va')


def make_lucky_study() -> Study:
    """A grid over seeds in which the best run of all is one of a middling configuration."""
    seeds = {"seed": "3 values: 0, 1, 2"}
    study = make_study(space={key: SPACE[key] for key in ("lr", "model.depth")} | seeds, kind="grid", total=12)
    kinds = {"lr": KINDS["lr"], "model.depth": KINDS["model.depth"], "seed": CategoricalDistribution([0, 1, 2])}
    values = {(2e-3, 1): (0.7, 0.7, 0.95), (2e-3, 2): (0.6, 0.6, 0.6), (3e-3, 1): (0.8, 0.81, 0.82), (3e-3, 2): (0.7, 0.7, 0.7)}
    for (lr, depth), by_seed in values.items():
        for seed, value in enumerate(by_seed):
            params = {"lr": lr, "model.depth": depth, "seed": seed}
            study.add_trial(create_trial(value=value, params=params, distributions=kinds))
    return study


def store_study(study: Study, url: str) -> None:
    """Copy a study to where a report finds it."""
    optuna.copy_study(from_study_name="sweep_x", from_storage=study._storage, to_storage=get_storage(url))


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_contents(folder: Path) -> dict[str, bytes]:
    """All files of a report by their names."""
    files = [*folder.glob("*.csv"), *folder.glob("*.md"), *folder.glob("*.yaml"), *folder.glob("plots/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
