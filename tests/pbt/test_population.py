"""Population-based training: the draws by their properties, the program as a user runs it, kills included."""

import csv
import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from hydra.types import HydraContext
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution, IntDistribution
from program import read_metrics, start_run, train

from experiments.pbt_digits.study import PbtDigits, describe_selection
from research.callbacks.pause import Pause
from research.pbt.evolve import (
    Member,
    create_first_generation,
    evolve_generation,
    make_rng,
    perturb_value,
    rank_members,
    sample_value,
    select_by_truncation,
)
from research.pbt.lineage import REPORT_FILES, draw_lineage, select_trained
from research.pbt.plan import PopulationRecord, make_plan, read_population
from research.pbt.settings import PopulationSettings
from research.run_dir import read_json
from research.sweep.space import Parameter, parse_space
from research.training.progress import Progress
from research.training.state import State

SMALL = ["hydra/sweeper=pbt", "data=digits", "model=mlp", "model.dim=16", "model.depth=1", "optim=adamw", "trainer.device=cpu",
         "eval_every=4", "~callbacks.curve"]  # fmt: skip
LR = "lr=tag(log,interval(1e-4,1e-1))"
INT_PARAMS = {"n": {"type": "int", "low": 1, "high": 300, "log": True}, "k": {"type": "int", "low": 0, "high": 4}}
SWEEP_OVERRIDES = [LR, "wd=interval(-1.0,1.0)", "r=range(0.0,2.0,0.25)", "c=relu,silu,null,true,3"]
SPACE = parse_space(INT_PARAMS, SWEEP_OVERRIDES, {}, None).parameters
STRATEGIES = [(exploit, explore) for exploit in ("truncation", "tournament") for explore in ("perturb", "resample")]
PARAMETERS = st.sampled_from(list(SPACE.values()))
VALUES = st.lists(st.one_of(st.none(), st.integers(0, 3).map(float)), min_size=2, max_size=12).filter(any)


def is_in_space(parameter: Parameter, value: Any) -> bool:
    if parameter.values:
        return any(type(other) is type(value) and other == value for other in parameter.values)
    distribution = parameter.distribution
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    return type(value) is type(low) and low <= value <= high


def make_generation(values: list[float | None], s: PopulationSettings) -> list[Member]:
    return [replace(member, value=value) for member, value in zip(create_first_generation(SPACE, s), values, strict=True)]


@given(PARAMETERS, st.integers(0, 99), st.lists(st.floats(0.05, 20.0), max_size=30))
def test_no_exploration_leaves_the_space(parameter: Parameter, seed: int, factors: list[float]) -> None:
    value = sample_value(parameter, make_rng(seed, 0, 0, "x"))
    assert is_in_space(parameter, value)
    for factor in factors:
        before, value = value, perturb_value(parameter, value, factor)
        assert is_in_space(parameter, value), (before, factor)


def test_perturbing_knows_the_scale_and_reaches_both_ends() -> None:
    assert perturb_value(SPACE["lr"], 1e-3, 1.2) == pytest.approx(1.2e-3)
    assert perturb_value(SPACE["wd"], 0.0, 1.2) == pytest.approx(0.4), "a product would never leave zero"
    assert perturb_value(SPACE["n"], 2, 1.2) == 3, "one step at least"
    assert perturb_value(SPACE["r"], 0.5, 1.2) == 0.75
    assert perturb_value(SPACE["c"], "silu", 1.2) is None, "the neighbour"
    for parameter in SPACE.values():
        for factor in (0.8, 1.2):
            value = sample_value(parameter, make_rng(0, 0, 0, "x"))
            for _ in range(99):
                value = perturb_value(parameter, value, factor)
            assert value == perturb_value(parameter, value, factor), "an end, and it stays there"


@given(VALUES, st.floats(0.01, 0.5), st.booleans(), st.integers(0, 9))
def test_truncation_copies_from_the_top_only(values: list[float | None], share: float, maximize: bool, seed: int) -> None:
    s = PopulationSettings(population=len(values), share=share, seed=seed)
    members = make_generation(values, s)
    donors, order, count = (
        select_by_truncation(members, s, maximize),
        rank_members(members, maximize),
        max(1, int(share * len(values))),
    )
    best = {member.number for member in order[:count] if member.value is not None}
    assert set(donors.values()) <= best
    assert not set(donors) & best
    assert {m.number for m in members if m.value is None} <= set(donors), "whoever failed is replaced"
    assert len(donors) <= max(count, values.count(None))


