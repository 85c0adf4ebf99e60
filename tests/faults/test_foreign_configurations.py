"""Row 17: a configuration that somebody else wrote names code, and the code does not run: attacks would make MARK."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import OmegaConf
from program import ROOT, TINY, train
from sweeping import run_sweeps

from research import rules
from research.composition.compose import iter_targets
from research.composition.recorded import load_config
from research.load import instantiate, load_run
from research.options import targets
from research.preflight import check, program
from research.sweep.study import instantiate_setting
from research.tracking.optuna_storage import get_storage

OLD = ROOT / "tests" / "fixtures" / "v1"
OPEN = {"_target_": "builtins.open", "file": "MARK", "mode": "w"}  # Hydra's own block list lets this pass
GIT = ["-c", "alias.x=!touch MARK", "x"]
ATTACKS: dict[str, dict[str, Any]] = {
    "a builtin": OPEN,
    "a shell": {"_target_": "os.system", "command": "touch MARK"},
    "a method": {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["MARK"]}]},
    "a process": {"_target_": "subprocess.check_call", "args": ["touch", "MARK"]},
    "below": {"_target_": "research.models.mlp.MLP", "dim": 16, "linear": OPEN},
    "among arguments": {"_target_": "research.models.mlp.MLP", "_args_": [3, OPEN]},
    "deep": {"_target_": "research.models.mlp.MLP", "a": [{"b": [[{"c": OPEN}]]}]},
    "partial": {"_target_": "research.models.mlp.MLP", "linear": {**OPEN, "_partial_": True}},
    "not recursive": {"_target_": "research.models.mlp.MLP", "_recursive_": False, "linear": OPEN},
    "an alias of a module": {"_target_": "research.models.hub.Path.touch", "self": "MARK"},
    "an alias of torch": {"_target_": "research.models.hub.torch.load", "f": "MARK.pt", "weights_only": False},
    "an alias in torch": {"_target_": "torch.nn.modules.module.warnings.sys.modules.clear"},
    "what a class knows": {"_target_": "torch.nn.Linear.__init__.__globals__.clear"},
    "the type of a class": {"_target_": "torch.nn.Linear.__class__", "_args_": ["x", [], {}]},
    "a function of ours": {"_target_": "research.run_dir.replace_text", "path": "MARK", "text": "x"},
    "git of ours": {"_target_": "research.tracking.environment.run_git", "_args_": GIT},
    "a tool of ours": {"_target_": "benchmarks.harness.run_command"},
    "Hydra's own": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "a module beside the run": {"_target_": "beside.build"},
    "a reference": {"_target_": "${model.evil}", "evil": "builtins.open", "file": "MARK", "mode": "w"},
    "nonsense": {"_target_": "a b.c/d:e"},
    "no name": {"_target_": 7},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder where one starts, with a module whose import alone would do harm, and no mark at the end."""
    (tmp_path / "beside.py").write_text("open('MARK', 'w')\ndef build(*a, **k): open('MARK', 'w')\n")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "MARK.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    targets.is_own_module.cache_clear()
    yield tmp_path
    targets.is_own_module.cache_clear()
    assert not [*tmp_path.rglob("MARK")]


def copy_run(folder: Path, **nodes: Any) -> Path:
    """A run folder of another's: one of ours with some nodes of its configuration replaced."""
    run = Path(shutil.copytree(OLD / "digits", folder / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | nodes))
    return run


def test_these_attacks_would_work(folder: Path) -> None:
    hydra_instantiate(OPEN).close()
    (folder / "MARK").unlink()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_run_folder_is_refused_by_the_key(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))  # as python -m does
    run = copy_run(folder, model=ATTACKS[name])
    reasons = {"a reference": "may not look up", "nonsense": "is a name, as", "no name": "is a name, as"}
    with pytest.raises(ValueError, match=rf"(?s)RUN=.*config\.yaml makes no model: .*{reasons.get(name, 'GROKBIT_TARGETS=')}"):
        load_run(str(run))


def test_the_data_of_a_run_folder_is_refused_too(folder: Path) -> None:
    run = copy_run(folder, data=OPEN)
    (run / "summary.json").unlink()  # else its sizes are there, and no data is built
    with pytest.raises(ValueError, match=r"data\._target_=builtins\.open"):
        load_run(str(run))


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "${oc.decode:${oc.env:HOME}}", "x${ oc.env : HOME}", "${${a}:b}", "${seed}", "${..lr}"]
)
def test_a_run_folder_looks_up_nothing(folder: Path, text: str) -> None:
    run = copy_run(folder, model={"_target_": "research.models.mlp.MLP", "dim": text})
    with pytest.raises(ValueError, match="may not look up anything"):
        load_run(str(run))


