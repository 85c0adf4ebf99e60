"""Sweeps as users run them: grids, studies, failures, what comes twice, and what is refused."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import optuna
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from optuna.trial import TrialState
from sweeping import CONFIG, list_params, load_study, run_sweep, run_sweeps

import hydra_plugins.grokbit_sweeper.config  # noqa: F401  (it registers options)
from research.sweep import sweep
from research.sweep.options import PRUNERS, SAMPLERS, make_option
from research.sweep.settings import SweepSettings
from research.sweep.space import parse_space
from research.sweep.study import instantiate_setting, make_sampler, parse_directions
from research.sweep.worker import Worker
from research.tracking.optuna_storage import silence_optuna

TPE = ["x=interval(-5.0,5.0)", "hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler.seed=1"]


def test_a_grid_runs_each_combination_once_in_hydras_order(tmp_path: Path) -> None:
    run_sweep(tmp_path, "x=2,1,2", "y=range(0,2)")
    study = load_study(tmp_path)
    assert list_params(study) == [{"x": 2, "y": 0}, {"x": 2, "y": 1}, {"x": 1, "y": 0}, {"x": 1, "y": 1}]
    assert study.best_value == 1
    assert [trial.user_attrs["folder"] for trial in study.trials] == [str(tmp_path / "sweep" / str(n)) for n in range(4)]


def test_the_same_command_continues_to_the_total(tmp_path: Path) -> None:
    run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=3")
    assert "resumed after 3" in run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=5")
    assert "resumed after 5" in run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=5")
    assert [trial.number for trial in load_study(tmp_path).trials] == list(range(5))
    assert len((tmp_path / "times.txt").read_text().splitlines()) == 2 * 5


def test_a_study_that_was_killed_asks_for_the_same(tmp_path: Path) -> None:
    """Killed in the midst of a trial, and begun again: the trial keeps its number and the study its configurations."""
    arguments = [*TPE, "y=1,2,3", "z=tag(log,range(1,100))", "hydra.sweeper.n_trials=14"]
    more: dict[str, Any] = {"z": 1}
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    unbroken.mkdir()
    killed.mkdir()
    run_sweep(unbroken, *arguments, **more)
    run_sweep(killed, *arguments, fails=True, die_at=11, **more)
    assert load_study(killed).trials[-1].state == TrialState.RUNNING
    run_sweep(killed, *arguments, die_at=11, **more)
    assert list_params(load_study(killed)) == list_params(load_study(unbroken))
    assert [trial.values for trial in load_study(killed).trials] == [trial.values for trial in load_study(unbroken).trials]
    assert load_study(killed).trials[11].user_attrs["tries"] == 2


def test_another_space_is_refused_with_the_difference(tmp_path: Path) -> None:
    run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=2")
    output = run_sweep(tmp_path, *TPE, "y=interval(0.0,1.0)", "seed=1", "hydra.sweeper.n_trials=4", fails=True)
    assert "space.y was None, is high=1.0 low=0.0" in output
    assert "fixed was [], is ['seed=1']" in output
    output = run_sweep(tmp_path, *TPE, "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=4", fails=True)
    assert "the study sweep has minimize, not maximize" in output
    assert len(load_study(tmp_path).trials) == 2


@pytest.mark.parametrize(("rate", "fails"), [("0.0", True), ("0.4", True), ("0.5", False)])
def test_failures_end_a_sweep_only_beyond_their_rate(tmp_path: Path, rate: str, fails: bool) -> None:
    """One raises, one is not a number, one is out of memory: 3 of 6."""
    size = ["hydra.sweeper.n_trials=6", f"hydra.sweeper.max_failure_rate={rate}"]
    output = run_sweep(tmp_path, *TPE, *size, fails=fails, fail_at="1-4", nan_at=2)
    states = Counter(trial.state.name for trial in load_study(tmp_path).trials)
    assert states == ({"COMPLETE": 3, "FAIL": 3} if not fails else {"0.0": {"COMPLETE": 1, "FAIL": 1},
                                                                  "0.4": {"COMPLETE": 2, "FAIL": 3}}[rate])  # fmt: skip
    assert "ValueError: no such number" in output
    assert ("hydra.sweeper.max_failure_rate=" in output) == fails


def test_a_grid_runs_to_its_end_and_fails_if_a_run_did(tmp_path: Path) -> None:
    output = run_sweep(tmp_path, "x=1,2,3,4", fails=True, fail_at="1")
    assert "1 of 4 trials failed" in output
    assert [trial.state.name for trial in load_study(tmp_path).trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("dedup", ["reuse", "resample", "allow"])
def test_a_configuration_that_comes_again(tmp_path: Path, dedup: str) -> None:
    size = ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_trials=6"]
    run_sweep(tmp_path, "x=1,2,3,4,5,6,7,8,9", *size, f"hydra.sweeper.dedup={dedup}")
    trials = load_study(tmp_path).trials
    ran = len((tmp_path / "times.txt").read_text().splitlines()) // 2
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    distinct = {trial.params["x"] for trial in complete}
    assert len(complete) == 6
    assert (ran == len(distinct) < 6) if dedup == "reuse" else ran == 6
    assert len(distinct) == 6 if dedup == "resample" else len(distinct) < 6
    for trial in complete:
        assert trial.value == trial.params["x"] ** 2


def test_a_configuration_is_repeated_over_seeds(tmp_path: Path) -> None:
    repeats = ["hydra.sweeper.repeats.n=3", "hydra.sweeper.repeats.reduce=median", "hydra.sweeper.repeats.over=y"]
    run_sweep(tmp_path, "x=1,2", "y=1", *repeats)
    trials = load_study(tmp_path).trials
    assert [trial.user_attrs["repeats"] for trial in trials] == [[2, 5, 10], [5, 8, 13]]
    assert [trial.value for trial in trials] == [5, 8]
    assert [folder.name for folder in sorted((tmp_path / "sweep" / "1").iterdir())] == ["0", "1", "2"]


def test_several_objectives_by_name_and_constraints(tmp_path: Path) -> None:
    ask = ["hydra.sweeper.metrics=[first,second]", "hydra.sweeper.direction=[maximize,minimize]", "x=range(0,5)"]
    run_sweep(tmp_path, *ask, "hydra.sweeper.constraints={second: '<= 4'}", two=True)
    study = load_study(tmp_path)
    assert study.metric_names == ["first", "second"]
    assert [trial.values for trial in study.trials] == [[x, (x - 1) ** 2] for x in range(5)]
    assert {trial.number for trial in study.best_trials} == {1, 2, 3}  # 4 is beyond the bound


def test_a_study_begins_with_what_is_known(tmp_path: Path) -> None:
    run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=3", "hydra.sweeper.enqueue=[{x: 0.5},{x: -1.0}]")
    assert [params["x"] for params in list_params(load_study(tmp_path))[:2]] == [0.5, -1.0]
    assert len(load_study(tmp_path).trials) == 3


@pytest.mark.parametrize(
    ("setting", "reason", "count"),
    [
        ("target_value=1e9", "target_value", 1),
        ("patience=3", "patience", 29),
        ("timeout=1e-9", "timeout", 0),
    ],
)
def test_a_study_ends_early(tmp_path: Path, setting: str, reason: str, count: int) -> None:
    output = run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=30", f"hydra.sweeper.{setting}")
    assert f"stopped          {reason}: " in output
    assert len(load_study(tmp_path).trials) <= count if reason == "patience" else len(load_study(tmp_path).trials) == count
    if reason != "timeout":  # a note says so
        assert load_study(tmp_path).user_attrs["over"].startswith(reason)


def test_optunas_terminator_ends_a_study(tmp_path: Path) -> None:
    never_good = "{_target_: optuna.terminator.StaticErrorEvaluator, constant: 1e9}"
    stop = "{_target_: optuna.terminator.Terminator, error_evaluator: " + never_good + "}"
    output = run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=40", f"hydra.sweeper.terminator={stop}")
    assert "stopped          terminator: " in output
    assert 1 < len(load_study(tmp_path).trials) < 40


@pytest.mark.parametrize(("count", "reason"), [(12, "sampler: every configuration has been tried"), (4, "")])
def test_a_sampler_that_has_tried_all_ends_a_study(tmp_path: Path, count: int, reason: str) -> None:
    """x=1 has no y: four configurations, however many were asked for."""
    ask = ["x=1,2", "y=0,1,2", "hydra.sweeper.when={y: 'x > 1'}", "hydra/sweeper/sampler=bruteforce"]
    output = run_sweep(tmp_path, *ask, f"hydra.sweeper.n_trials={count}")
    study = load_study(tmp_path)
    assert sorted(trial.values[0] for trial in study.trials) == [1, 4, 5, 8]
    assert study.user_attrs.get("over", "") == reason
    assert ("stopped          sampler: " in output) == bool(reason)


def test_a_dry_run_tells_and_runs_nothing(tmp_path: Path) -> None:
    output = run_sweep(tmp_path, *TPE, "y=3", "hydra.sweeper.dry_run=true", "hydra.sweeper.n_trials=7")
    assert "x: high=5.0 low=-5.0" in output
    assert "trials           7" in output
    assert "for example      x=" in output
    assert not (tmp_path / "sweep").exists()


WRONG: list[tuple[list[str], str]] = [
    (["x=interval(2,1)"], "x=interval(2,1): the interval is empty"),
    (["x=tag(log,interval(0,1))"], "the logarithm needs a lower end above 0"),
    (["x=interval(0.0,1.0)", "hydra/sweeper/sampler=grid"], "x has no list of values"),
    (["x=1,2", "hydra.sweeper.workers=0"], "hydra.sweeper.workers=0: give a whole number in [1, inf)"),
    (["x=1,2", "hydra.sweeper.dedup=no"], "hydra.sweeper.dedup=no: give reuse, resample, allow"),
    (["x=1,2", "hydra.sweeper.direction=up"], "hydra.sweeper.direction=up: give minimize or maximize"),
    (["x=1,2", "hydra.sweeper.when={x: 'q > 1'}"], "q is neither swept nor in the configuration"),
    (["x=1,2", "hydra.sweeper.constraints={a: 'small'}"], "hydra.sweeper.constraints.a=small: give a bound"),
    (["x=1,2", "hydra.sweeper.constraints={a: 5}"], "hydra.sweeper.constraints.a=5: give a bound"),
    (["x=1,2", "hydra.sweeper.constraints={a: null}"], "hydra.sweeper.constraints.a=None: give a bound"),
    (["x=interval(0.0,1.0)", "hydra.sweeper.enqueue=[{q: 1}]"], "hydra.sweeper.enqueue: the sweep has no parameter q"),
    (
        ["x=1,2", "hydra/sweeper/pruner=median", "hydra.sweeper.direction=[minimize,minimize]"],
        "several objectives cannot prune",
    ),
    (["x=1,2", "hydra/sweeper/sampler=cmaes", "+hydra.sweeper.sampler.nonsense=1"], "hydra.sweeper.sampler: CmaEsSampler"),
    (["x=1,2", "hydra.sweeper.storage=nonsense"], "hydra.sweeper.storage=nonsense cannot be used"),
    (["x=1,2", "hydra.sweeper.sampler=random"], "sampler=random: choose an option, as hydra/sweeper/sampler=random"),
    (["x=1,2", "hydra.sweeper.when=x"], "hydra.sweeper.when=x: give keys and values, as"),
    (
        ["x=interval(0.0,1.0)", "hydra.sweeper.enqueue=[{x: 0.5},{x: 9}]"],
        "enqueue: x=9 is not in the space: high=1.0 low=0.0",
    ),
    (["x=1,2", "hydra.sweeper.enqueue=[{x: 1}]"], "hydra.sweeper.enqueue: a grid has its order"),
    (["x=1,2", "seed=0,5", "hydra.sweeper.repeats.n=2"], "repeats.over=seed: the sweep varies it already"),
    (
        ["x=1,2", "hydra.sweeper.repeats={n: 2, over: nothing}"],
        "repeats.over=nothing: give a key that holds a whole number",
    ),
    (["x=1,2", "hydra.sweeper.devices=[0,1]"], "give hydra.sweeper.workers=2"),
    (
        ["x=1,2", "hydra.sweeper.workers=2", "hydra.sweeper.storage={_target_: optuna.storages.InMemoryStorage}"],
        "share one process",
    ),
    (["hydra.sweeper.params={x: {type: int, low: 1.5, high: 3}}"], "low, high and step take whole numbers"),
    (["x=1,2", "hydra.sweeper.n_trials=many"], "hydra.sweeper.n_trials=many: give a whole number"),
    (["x=1,2", "hydra.sweeper.max_failure_rate=2"], "hydra.sweeper.max_failure_rate=2: give a number in [0, 1]"),
    (["x=1,2", "hydra.sweeper.plots=maybe"], "hydra.sweeper.plots=maybe: give true or false"),
    (["x=1,2", "hydra.sweeper.devices=[gpu]"], "hydra.sweeper.devices=['gpu']: give a list, each item a whole number"),
    (["x=1,2", "hydra.sweeper.repeats.n=0"], "hydra.sweeper.repeats.n=0: give a whole number, 1 or more"),
    (["x=1,2", "hydra.sweeper.repeats.reduce=best"], "hydra.sweeper.repeats.reduce=best: give mean, median, min, max"),
    (["x=interval(0,1)", "hydra.sweeper.enqueue=[x]"], "hydra.sweeper.enqueue=['x']: give a list, each item keys and values"),
    (["hydra.sweeper.params={x: {low: 1, high: 3, step: 0}}"], "hydra.sweeper.params.x.step=0: give a step above 0"),
]


def test_what_cannot_be_is_reported_before_the_first_trial(tmp_path: Path) -> None:
    results = run_sweeps(tmp_path, {str(number): arguments for number, (arguments, _) in enumerate(WRONG)})
    for number, (arguments, words) in enumerate(WRONG):
        output, failed = results[str(number)]
        assert words in output, (arguments, output)
        assert failed, arguments
        assert not (tmp_path / str(number) / "times.txt").exists(), arguments


def test_a_parameter_that_the_configuration_lacks_is_named(tmp_path: Path) -> None:
    output = run_sweep(tmp_path, "nothing=1,2", fails=True)
    assert "Could not override 'nothing'" in output
    assert not (tmp_path / "times.txt").exists()


def test_every_sampler_of_the_group_samples(tmp_path: Path) -> None:
    names = [name for name in SAMPLERS if name not in ("grid", "motpe")]
    ask = ["x=range(-5,5)", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=3"]
    cases = {n: [*ask, f"hydra/sweeper/sampler={n}", "y=0,1" if n == "bruteforce" else "y=interval(0.0,1.0)"] for n in names}
    for name, (output, failed) in run_sweeps(tmp_path, cases).items():
        assert not failed, output
        assert len(load_study(tmp_path / name).trials) == 3


PUBLISHED: dict[str, tuple[dict[str, Any], list[str], int]] = {
    "grid": ({"sampler": {"_target_": "optuna.samplers.GridSampler", "_partial_": True}, "n_trials": 20, "n_jobs": 1,
              "params": {"x": "range(-2,2,step=0.5)", "y": "choice(-5,0,5)"}}, ["x", "y"], 20),
    "tpe": ({"sampler": {"_target_": "optuna.samplers.TPESampler", "seed": 123, "n_startup_trials": 2}, "n_jobs": 2,
             "direction": "minimize", "storage": None, "study_name": "sphere", "n_trials": 4, "max_failure_rate": 0.0,
             "search_space": {"x": {"type": "float", "low": -5.5, "high": 5.5, "step": 0.5},
                              "y": {"type": "categorical", "choices": [-5, 0]}}}, ["x", "y"], 4),
    "nsgaii": ({"sampler": {"_target_": "optuna.samplers.NSGAIISampler", "seed": 1}, "direction": ["minimize", "maximize"],
                "n_trials": 4, "n_jobs": 1, "params": {"x": "interval(0,5)"}}, ["x"], 4),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("form", ["group", "target"])
def test_a_configuration_of_the_published_plugin_runs_unchanged(tmp_path: Path, name: str, form: str) -> None:
    """Beside `hydra/sweeper: optuna`, or all of it written out with the published `_target_`."""
    settings, names, count = PUBLISHED[name]
    hydra = {**CONFIG["hydra"], "sweeper": settings}
    if form == "target":
        hydra["sweeper"] = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", **settings}
    two = "list" if name == "nsgaii" else False
    run_sweep(tmp_path, "++hydra.sweeper.plots=false", defaults=[{"override hydra/sweeper": "optuna"}], hydra=hydra, two=two)
    study = load_study(tmp_path, settings.get("study_name") or "sweep")
    assert len(study.trials) == count
    assert sorted(study.trials[0].params) == names
    assert [d.name.lower() for d in study.directions] == (["minimize", "maximize"] if name == "nsgaii" else ["minimize"])
    results = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert results["name"] == "optuna"
    assert ("solutions" if name == "nsgaii" else "best_params") in results


def test_the_options_of_hydras_group_are_the_sweepers_settings() -> None:
    options = ConfigStore.instance().repo["hydra"]["sweeper"]
    names = {setting.name for setting in fields(SweepSettings)}
    for name in ("grokbit", "optuna"):
        node = options[f"{name}.yaml"].node
        assert set(node) - {"defaults", "_target_", "_recursive_"} == names
        assert (node.max_failure_rate, node.dedup) == {"grokbit": (0.5, "reuse"), "optuna": (0.0, "allow")}[name]
    assert options["pbt.yaml"].node.factors == [0.8, 1.2]


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_of_the_group_can_be_made(name: str) -> None:
    with silence_optuna():
        bound = {"lower": 0.5} if name == "threshold" else {}
        node = make_option("optuna.pruners", name, PRUNERS[name]) | bound
        pruner = instantiate_setting(node, "hydra.sweeper.pruner")
    assert isinstance(pruner, optuna.pruners.BasePruner)


@pytest.mark.parametrize(("options", "module"), [(SAMPLERS, optuna.samplers), (PRUNERS, optuna.pruners)])
def test_the_arguments_of_options_are_optunas(options: dict[str, str], module: Any) -> None:
    for text in options.values():
        class_name, *arguments = text.split()
        known = set(signature(vars(module)[class_name].__init__).parameters)
        of_old_releases = {"n_ehvi_candidates", "categorical_distance_func", "_partial_"}  # in configurations of then
        assert set(arguments) <= known | of_old_releases, class_name


def test_hydras_start_does_not_import_optuna() -> None:
    script = "import sys; from hydra.core.plugins import Plugins; Plugins.instance(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "hydra_plugins.grokbit_sweeper.config" in loaded
    assert not {"optuna", "torch", "mlflow", "numpy"} & set(loaded)


def test_beside_the_published_plugin_a_warning_says_which_is_in_force(tmp_path: Path) -> None:
    """A stand-in for that plugin, where pip would put it: its name is its own, ours is ours."""
    package = tmp_path / "hydra_plugins" / "hydra_optuna_sweeper"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "config.py").write_text(
        "from hydra.core.config_store import ConfigStore\n"
        "target = 'hydra._internal.core_plugins.basic_sweeper.BasicSweeper'\n"
        "node = {'_target_': target, 'max_batch_size': None, 'params': None}\n"
        "ConfigStore.instance().store(group='hydra/sweeper', name='optuna', node=node, provider='theirs')\n"
    )
    output = run_sweep(tmp_path, "x=1,2")
    assert output.count("warning: hydra-optuna-sweeper is installed: hydra/sweeper=optuna means that plugin") == 1
    assert len(load_study(tmp_path).trials) == 2
    run_sweep(tmp_path, "x=3", defaults=[{"override hydra/sweeper": "optuna"}], hydra={"sweep": {"dir": "theirs"}})
    assert not (tmp_path / "theirs" / "study.journal").exists()
    assert (tmp_path / "theirs" / "0").is_dir()


def test_another_way_to_choose_is_another_sweep(tmp_path: Path) -> None:
    """Of the same space: what is not finished is gone on with by the very same command only."""
    ask = ["x=interval(0.0,1.0)", "hydra.sweeper.home=home", "hydra.sweeper.n_trials=3"]
    hydra = {**CONFIG["hydra"], "sweep": {"dir": "home/${now:%S-%f}"}}
    run_sweep(tmp_path, *ask, "hydra/sweeper/sampler=random", fails=True, die_at=1, hydra=hydra)
    run_sweep(tmp_path, *ask, "hydra/sweeper/sampler=qmc", hydra=hydra)
    assert len(list((tmp_path / "home").iterdir())) == 2
    run_sweep(tmp_path, *ask, "hydra/sweeper/sampler=random", hydra=hydra)
    assert len(list((tmp_path / "home").iterdir())) == 2
    run_sweep(tmp_path, *ask, "hydra/sweeper/sampler=random", "hydra.sweep.dir=elsewhere", hydra=hydra)
    assert (tmp_path / "elsewhere" / "study.journal").exists()


def test_a_reason_to_end_counts_for_the_command_that_gave_it(tmp_path: Path) -> None:
    run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=9", "hydra.sweeper.target_value=1e9")
    assert len(load_study(tmp_path).trials) == 1
    run_sweep(tmp_path, *TPE, "hydra.sweeper.n_trials=4")
    assert len(load_study(tmp_path).trials) == 4
    assert load_study(tmp_path).user_attrs["over"] == ""


def test_each_objective_has_the_direction_of_its_metric() -> None:
    assert parse_directions(None, ["val/loss", "val/acc", "params"]) == ["minimize", "maximize", "minimize"]
    assert parse_directions(None, ["accuracy"]) == ["minimize"]  # of another program: as the published plugin has it


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "nsgaii", "qmc", "gp"])
def test_what_a_seeded_sampler_draws_does_not_depend_on_the_process(name: str) -> None:
    """Twelve trials at once, and six and six with a sampler made anew; a parameter that is not always there."""
    target = SAMPLERS[name].split()[0]
    params = []
    for parts in ([12], [6, 6]):
        with silence_optuna():
            own = optuna.create_study()
            for count in parts:
                own.sampler = make_sampler({"_target_": f"optuna.samplers.{target}", "seed": 3})
                for _ in range(count):
                    trial = own.ask()
                    x = trial.suggest_float("x", -1, 1)
                    y = trial.suggest_float("y", 0, 1) if x > 0 else 0.0
                    own.tell(trial, x**2 + y)
        params.append([trial.params for trial in own.trials])
    assert params[0] == params[1]


def test_a_study_in_yaml_has_null_and_lists() -> None:
    space = parse_space({"x": [1, "a,b", None], "y": None, "z": 3}, [], {}, None)
    assert space.parameters["x"].texts == ("1", "'a,b'", "null")
    assert space.fixed == {"y": "y=null", "z": "z=3"}


def test_a_sweep_of_a_later_version_beside_it_is_no_obstacle(tmp_path: Path) -> None:
    later = tmp_path / "home" / "later"
    later.mkdir(parents=True)
    (later / "study.json").write_text('{"version": 99}')
    run_sweep(tmp_path, "x=1,2", "hydra.sweeper.home=home")
    assert sorted(path.name for path in later.iterdir()) == ["study.json"], "it is left alone"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ValueError("2 of them failed"), None])
def test_the_end_of_a_sweep_is_told_without_its_storage(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = MagicMock(spec=Worker, plan=MagicMock(storage="sqlite:///gone.db"), queue=MagicMock(), ranks=MagicMock())
    worker.queue.close.side_effect, worker.progress = LostError, MagicMock()
    monkeypatch.setattr(sweep, "is_storage_unreachable", lambda error: isinstance(error, LostError))

    def run() -> None:
        with sweep.finalize(worker, is_main_process=True):
            if error:
                raise error

    with pytest.raises(type(error) if error else ValueError) as raised:
        run()
    assert raised.value is error or (error is None and "is gone" in str(raised.value))


class LostError(Exception):
    """A storage that cannot be reached."""