@given(VALUES, st.booleans(), st.integers(0, 9), st.sampled_from(STRATEGIES))
def test_a_generation_is_a_function_of_the_seed(values: list[float | None], maximize: bool, seed: int, strategy: Any) -> None:
    exploit, explore = strategy
    s = PopulationSettings(population=len(values), seed=seed, exploit=exploit, explore=explore)
    members = make_generation(values, s)
    once, again = (
        evolve_generation(members, SPACE, s, maximize),
        evolve_generation(make_generation(values, s), SPACE, s, maximize),
    )
    assert once == again
    for old, new in zip(members, once, strict=True):
        assert new.parent is not None
        assert all(is_in_space(SPACE[key], value) for key, value in new.params.items())
        donor = members[new.parent]
        assert donor.value is not None, "nobody copies one that failed"
        if new.parent == new.number:
            assert new.params == old.params, "only a copy explores"
        elif exploit == "tournament" and old.value is not None:
            assert (donor.value > old.value) if maximize else (donor.value < old.value)


def test_a_copy_that_draws_anew_is_no_twin() -> None:
    s = PopulationSettings(population=40, explore="resample", resample_probability=0.0, share=0.5)
    members = make_generation([float(n) for n in range(40)], s)
    copies = [m for m in evolve_generation(members, {"lr": SPACE["lr"]}, s, True) if m.parent != m.number]
    assert len(copies) == 20
    assert all(m.params["lr"] != members[m.parent or 0].params["lr"] for m in copies)


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"population": 1}, [LR], r"hydra.sweeper.population=1: give a whole number in \[2, inf\)"),
        ({"exploit": "best"}, [LR], "hydra.sweeper.exploit=best: give truncation, tournament"),
        ({"explore": "mutate"}, [LR], "hydra.sweeper.explore=mutate: give perturb, resample"),
        ({"share": 0.7}, [LR], r"hydra.sweeper.share=0.7: give a number in \(0, 0.5\]"),
        ({"factors": []}, [LR], r"hydra.sweeper.factors=\[\]: give numbers above 0"),
        (
            {"factors": [0.0]},
            [LR],
            r"hydra.sweeper.factors=\[0.0\]: give a list, .*\(0, inf\), as \[0.8,1.2\]",
        ),
        ({"resample_probability": 2}, [LR], r"hydra.sweeper.resample_probability=2: give a number in \[0, 1\]"),
        ({"interval": 40}, [LR], "hydra.sweeper.interval=40: a run has 40 steps, .*give fewer, as 4"),
        ({"interval": "abc"}, [LR], "hydra.sweeper.interval=abc: give a whole number"),
        ({"population": None}, [LR], "hydra.sweeper.population=null: give a whole number"),
        ({"n_jobs": 1.5}, [LR], r"hydra.sweeper.n_jobs=1.5: give a whole number in \[1, inf\) or null"),
        ({"share": "half"}, [LR], "hydra.sweeper.share=half: give a number"),
        ({"factors": 1.2}, [LR], "hydra.sweeper.factors=1.2: give a list"),
        ({"params": "lr"}, [LR], "hydra.sweeper.params=lr: give keys and values, as"),
        ({"dry_run": "yes please"}, [LR], "hydra.sweeper.dry_run=yes please: give true or false"),
        ({"direction": "up"}, [LR], "hydra.sweeper.direction=up: give minimize or maximize"),
        ({}, ["seed=1"], "there is nothing to evolve; give parameters"),
        ({}, [LR, "model.dim=8,16"], "model.dim: .*cannot be resumed by a member"),
        ({}, [LR, "optim=adamw,sgd"], "optim: .*cannot be resumed by a member"),
        ({}, [LR, "seed=0,1"], "seed: .*give it one value"),
        ({}, [LR, "callbacks.time_limit.seconds=0.01"], "callbacks.time_limit.seconds=0.01: members would end before"),
    ],
)
def test_what_is_wrong_is_reported(settings: dict[str, Any], arguments: list[str], words: str) -> None:
    limit = next((float(word.partition("=")[2]) for word in arguments if "time_limit" in word), None)
    callbacks = {"checkpoint": {}, "time_limit": {"seconds": limit}}
    config = OmegaConf.create({"monitor": "val/acc", "trainer": {"steps": 40}, "callbacks": callbacks})
    with pytest.raises(ValueError, match=words):
        make_plan({"interval": 10} | settings, arguments, config, Mock(spec=HydraContext, config_loader=None))