WEDGES: dict[str, Callable[[Path], object]] = {
    "config.yaml": lambda run: append(run, "y: &a [*a]\n"),
    "config.yaml: bomb": lambda run: append(run, "".join(f"b{n}: &b{n} [{f'*b{n - 1}, ' * 9}]\n" for n in range(1, 12))),
    "config.yaml: deep": lambda run: append(run, f"z: {'[' * 3000}{']' * 3000}\n"),
    "config.yaml: pipe": lambda run: replace_by_pipe(run / "config.yaml"),
    "config.yaml: device": lambda run: replace_by_device(run / "config.yaml"),
}


def append(run: Path, text: str) -> None:
    with (run / "config.yaml").open("a") as file:
        file.write("b0: &b0 x\n" + text)


def replace_by_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("kind", WEDGES)
def test_no_configuration_of_a_folder_is_read_for_ever(folder: Path, kind: str) -> None:
    """The checkpoint of this version has one too, that of an old run has none."""
    WEDGES[kind](run := copy_run(folder))
    assert load_config(run) == ({}, "config.yaml cannot be read")


@pytest.mark.parametrize("name", ["summary.json", "checkpoints/step-00000020/manifest.json"])
def test_no_pipe_is_waited_for(folder: Path, name: str) -> None:
    replace_by_pipe(copy_run(folder) / name)
    if name == "summary.json":
        assert load_run(str(folder / "run")).model
    else:
        with pytest.raises(ValueError, match=r"it is no regular file"):
            load_run(str(folder / "run"))


def test_references_to_references_and_endless_layers_are_refused(folder: Path) -> None:
    config = yaml.safe_load((OLD / "digits" / "config.yaml").read_text())
    run = copy_run(folder, b0="x", **{f"b{n}": f"${{b{n - 1}}}${{b{n - 1}}}" for n in range(1, 40)})
    with pytest.raises(ValueError, match="may not look up anything"):
        load_run(str(run))
    shutil.rmtree(run)
    with pytest.raises(ValueError, match=r"depth takes a whole number in \[1, 10000\]; got 1000000000"):
        load_run(str(copy_run(folder, model=config["model"] | {"depth": 10**9})))


def test_a_run_folder_loads_where_its_module_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nets.py").write_text(
        "from research.models.mlp import MLP\nclass Net(MLP): ...\ndef build(shape, **k): return MLP(shape, **k)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    config = yaml.safe_load((OLD / "digits" / "config.yaml").read_text())
    run = copy_run(folder, model=config["model"] | {"_target_": "nets.build"})
    with pytest.raises(ValueError, match=r"(?s)model\._target_=nets\.build.*set GROKBIT_TARGETS=nets"):
        load_run(str(run))
    monkeypatch.setenv("GROKBIT_TARGETS", "other, nets")
    assert type(load_run(str(run)).model).__name__ == "MLP"


@pytest.mark.parametrize("name", ATTACKS)
def test_what_one_composes_is_built_of_components(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"_target_=.*"):
        instantiate(OmegaConf.create({"model": ATTACKS[name]}).model, key="model")


def test_components_and_own_modules_are_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").write_text("import os\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(str(folder))
    targets.is_own_module.cache_clear()
    for target in ("mine.Thing", "torch.nn.GELU", "torch.nn.modules.activation.GELU", "research.tracking.jsonl.Jsonl"):
        assert type(instantiate(OmegaConf.create({"_target_": target}))).__name__ == target.rpartition(".")[2]
    with pytest.raises(ValueError, match=r"_target_=mine\.os\.getcwd is posix\.getcwd"):
        instantiate(OmegaConf.create({"_target_": "mine.os.getcwd"}))
    with pytest.raises(ValueError, match=r"_target_=optuna\.samplers\.RandomSampler"):
        instantiate(OmegaConf.create({"_target_": "optuna.samplers.RandomSampler"}))


def test_every_target_of_conf_may_be_named() -> None:
    for file in (ROOT / "conf").glob("*/*.yaml"):
        for key, target in iter_targets(file.stem, yaml.safe_load(file.read_text())):
            is_preset = file.parent.name in rules.PRESET_GROUPS
            assert targets.check_target(key, target, is_foreign=not is_preset) is None, f"{file}: {target}"


SWEEPER_SETTINGS = ("sampler", "pruner", "terminator", "storage")


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "a reference"])
@pytest.mark.parametrize("setting", SWEEPER_SETTINGS)
def test_a_sweeper_s_settings_are_refused(folder: Path, setting: str, name: str) -> None:
    """Optuna's own parts alone may be named there, and these make no part of a component either."""
    node = {**ATTACKS[name], "_target_": str(ATTACKS[name]["_target_"])}
    if node["_target_"] == "research.models.mlp.MLP":  # what is below it is what the attack is about
        node = {"_target_": "optuna.samplers.RandomSampler", "seed": [node]}
    with pytest.raises(ValueError, match=r"_target_=.*"):
        get_storage(node) if setting == "storage" else instantiate_setting(node, f"hydra.sweeper.{setting}")


