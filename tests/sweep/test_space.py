"""What a sweep varies: overrides of a command line become parameters, and values become overrides of each job."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from program import ROOT

from research.composition.overrides import to_override
from research.options.condition import Condition
from research.sweep import space
from research.sweep.compose import Composer
from research.sweep.space import Space

CONF = ROOT / "conf"
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)


def parse_space(*arguments: str, params: dict[str, Any] | None = None, when: dict[str, str] | None = None) -> Space:
    return space.parse_space(params or {}, arguments, when or {}, None)


def parse_value(line: str) -> Any:
    return OverridesParser.create().parse_override(line).value()


def parse_values(lines: list[str]) -> list[tuple[str, str]]:
    """Keys and what Hydra reads, 1 and True apart."""
    return [(str(o.get_key_element()), repr(o.value())) for o in OverridesParser.create().parse_overrides(lines)]


@settings(deadline=None)
@given(st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_hydra_reads_back_what_was_written(one: Any) -> None:
    assert parse_value(f"x={to_override(one)}") == one


@pytest.mark.parametrize("one", ["1", "null", "k=v", "a,b", "", "ü x", "true", "it's", "a\\", '"', "[x]", "1e-3", " x ", "²"])
def test_a_text_stays_a_text(one: str) -> None:
    parameter = parse_space(f"x=choice({to_override(one)},2)").parameters["x"]
    assert parameter.values == (one, 2)
    assert parse_value(f"x={parameter.format_value(one)}") == one


KEYS = st.sampled_from(["a", "b.c", "+d", "model"])
SWEEP = st.one_of(
    st.lists(st.integers(-9, 9), min_size=1, max_size=4).map(lambda values: ",".join(map(str, values))),
    st.lists(TEXT, min_size=2, max_size=3).map(lambda values: ",".join(map(to_override, values))),
    st.lists(st.sampled_from(["a", "b", "true", "2", "c_d"]), min_size=1).map(lambda values: f"choice({','.join(values)})"),
    st.tuples(st.integers(-5, 5), st.integers(1, 5)).map(lambda ends: f"range({ends[0]},{sum(ends)})"),
    st.tuples(st.integers(-5, 5), st.integers(1, 5)).map(lambda ends: f"range({ends[0]}.5,{sum(ends)},0.5)"),
    st.just("range(5,0,-2)"),
    st.just("sort(3,1,2,reverse=true)"),
    st.just("[1,2],{a:1}"),
    st.just("one"),
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, SWEEP, min_size=1, max_size=3))
def test_a_grid_is_that_of_hydras_own_sweeper(sweeps: dict[str, str]) -> None:
    """In its order, but each combination once."""
    arguments = [f"{key}={sweep}" for key, sweep in sweeps.items()]
    theirs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(arguments), None)[0]
    ours = parse_space(*arguments)
    grid = [parse_values(ours.to_overrides(params)) for params in ours.iter_grid()]
    expected = [parse_values(list(job)) for job in theirs]
    assert grid == [job for i, job in enumerate(expected) if job not in expected[:i]]


def test_a_shuffled_range_gives_each_value_once() -> None:
    values = parse_space("a=shuffle(range(0,20))").parameters["a"].values
    assert sorted(values) == list(range(20))
    assert values != tuple(range(20))


@pytest.mark.parametrize(
    ("sweep", "distribution"),
    [
        ("range(1,3)", optuna.distributions.IntDistribution(1, 2)),
        ("range(1,10,3)", optuna.distributions.IntDistribution(1, 7, step=3)),
        ("range(0.5,5.5,step=1)", optuna.distributions.FloatDistribution(0.5, 4.5, step=1.0)),
        ("tag(log,range(1,9))", optuna.distributions.IntDistribution(1, 8, log=True)),
        ("int(interval(1,4))", optuna.distributions.IntDistribution(1, 4)),
        ("interval(1.0,4)", optuna.distributions.FloatDistribution(1.0, 4.0)),
        ("tag(log,interval(1e-4,1e-2))", optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)),
        ("1,True", optuna.distributions.CategoricalDistribution(("1", "true"))),  # Optuna would take them for each other
        ("2,a,null,2.5", optuna.distributions.CategoricalDistribution((2, "a", None, 2.5))),
    ],
)
def test_a_sweep_is_a_distribution(sweep: str, distribution: Any) -> None:
    assert parse_space(f"x={sweep}").parameters["x"].distribution == distribution


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_every_sampled_value_is_one_that_hydra_would_give(seed: int) -> None:
    ours = parse_space("a=range(0.1,1,0.1)", "b=range(7,0,-3)", "c=x,null,'1'", "d=1,2", "lr=tag(log,interval(1e-5,1))")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    job = dict(line.split("=") for line in ours.to_overrides(ours.suggest(study.ask())))
    assert job["a"] in OverridesParser.create().parse_override("a=range(0.1,1,0.1)").sweep_string_iterator()
    assert job["b"] in ("7", "4", "1")
    assert job["c"] in ("x", "null", "'1'")
    assert 1e-5 <= parse_value(f"x={job['lr']}") <= 1


def test_yaml_spells_out_and_the_command_line_wins() -> None:
    params = {"x": {"type": "float", "low": 1e-4, "high": 1, "log": True}, "n": {"type": "int", "low": 1, "high": 9, "step": 2},
              "y": "choice(1,2)", "act": {"choices": ["a,b", None]}}  # fmt: skip
    parsed = parse_space("y=interval(0.0,1.0)", "z=3", "~w", params=params)
    assert parsed.parameters["x"].distribution == optuna.distributions.FloatDistribution(1e-4, 1, log=True)
    assert parsed.parameters["n"].values == (1, 3, 5, 7, 9)
    assert parsed.parameters["act"].texts == ("'a,b'", "null")
    assert parsed.fixed == {"z": "z=3", "~w": "~w"}
    assert parsed.parameters["y"].distribution == optuna.distributions.FloatDistribution(0, 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x=interval(2,1)", "the lower end comes first"),
        ("x=tag(log,interval(0,1))", "x=tag(log,interval(0,1)): the logarithm needs a lower end above 0"),
        ("x=range(5,5)", "nothing is between"),
        ("x=range(0,1e9,1)", "too many values"),
        ("x=tag(log,range(1,9,2))", "tag(log,interval("),
    ],
)
def test_a_space_that_cannot_be_is_refused_by_its_key(line: str, words: str) -> None:
    with pytest.raises(ValueError, match="x=") as error:
        parse_space(line)
    assert words in str(error.value)


def test_a_parameter_is_there_only_where_its_condition_holds() -> None:
    when = {"optim.lamb": "optim == 'grokfast' and lr > 0.1", "deep": "optim.lamb >= 1"}
    ours = parse_space("deep=1,2", "optim.lamb=0,2", "optim=adamw,grokfast", "lr=0.2", when=when)
    assert sorted(ours.to_overrides(params) for params in ours.iter_grid()) == [
        ["deep=1", "optim.lamb=2", "optim=grokfast", "lr=0.2"],
        ["deep=2", "optim.lamb=2", "optim=grokfast", "lr=0.2"],
        ["optim.lamb=0", "optim=grokfast", "lr=0.2"],
        ["optim=adamw", "lr=0.2"],
    ]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        params = ours.suggest(study.ask())
        assert ("optim.lamb" in params) == (params["optim"] == "grokfast")
        assert ("deep" in params) == (params.get("optim.lamb") == 2)


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"x": "y =="}, "is not a condition"),
        ({"x": "__import__('os')"}, "is not a condition"),
        ({"x": "y if y else 1"}, "is not a condition"),
        ({"x": "other == 1"}, "other is neither swept nor in the configuration"),
        ({"z": "y == 1"}, "the sweep has no parameter z"),
        ({"x": "y == 1", "y": "x == 1"}, "wait for each other"),
    ],
)
def test_a_condition_that_cannot_be_evaluated_is_refused(when: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.when") as error:
        parse_space("x=1,2", "y=1,2", when=when)
    assert words in str(error.value)


@given(st.integers(), st.integers(), st.booleans())
def test_a_condition_is_pythons(a: int, b: int, c: bool) -> None:
    source = "not (a < b <= 3) or c and a.b in [1, -2] or a != b"
    known = {"a": a, "b": b, "c": c, "a.b": b}
    assert Condition(source, "x").holds(known) == (not (a < b <= 3) or (c and b in [1, -2]) or a != b)


def to_text(config: DictConfig) -> str:
    """Return all values in their order, interpolations as written; `to_yaml` takes ten times as long."""
    return json.dumps(OmegaConf.to_container(config), default=str)


OVERRIDES = st.fixed_dictionaries(
    {"lr": st.sampled_from(["0.1", "1e-3", "${seed}"]), "model": st.sampled_from(["bitnet", "mlp"]),
     "optim.weight_decay": st.sampled_from(["0", "1.5"]), "++new.key": st.sampled_from(["1", "a", "[1,2]"]),
     "data.p": st.sampled_from(["7", "11"]), "++hydra.job.env_set.X": st.sampled_from(["a", "'{\"b\": 1}'"])}
)  # fmt: skip


def test_a_configuration_composed_from_an_earlier_one_is_hydras(tmp_path: Path) -> None:
    """To the last node, its flags and its caches: for all pairs of a hundred that were drawn."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["optim=grokfast"], run_mode=RunMode.MULTIRUN)
        quick = Composer(loader)

        @settings(deadline=None, max_examples=10)
        @given(OVERRIDES)
        def assert_same_config(overrides: dict[str, str]) -> None:
            lines = [f"{key}={text}" for key, text in overrides.items()]
            for _ in range(2):
                ours, theirs = (source.load_sweep_config(master, lines) for source in (quick, loader))
                assert to_text(ours) == to_text(theirs)
                assert ours.optim.lr == theirs.optim.lr
                for key in ("hydra", "hydra.overrides", "optim"):
                    one, other = OmegaConf.select(ours, key), OmegaConf.select(theirs, key)
                    assert one._metadata.flags == other._metadata.flags
                    assert one._metadata.object_type == other._metadata.object_type
                assert OmegaConf.is_struct(ours) == OmegaConf.is_struct(theirs)

        assert_same_config()
        assert 0 < len(quick.cache) <= 8