def test_a_wrong_setting_ends_the_program_in_one_message(tmp_path: Path) -> None:
    done = train(tmp_path, "-m", *SMALL, LR, "steps=40", "hydra.sweeper.interval=abc", "tracker=none", fails=True)
    assert done.stderr.splitlines() == ["error: hydra.sweeper.interval=abc: give a whole number in [1, inf)"]


def test_a_dry_run_prints_the_plan_and_runs_nothing(tmp_path: Path) -> None:
    own = ["steps=20", "hydra.sweeper.interval=8", "hydra.sweeper.population=4", "hydra.sweeper.dry_run=true"]
    done = train(tmp_path, "-m", *SMALL, LR, *own)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.replace("for ", "").splitlines())
    assert rows["space"].startswith("lr: ")
    assert (rows["objective"], rows["members"]) == ("val/acc maximize", "4: truncation, perturb")
    assert (rows["generations"], rows["steps"]) == ("3 of 8 steps, the last one of 4", "20 each, 80 in all")
    assert 1e-4 <= float(rows["example"].rpartition("lr=")[2].split()[0]) <= 1e-1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("maximize", [True, False])
def test_the_picture_has_one_colour_for_better_and_omits_what_never_changed(maximize: bool) -> None:
    ends = [0.9, 0.1] if maximize else [0.1, 0.9]
    tree = [Member(0, n, None, {"lr": 0.1, "wd": 1}, value, value, 4) for n, value in enumerate(ends)]
    tree += [Member(1, n, 0, {"lr": 0.1 + 0.1 * n, "wd": 1}, value, value, 8) for n, value in enumerate(reversed(ends))]
    figure = draw_lineage(tree, [tree[0], tree[3]], ["lr", "wd"], "val/x", maximize)
    assert [axis.get_ylabel() for axis in figure.axes] == ["member", "lr", "val/x (yellow: better)"]
    dots = next(points for points in figure.axes[0].collections if len(points.get_offsets()) == 4)
    assert [round(red) for red, *_ in dots.to_rgba(ends)] == [1, 0], "yellow has red in it, purple little"


def test_the_study_tells_what_its_table_holds() -> None:
    assert len(numbers := re.findall(r"\d+\.\d+", describe_selection((one := PbtDigits()).read_searches()))) == 3
    assert all(number in (one.folder / "README.md").read_text() for number in numbers)


def test_a_population_of_version_1_is_read_and_written_under_the_same_keys(tmp_path: Path) -> None:
    member = {"generation": 0, "number": 1, "parent": None, "params": {"lr": 0.1}, "value": 0.5, "best": 0.5, "steps": 8,
              "error": "", "stop": "", "run_id": None}  # fmt: skip
    old = {"digest": "abc", "over": True, "asked": {"steps": 8}, "members": [member]}
    (tmp_path / "population.json").write_text(json.dumps(old))
    record = read_population(tmp_path)
    assert (record.digest, record.finished, record.requested) == ("abc", True, {"steps": 8})
    assert record.members[0].name == "g0m1"
    record.write(tmp_path)
    assert read_json(tmp_path / "population.json") == old | {"version": 2}
    assert read_population(tmp_path / "nowhere") == PopulationRecord(members=[])
    (tmp_path / "population.json").write_text('{"version": 3}')
    with pytest.raises(ValueError, match=r"population\.json has version 3.*update"):
        read_population(tmp_path)


def test_a_population_of_a_later_version_stops_only_its_own_resume(tmp_path: Path) -> None:
    later = tmp_path / "out" / "digits" / "later" / "population.json"
    later.parent.mkdir(parents=True)
    later.write_text('{"version": 99}')
    command = ["-m", *SMALL, LR, "hydra.sweeper.population=2", "hydra.sweeper.interval=1", "steps=2", "tracker=none"]
    train(tmp_path, *command)
    (new,) = (tmp_path / "out" / "digits").glob("sweep_*/population.json")
    assert len(read_members(new.parent)) == 4
    done = train(tmp_path, *command, "hydra.sweeper.study_name=later", fails=True)
    assert "population.json has version 99, this code reads up to 2: update grokbit" in done.stderr
    assert later.read_text() == '{"version": 99}', "it is left alone"


