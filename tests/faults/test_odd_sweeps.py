"""Row 22: odd sweeps: values, presets, exits and addresses that are unusual, and are what they say."""

import asyncio
import csv
import math
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, check_distribution_compatibility
from optuna.trial import TrialState
from program import ROOT
from sqlalchemy.engine import make_url
from sweeping import load_study, run_sweep, run_sweeps

from research.composition.overrides import to_override
from research.metrics import confidence_interval
from research.preflight import check
from research.preflight.folders import check_subdir
from research.signals import Stopped
from research.sweep.compose import run_task
from research.sweep.objective import Outcome, read_outcome, reduce_outcomes
from research.sweep.plan import resolve_folder
from research.sweep.settings import CommonSettings
from research.sweep.space import Parameter, parse_space
from research.tracking import mlflow_store
from research.tracking.storage import find_sqlite_file, format_sqlite_url
from research.tracking.study_spec import SWEEP_SPEC_FILE


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("optim=glob(adam*)", ("adam", "adamw")),
        ("optim=glob([adam*,muon],exclude=adam)", ("adamw", "muon")),
        ("optim=glob(adam?)", ("adamw",)),
    ],
)
def test_a_glob_is_the_options_that_match(line: str, texts: tuple[str, ...]) -> None:
    """On the command line and in a yaml, which are parsed alike."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoader)
        key, _, value = line.partition("=")
        for space in (parse_space({}, [line], {}, loader), parse_space({key: value}, [], {}, loader)):
            assert space.parameters[key].texts == texts
        with pytest.raises(ValueError, match="nothing to choose from"):
            parse_space({}, ["optim=glob(nothing*)"], {}, loader)


SHUFFLED = ["seed=shuffle(range(0,8))", "lr=shuffle(1e-3,2e-3,3e-3,4e-3)", "x=shuffle(choice(a,b,c,d))", "y=shuffle(range(8))"]


def test_a_shuffled_sweep_has_one_order_in_all_processes() -> None:
    script = f"from research.sweep.space import parse_space; print(parse_space({{}}, {SHUFFLED}, {{}}, None).describe())"
    said = {
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    parameters = parse_space({}, SHUFFLED, {}, None).parameters
    assert said == {f"{parse_space({}, SHUFFLED, {}, None).describe()}\n"}
    assert sorted(parameters["seed"].values) == list(range(8))
    assert parameters["seed"].values != tuple(range(8))
    assert parameters["seed"].values != parameters["y"].values  # each key has an order of its own


@given(
    st.lists(st.one_of(st.floats(), st.integers(-3, 3), st.booleans(), st.none(), st.text(max_size=3)), min_size=1, max_size=5)
)
def test_every_choice_can_be_asked_for_again(values: list[Any]) -> None:
    """By a resumed study, whose own distribution has gone through JSON and come back."""
    parameter = make_parameter(values)
    assert isinstance(parameter.distribution, CategoricalDistribution)
    other = make_parameter(values)
    check_distribution_compatibility(pickle.loads(pickle.dumps(parameter.distribution)), other.distribution)
    for value, text in zip(parameter.values, parameter.texts, strict=True):
        assert parameter.format_value(value) == text


def make_parameter(values: list[Any]) -> Parameter:
    return parse_space({"x": values}, [], {}, None).parameters["x"]


@pytest.mark.parametrize(
    ("values", "finite"),
    [((1.0, 2.0), True), ((1.0, math.inf), False), ((-math.inf, math.inf), False), ((math.nan, 1.0), False)],
)
def test_an_interval_of_values_that_are_not_finite_is_unknown(values: tuple[float, ...], finite: bool) -> None:
    assert math.isfinite(confidence_interval(values)[1]) == finite
    assert math.isnan(confidence_interval(values)[1]) != finite


@pytest.mark.parametrize("method", ["mean", "median", "min", "max"])
def test_repeats_whose_mean_is_not_a_number_fail_their_trial_alone(method: str) -> None:
    outcomes = [Outcome([value], limits={"params": 1.0}) for value in (math.inf, -math.inf)]
    assert bool(reduce_outcomes(outcomes, method).error) == (method in ("mean", "median"))


def leave(config: Any) -> None:
    """A job that a signal may end: a handler of its own, or one who waits for Ctrl-C, calls sys.exit."""
    try:
        if config.get("cause"):
            raise {"Stopped": Stopped(15), "KeyboardInterrupt": KeyboardInterrupt(), "ValueError": ValueError()}[config.cause]
    except BaseException:
        sys.exit(config.code)
    sys.exit(config.code)


@pytest.mark.parametrize("code", [129, 130, 143])
def test_a_task_that_a_signal_ends_ends_the_sweep(code: int) -> None:
    for cause in ("Stopped", "KeyboardInterrupt"):
        with pytest.raises(SystemExit):
            run_task(leave, OmegaConf.create({"code": code, "cause": cause}))
    before = signal.signal(code - 128, lambda *_: sys.exit(code))
    try:
        with pytest.raises(SystemExit):
            run_task(lambda _: os.kill(os.getpid(), code - 128), OmegaConf.create())
    finally:
        signal.signal(code - 128, before)


@pytest.mark.parametrize("code", [0, 1, "no data", None, 127, 128, 129, 130, 143, 137, 200, 255, True])
def test_a_task_that_exits_by_itself_fails_alone(code: Any) -> None:
    text = re.escape("" if code is None else repr(code))
    for cause in ("", "ValueError"):
        with pytest.raises(RuntimeError, match=rf"the job called sys\.exit\({text}\)"):
            run_task(leave, OmegaConf.create({"code": code, "cause": cause}))


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unreadable(dict[str, float]):
    def __iter__(self) -> Any:
        raise KeyError("unreadable")

    keys = __iter__


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (10**400, r"the job returned 1000+\.\.\.0+: return a number"),
        (10**5000, "Exceeds the limit|the job returned 1000"),
        ([1e3, 10**400], "the job returned .*: return a number"),
        (1j, "the job returned 1j: return a number"),
        (Unreadable(a=1.0), "KeyError: 'unreadable'"),
        (SilentError(), "SilentError: $"),
        (ValueError("\ud800\x1b\n"), "ValueError: \ud800\x1b\n"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_whatever_a_job_returns_or_raises_fails_its_trial_alone(result: Any, error: str) -> None:
    returned = JobReturn()
    returned.return_value = result
    returned.status = JobStatus.FAILED if isinstance(result, Exception) else JobStatus.COMPLETED
    metrics = ["a"] if isinstance(result, dict) else []
    outcome = read_outcome(returned, metrics, 1, ())
    assert re.search(error, outcome.error)
    assert len(outcome.error) < 500
    assert outcome.lack == ""


def test_a_metric_beyond_floats_fails_its_trial_alone() -> None:
    returned = JobReturn()
    returned.return_value, returned.status = {"a": 10**400, "b": 1}, JobStatus.COMPLETED
    assert "the run has no number a" in read_outcome(returned, ["a"], 1, ()).error
    assert read_outcome(returned, ["b"], 1, ()).values == [1.0]


def test_a_task_that_ends_by_no_exception_fails_alone() -> None:
    def cancel(config: Any) -> None:
        raise asyncio.CancelledError("late")

    with pytest.raises(RuntimeError, match=r"the job ended by CancelledError: late"):
        run_task(cancel, OmegaConf.create())


def test_odd_values_and_addresses_in_whole_sweeps(tmp_path: Path) -> None:
    """The program: infinite results, NaN in a resumed study, values whose kinds matter, addresses of SQLite."""
    random_study = ["hydra/sweeper/sampler=random", "hydra.sweeper.study_name=n", "hydra.sweeper.home=../home"]
    nan = ["x=1,2,3", "+z=nan,1.5", *random_study, "hydra.sweeper.dedup=allow"]
    cases = {
        "infinite": ["x=inf,2", "y=1,2", "seed=0,1"],
        "nan": [*nan, "hydra.sweeper.n_trials=2"],
        "nan_again": [*nan, "hydra.sweeper.n_trials=6"],
        "kinds": ["+z=choice(1,true,'1',[1,2])", "x=1"],
        "space": ["x=1", "hydra.sweeper.storage='sqlite:///my%20study.db'"],
        "query": ["x=1", "hydra.sweeper.storage='sqlite:///q.db?timeout=5'"],
        "uri": ["x=1", "hydra.sweeper.storage='sqlite:///file:u.db?mode=rwc&uri=true'"],
        "driver": ["x=1", "hydra.sweeper.storage=sqlite+pysqlite:///d.db"],
    }
    said = run_sweeps(tmp_path, cases)
    assert [name for name, (_, failed) in said.items() if failed] == []
    assert all("Traceback" not in output for output, _ in said.values()), said
    report = (tmp_path / "infinite" / "sweep" / "results.md").read_text()
    assert "± nan" in report
    assert "8 trials" in report
    assert "resumed after 2" in said["nan_again"][0]
    for name, file in {"space": "my study.db", "query": "q.db", "uri": "u.db", "driver": "d.db"}.items():
        databases = [path.name for path in (tmp_path / name).iterdir() if ".db" in path.name]
        assert databases == [file]
    best = yaml.safe_load((tmp_path / "kinds" / "sweep" / "best.yaml").read_text())
    assert (best["z"], type(best["z"])) == (1, int)
    with (tmp_path / "kinds" / "sweep" / "trials.csv").open() as trials:
        assert [row["z"] for row in csv.DictReader(trials)] == ["1", "true", "'1'", "[1,2]"]
    solution = yaml.safe_load((tmp_path / "kinds" / "sweep" / "optimization_results.yaml").read_text())
    assert (solution["best_params"]["z"], type(solution["best_params"]["z"])) == (1, int)


def test_a_job_that_exits_is_a_failed_trial(tmp_path: Path) -> None:
    output = run_sweep(tmp_path, "x=1,2,3", fails=True, exit_at=1)
    assert "#1 failed: RuntimeError: the job called sys.exit(7)" in output
    assert [t.state for t in load_study(tmp_path).trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///a.db", "a.db"),
        ("sqlite:////abs/a.db", "/abs/a.db"),
        ("sqlite:///a%20b.db", "a b.db"),
        ("sqlite:///a%3Fb.db?timeout=5", "a?b.db"),
        ("sqlite+pysqlite:///a.db?x=1", "a.db"),
        ("sqlite:///file:a.db?mode=ro&uri=true", "a.db"),
        ("sqlite:///:memory:", None),
        ("sqlite:///file::memory:?mode=memory&uri=true", None),
        ("sqlite://", None),
        ("postgresql://u@h/n", None),
        ("http://h/sqlite:///a", None),
    ],
)
def test_the_file_of_an_sqlite_address(url: str, file: str | None) -> None:
    found = find_sqlite_file(url)
    assert found == (Path(file) if file else None)
    if found:
        assert find_sqlite_file(format_sqlite_url(Path("/x") / found, url)) == Path("/x") / found


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12))
def test_any_file_name_has_an_sqlite_address(name: str) -> None:
    """The one that SQLAlchemy opens."""
    path = Path("/folder") / name.replace("/", "_").replace("\n", "_")
    assert find_sqlite_file(format_sqlite_url(path)) == path
    assert make_url(format_sqlite_url(path)).database == str(path)


def test_mlflow_stores_have_the_same_addresses(tmp_path: Path) -> None:
    """A query is no part of the file's name, and the store's artifacts lie beside the file."""
    client = mlflow_store.connect(f"sqlite:///{tmp_path}/my%20store.db?timeout=30")
    mlflow_store.get_or_create_experiment(client, "name", f"sqlite:///{tmp_path}/my%20store.db?timeout=30")
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["my store.db"]
    assert client.get_experiment_by_name("name").artifact_location == (tmp_path / "mlartifacts" / "name").as_uri()
    client = mlflow_store.connect(f"sqlite:///{tmp_path}/my%20store.db?timeout=30", must_exist=True)
    assert client.get_experiment_by_name("name") is not None


CARRIES = "# @package _global_\nhydra:\n  sweeper:\n    n_trials: 5\n    params:\n      lr: 1e-3,1e-2\n"
PLAIN = "# @package _global_\nseed: 1\n"


@pytest.fixture
def conf(conf: Path) -> Path:
    """The copy of conf/ with presets of its own."""
    for name, text in {"one": CARRIES, "two": CARRIES.replace("5", "6"), "plain": PLAIN, "other": PLAIN}.items():
        (conf / "experiment" / f"{name}.yaml").write_text(text)
    return conf


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        (["experiment=one,two"], True),
        (["experiment=plain,one"], True),
        (["experiment=one,plain"], True),
        (["experiment=glob(on*)"], True),
        (["experiment=plain,other"], False),
        (["experiment=one", "seed=0,1"], False),
        (["experiment=[plain,one]"], False),  # both are composed before the sweep begins
        (["model=bitnet,transformer"], False),
    ],
)
def test_settings_of_a_sweep_are_not_lost_in_a_swept_preset(conf: Path, arguments: list[str], lost: bool) -> None:
    mistakes = check.find_mistakes([*arguments, "name=n", "monitor=val/acc"], True)
    assert bool(mistakes) == lost, mistakes
    if lost:
        assert "has settings of the sweep" in mistakes[0]
        assert "hydra.sweeper." in mistakes[0]


def test_several_presets_that_are_composed_together_keep_all_settings(conf: Path) -> None:
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", ["experiment=[one,plain]"], return_hydra_config=True)
    assert config.hydra.sweeper.n_trials == 5
    assert config.hydra.sweeper.params.lr == "1e-3,1e-2"


NUMBERS = {  # a sweep that is refused by the preflight and by the sweep itself, and the reason
    "seed=range(0,5,0)": "the step must not be 0",
    "seed=range(0.0,5.0,0.0)": "the step must not be 0",
    "seed=int(range(0,3,0.5))": "int cuts 0.5; give whole numbers",
    "seed=range(0,1e12)": "too many values are between start and stop",
    "seed=range(0,1000000000000)": "too many values are between start and stop",
    "seed=shuffle(range(0,1000000000000))": "too many values are between start and stop",
    "lr=range(0,inf)": "too many values are between start and stop",
    "lr=range(0,nan)": "too many values are between start and stop",
    "seed=range(5,0)": "nothing is between start and stop",
    "seed=int(interval(0.5,3.5))": "int cuts 0.5, 3.5; give int(interval(1,3))",
    "seed=tag(log,int(interval(0.5,3)))": "int cuts 0.5; give int(interval(1,3))",
    "seed=int(interval(0.2,0.8))": "int cuts 0.2, 0.8; give whole numbers",
    "lr=tag(foo,interval(0,1))": "a tag foo has no effect",
    "lr=tag(log,b,a,interval(1,2))": "a tag a, b has no effect",
    "seed=tag(log,choice(1,2))": "a tag log has no effect",
}


@pytest.mark.parametrize("line", NUMBERS)
@pytest.mark.parametrize("form", ["typed", "params"])
def test_numbers_that_cannot_be_swept_are_refused_with_the_reason(line: str, form: str) -> None:
    """On the command line and in a yaml; before the sweep, and by a sweep that had no preflight."""
    key, _, values = line.partition("=")
    typed = [line] if form == "typed" else [f"hydra.sweeper.params={{{key}:'{values}'}}"]
    (mistake,) = check.find_mistakes(typed, True)
    assert NUMBERS[line] in mistake
    with pytest.raises(ValueError, match=re.escape(f"{line}: {NUMBERS[line]}")):
        parse_space({} if form == "typed" else {key: values}, [line] if form == "typed" else [], {}, None)


def test_a_yaml_whose_glob_matches_nothing_is_refused() -> None:
    (mistake,) = check.find_mistakes(["hydra.sweeper.params={optim:'glob(nothing*)'}"], True)
    assert "nothing to choose from" in mistake


@pytest.mark.parametrize("line", ["seed=int(interval(0,3))", "seed=int(range(0,3.0))", "lr=tag(log,interval(1e-3,1))"])
def test_numbers_that_can_be_swept_are(line: str) -> None:
    assert check.find_mistakes([line], True) == []
    assert len(parse_space({}, [line], {}, None).parameters) == 1


@pytest.mark.parametrize("subdir", ["../../esc${seed}", "/tmp/esc${seed}", "~/esc${seed}", "a/../../${seed}", "${seed}/.."])
def test_a_trial_stays_below_its_sweep(subdir: str) -> None:
    (mistake,) = check.find_mistakes(["seed=0,1", f"hydra.sweep.subdir='{subdir}'"], True)
    assert "is not below the sweep's folder" in mistake
    assert check_subdir("a..b/${hydra.job.num}") is None


@pytest.mark.parametrize("name", [".", "..", "../x", "-x", "~x", "a\tb"])
def test_a_study_name_is_the_name_of_a_folder(name: str, tmp_path: Path) -> None:
    settings = CommonSettings(study_name=name, home=str(tmp_path))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "x"}, "overrides": {"hydra": []}}})
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.study_name=.* cannot name a folder"):
        resolve_folder(settings, config, SWEEP_SPEC_FILE, lambda folder: False)
    mistakes = check.find_mistakes(["seed=0,1", f"hydra.sweeper.study_name={to_override(name)}"], True)
    assert "hydra.sweeper.study_name=" in "".join(mistakes)


def test_a_sweep_with_a_home_is_made_and_found_there(tmp_path: Path) -> None:
    """It was made elsewhere, and so never found again."""
    failed = run_sweep(tmp_path, "x=1,2", "hydra.sweeper.home=home", fails=True, fail_at="1", error="No space left on device")
    assert "lacks room" in failed
    (folder,) = (tmp_path / "home").iterdir()
    assert (folder / SWEEP_SPEC_FILE).exists()
    assert "resumed after 1" in run_sweep(tmp_path, "x=1,2", "hydra.sweeper.home=home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == [folder.name]