STOP, AT = "callbacks.early_stop", "callbacks.early_stop.target"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([f"{STOP}={{target:0.9}}", f"{AT}=0.5"], [f"{STOP}={{target:0.9}}", f"{AT}=0.6"]),
        ([f"{AT}=0.5", f"{STOP}={{target:0.9}}"], [f"{AT}=0.6", f"{STOP}={{target:0.9}}"]),
        ([f"{STOP}=null", f"++{AT}=1"], [f"{STOP}=5", f"++{AT}=1"]),
        (["lr=0.1", "++lr=0.3"], ["lr=0.2", "++lr=0.3"]),
    ],
)
def test_overrides_of_the_same_key_keep_their_order(one: list[str], other: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        quick = Composer(loader)
        for lines in (one, other):
            ours, theirs = (to_text(source.load_sweep_config(master, lines)) for source in (quick, loader))
            assert ours == theirs


def test_a_value_that_does_not_fit_has_hydras_message() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        quick, messages = Composer(loader), []
        quick.load_sweep_config(master, ["hydra.sweep.subdir=1", "++hydra.job.env_set.A=a"])
        for source in (quick, loader):
            with pytest.raises(HydraException, match="env_set") as error:
                source.load_sweep_config(master, ["hydra.sweep.subdir=1", "++hydra.job.env_set.A='${'"])
            messages.append(str(error.value))
        assert messages[0] == messages[1]