def test_sweeps_of_a_program_refuse_them_before_the_first_trial(tmp_path: Path) -> None:
    node = json.dumps(OPEN).replace('"', "")
    cases = {setting: ["x=interval(0,1)", f"hydra.sweeper.{setting}={node}"] for setting in ("storage", "terminator")}
    cases["sampler"] = ["x=interval(0,1)", "hydra.sweeper.n_trials=2", f"hydra.sweeper.sampler={node}"]
    cases["pruner"] = ["x=interval(0,1)", "hydra.sweeper.n_trials=2", f"hydra.sweeper.pruner={node}"]
    cases["custom_search_space"] = ["x=interval(0,1)", "hydra.sweeper.custom_search_space=os.remove"]
    for name, (output, failed) in run_sweeps(tmp_path, cases).items():
        assert failed, name
        assert f"hydra.sweeper.{name}" in output
        assert "GROKBIT_TARGETS" in output
        assert not (tmp_path / name / "times.txt").exists()
    assert not [*tmp_path.rglob("MARK")]


HYDRA_ATTACKS: dict[str, Any] = {
    "hydra.sweeper.sampler._target_": {"sweeper": {"sampler": OPEN}},
    "hydra.sweeper.storage._target_": {"sweeper": {"storage": OPEN}},
    "hydra.sweeper.terminator.error_evaluator._target_": {
        "sweeper": {"terminator": {"_target_": "optuna.terminator.Terminator", "error_evaluator": OPEN}}
    },
    "hydra.sweeper._target_": {"sweeper": OPEN},
    "hydra.sweeper.pruner._target_": {"sweeper": {"pruner": {"_target_": "optuna.samplers._cmaes.pickle.loads"}}},
    "hydra.sweeper.custom_search_space": {"sweeper": {"custom_search_space": "os.remove"}},
    "hydra.launcher._target_": {"launcher": {"_target_": "builtins.open"}},
    "hydra.callbacks.x._target_": {"callbacks": {"x": OPEN}},
    "hydra.callbacks.pickle._target_": {
        "callbacks": {"pickle": {"_target_": "hydra.experimental.callbacks.PickleJobInfoCallback"}}
    },
    "hydra.job_logging.handlers.x.()": {"job_logging": {"handlers": {"x": {"()": "os.system", "command": "touch MARK"}}}},
    "hydra.job_logging.handlers.x.class": {"job_logging": {"handlers": {"x": {"class": "logging.os.system"}}}},
    "hydra.hydra_logging.formatters.x.()": {"hydra_logging": {"formatters": {"x": {"()": "builtins.open"}}}},
}


@pytest.mark.parametrize("key", [*HYDRA_ATTACKS, "model._target_", "callbacks.x._target_", "optim.base._target_"])
def test_a_preset_such_as_best_yaml_is_refused_before_hydra_reads_it(folder: Path, conf: Path, key: str) -> None:
    node: Any = HYDRA_ATTACKS.get(key)
    content = {"hydra": node} if node else {}
    if node is None:
        for part in reversed(key.split(".")[:-1]):
            content = {part: content or OPEN}
    (conf / "experiment" / "best.yaml").write_text("# @package _global_\n" + yaml.safe_dump(content))
    mistakes = "\n".join(check.find_mistakes(["experiment=best"], False))
    assert key in mistakes
    assert "may name components of conf/" in mistakes or "is no class of Python's logging" in mistakes


def test_the_program_ends_with_2_and_writes_nothing(tmp_path: Path) -> None:
    for words in (
        ["+hydra.callbacks.x._target_=builtins.open", "+hydra.callbacks.x.file=MARK", "+hydra.callbacks.x.mode=w"],
        ["model._target_=research.models.hub.torch.load", "~model.linear"],
        ["loss._target_=os.system"],
    ):
        done = train(tmp_path, *TINY, "tracker=none", *words, fails=True)
        assert done.returncode == 2, done.stderr
        assert "GROKBIT_TARGETS" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not [*tmp_path.rglob("MARK")]


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental-rerun=MARK.pickle", "--exp=MARK.pickle"])
def test_a_run_that_somebody_pickled_is_not_run_again(folder: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.prepare(["train.py", flag, "MARK.pickle"])
    assert "unpickles a file, which could run code" in capsys.readouterr().err