@pytest.fixture(scope="module")
def tracked_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a population of four over three generations, the last one shorter; copies change nothing."""
    folder = tmp_path_factory.mktemp("pbt")
    own = ["hydra.sweeper.population=4", "hydra.sweeper.interval=8", "hydra.sweeper.factors=[1.0]", "steps=20"]
    train(folder, "-m", *SMALL, LR, *own, "hydra.sweeper.study_name=small")
    return folder / "out" / "digits" / "small"


def read_members(sweep: Path) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads((sweep / "population.json").read_text())["members"]
    return [{key: value for key, value in member.items() if key != "run_id"} for member in members]


def read_summary(sweep: Path, name: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((sweep / name / "summary.json").read_text())
    return summary


def test_a_copy_continues_as_its_donor_does(tracked_sweep: Path) -> None:
    members = [Member(**member) for member in read_members(tracked_sweep)]
    copies = [m for m in members if m.parent not in (None, m.number)]
    assert copies
    for copy in copies:
        donor = f"g{copy.generation}m{copy.parent}"  # one of the best, which goes on with itself
        assert read_metrics(tracked_sweep / copy.name) == read_metrics(tracked_sweep / donor), "from the first step on"
        assert read_summary(tracked_sweep, copy.name)["weights_sha256"] == read_summary(tracked_sweep, donor)["weights_sha256"]


def test_generations_are_one_run_that_was_never_interrupted(tracked_sweep: Path, tmp_path: Path) -> None:
    best = yaml.safe_load((tracked_sweep / "optimization_results.yaml").read_text())
    assert [(part["from"], part["until"]) for part in best["schedule"]] == [(0, 8), (8, 16), (16, 20)]
    alone = [word for word in SMALL if not word.startswith("hydra/")]
    train(tmp_path, *alone, f"lr={best['best_params']['lr']!r}", "steps=20", "tracker=jsonl")
    (folder,) = (tmp_path / "out" / "digits").iterdir()
    end = read_summary(tracked_sweep, Path(best["folder"]).name)
    assert json.loads((folder / "summary.json").read_text())["weights_sha256"] == end["weights_sha256"]
    assert end["metrics"]["val/acc"] == best["best_value"]


def test_mlflow_and_the_table_hold_the_lineage(tracked_sweep: Path) -> None:
    with (tracked_sweep / "population.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["folder"] for row in table] == [f"g{g}m{m}" for g in range(3) for m in range(4)]
    assert image.imread(tracked_sweep / "lineage.png").shape[1] == 9 * 120
    client = MlflowClient(f"sqlite:///{tracked_sweep.parents[2] / 'mlflow.db'}")
    run_ids = {row["folder"]: read_summary(tracked_sweep, row["folder"])["mlflow_run_id"] for row in table}
    for row in table:
        tags = client.get_run(run_ids[row["folder"]]).data.tags
        assert (tags["pbt.generation"], tags["pbt.member"]) == (row["generation"], row["member"])
        if row["generation"] != "0":
            parent = f"g{int(row['generation']) - 1}m{row['parent']}"
            assert (tags["pbt.parent"], tags["pbt.parent_run"]) == (parent, run_ids[parent])
    parent = (tracked_sweep / "mlflow_run_id").read_text()
    assert {file.path for file in client.list_artifacts(parent)} == set(REPORT_FILES)
    best, run = yaml.safe_load((tracked_sweep / "optimization_results.yaml").read_text()), client.get_run(parent)
    assert (run.info.status, run.data.tags["best_member"]) == ("FINISHED", Path(best["folder"]).name)
    assert float(run.data.tags["best.lr"]) == best["best_params"]["lr"]
    assert run.data.metrics["best.val_acc"] == run.data.metrics["best_value"] == best["best_value"]
    assert len(client.get_metric_history(parent, "best_value")) == 3


def test_a_pause_does_not_replace_another_reason_to_stop() -> None:
    """As of a run that was killed after its last checkpoint."""
    state = Mock(spec=State, stop="val/acc reached 0.3", progress=Progress(step=8))
    Pause(8).on_start(state)
    assert state.stop == "val/acc reached 0.3"


def test_at_its_target_a_population_ends_and_reports_the_parameters_of_its_last_step(tmp_path: Path) -> None:
    own = ["hydra.sweeper.population=3", "hydra.sweeper.interval=8", "steps=40", "target=0.3", "tracker=none", "eval_every=2"]
    sweep, lr = tmp_path / "out" / "digits" / "s", "lr=choice(3e-4,2e-2)"
    done = train(tmp_path, "-m", *SMALL, lr, *own, "hydra.sweeper.study_name=s")
    members = [Member(**member) for member in read_members(sweep)]
    results = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert (last := members[-1].generation) < 4
    assert "no member continues: val/acc reached 0.3" in done.stdout
    assert [all(m.stop for m in members if m.generation == n) for n in range(last + 1)] == [False] * last + [True]
    assert not any(m.error for m in members), "who took no step has no checkpoint: its descendants begin at its ancestor's"
    assert all(part["from"] < part["until"] for part in results["schedule"])
    assert select_trained([*members[:1], replace(members[0], generation=1)]) == members[:1], (
        "one that took no step is no part of it"
    )
    assert results["best_params"] == results["schedule"][-1]["params"]
    assert read_summary(sweep, Path(results["folder"]).name)["steps"] == results["schedule"][-1]["until"]


def test_a_member_that_fails_is_replaced(tmp_path: Path) -> None:
    own = ["hydra.sweeper.population=4", "hydra.sweeper.interval=4", "steps=8", "hydra.sweeper.explore=resample"]
    diverges, sweep = ["optim=sgd", "trainer.clip_norm=null", "lr=choice(0.01,0.02,1e30)"], tmp_path / "out" / "digits" / "s"
    train(tmp_path, "-m", *SMALL, *own, *diverges, "hydra.sweeper.study_name=s")
    members = [Member(**member) for member in read_members(sweep)]
    assert 0 < len(failed := {m.number for m in members if m.generation == 0 and m.error}) < 4
    assert all(m.params["lr"] == 1e30 and "lower lr" in m.error for m in members if m.error)
    assert all(m.parent not in failed for m in members if m.generation == 1)
    parent = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run((sweep / "mlflow_run_id").read_text())
    assert (parent.info.status, parent.data.metrics["trials/failed"]) == ("FINISHED", len(failed)), "it went on to its end"
    done = train(tmp_path, "-m", *SMALL, *own, *diverges, "lr=1e29,1e30", "tracker=none", fails=True)
    assert "all 4 members of generation 0 failed, the last with: FloatingPointError" in done.stderr


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    own = ["-m", *SMALL, LR, "optim.weight_decay=interval(0.0,2.0)", "hydra.sweeper.population=3", "hydra.sweeper.interval=40",
           "steps=120", "tracker=jsonl", "hydra.sweeper.share=0.5"]  # fmt: skip
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    unbroken.mkdir()
    killed.mkdir()
    train(unbroken, *own)
    before, after = ("g0m2/metrics.jsonl", signal.SIGKILL), ("g1m1/checkpoints/step-*", signal.SIGKILL)  # its first checkpoint
    for sign, number in (before, after, ("g2m0/checkpoints/step-*", signal.SIGINT)):
        process = start_run(killed, *own, "hydra.sweeper.n_jobs=3")  # some of those launched at once have ended, unrecorded
        for _ in range(3000):
            if any((killed / "out").glob(f"digits/*/{sign}")):
                break
            time.sleep(0.01)
        os.kill(process.pid, number)
        output = "".join(process.communicate())
    assert (process.returncode, "the same command runs the rest" in output) == (130, True)
    (folder,) = (killed / "out" / "digits").iterdir()
    assert len((folder / "population.csv").read_text().splitlines()) == 1 + 6, "two generations have ended"
    assert all((folder / name).exists() for name in REPORT_FILES)
    assert yaml.safe_load((folder / "optimization_results.yaml").read_text())["schedule"][-1]["until"] == 80
    done = train(killed, *own)
    assert "resumed after" in done.stdout
    (one,), (other,) = (list((folder / "out" / "digits").iterdir()) for folder in (unbroken, killed))
    assert read_members(one) == read_members(other)
    for name in (Member(**member).name for member in read_members(one)):
        assert read_summary(one, name)["weights_sha256"] == read_summary(other, name)["weights_sha256"]
        assert read_metrics(one / name) == read_metrics(other / name)
    assert json.loads((other / "population.json").read_text())["over"], "the same command begins anew"
