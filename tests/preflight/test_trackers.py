"""What is wrong with trackers on a command line: one answer each, before anything heavy is imported."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from research import rules
from research.data.hub import hub, hub_images
from research.data.spec import Tokens
from research.files import hub as files_hub
from research.finetune.side import side
from research.models.hub import Hub
from research.preflight.check import find_mistakes
from research.tracking.sink import import_extra

WRONG = {  # command line -> parts of its one answer
    "tracker=[csv,csv]": ("it names an option twice", "give tracker=csv"),
    "tracker=[csv,mlflow,csv]": ("it names an option twice", "give 'tracker=[csv,mlflow]'"),
    "tracker=[none,none]": ("it names an option twice", "give tracker=none"),
    "tracker=[none,csv]": ("none stands alone", "give tracker=csv, or tracker=none"),
    "tracker=[mlflow,csv,none]": ("none stands alone", "give 'tracker=[mlflow,csv]', or tracker=none"),
    "tracker=[]": ("an empty list", "mlflow, none, tensorboard, wandb"),
    "tracker=[csv,foo]": ("group 'tracker' has no option 'foo'", "csv, jsonl, mlflow"),
    "tracker=[wandb,tensorbord]": ("no option 'tensorbord'", "did you mean: tracker='[wandb,tensorboard]' ?"),
    "tracker=TensorBoard": ("no option 'TensorBoard'", "did you mean: tracker=tensorboard ?"),
    "tracker=[csv,null]": ("a group takes one of its options", "did you mean: tracker=none ?"),
    "tracker=mlflow,csv": ("a sweep needs -m", "one list: 'tracker=[mlflow,csv]'"),
    "+tracker=csv": ("'tracker' is chosen already", "leave out the +"),
    "tracker=csv tracker.uri=sqlite:///x.db": (
        "there is no key 'tracker.uri'",
        "did you mean: 'tracker=[csv,mlflow]' tracker.uri=",
    ),
    "tracker=jsonl +tracker.uri=sqlite:///x.db": ("is MLflow's, and tracker=jsonl", "choose mlflow too: tracker=mlflow"),
    "tracker=[csv,mlflow] tracker.uri=3": ("tracker.uri takes text or null; got 3", ""),
    "+tracker.sinks.csv=x": ("tracker.sinks.csv is no sink: it has no _target_", "it is chosen by 'tracker=[mlflow,csv]'"),
    "+tracker.sinks.mine=x": ("tracker.sinks.mine is no sink: it has no _target_", "give tracker=NAME"),
    "tracker.sinks=csv": ("'tracker.sinks' holds keys of its own", ""),
    "tracker.sinks.mlflow=null": ("'tracker.sinks.mlflow' holds keys of its own", ""),
    "tracker.sinks.mlflow.log_model=maybe": ("takes true or false", ""),
    "tracker=wandb tracker.wandb.project=x": ("there is no key", "did you mean: tracker.sinks.wandb.project=x ?"),
    "tracker=wandb tracker.project=x": ("there is no key", "did you mean: tracker.sinks.wandb.project=x ?"),
    "tracker=wandb tracker.sinks.wandb.mode=cloud": ("takes auto, online, offline", ""),
    "tracker=wandb tracker.sinks.wandb.mode=online": ("there is no login for https://api.wandb.ai", "run `wandb login`"),
    "tracker=wandb tracker.sinks.wandb.log_weights=2": ("takes true or false", ""),
    "callbacks=profiler callbacks.profiler.active=1000": ("a whole number in [1, 50]; got 1000", ""),
    "callbacks=profiler callbacks.profiler.warmup=0": ("a whole number in [1, inf); got 0", ""),
    "callbacks=utilization callbacks.system.seconds=0": ("a number in (0, inf); got 0", ""),
    "trainer=low_memory precision=fp32": ("nothing reads 'precision' here", "trainer.precision=fp32"),
}
SETTINGS = {  # what is typed -> the advice: each setting of docs/trackers.md, also as people shorten it
    "tracker=csv tracker.uri=x.db": "'tracker=[csv,mlflow]' tracker.uri=x.db",
    "tracker=csv tracker.sinks.mlflow.uri=x.db": "'tracker=[csv,mlflow]' tracker.sinks.mlflow.uri=x.db",
    "tracker=wandb tracker.sinks.mlflow.log_model=true": "'tracker=[wandb,mlflow]' tracker.sinks.mlflow.log_model=true",
    "tracker=jsonl tracker.log_model=true": "tracker=mlflow tracker.sinks.mlflow.log_model=true",
    "tracker.sinks.wandb.project=x": "'tracker=[mlflow,wandb]' tracker.sinks.wandb.project=x",
    "tracker.sinks.wandb.entity=me": "'tracker=[mlflow,wandb]' tracker.sinks.wandb.entity=me",
    "tracker.sinks.wandb.log_weights=true": "'tracker=[mlflow,wandb]' tracker.sinks.wandb.log_weights=true",
    "tracker=[mlflow,csv] tracker.sinks.wandb.mode=offline": ("'tracker=[mlflow,csv,wandb]' tracker.sinks.wandb.mode=offline"),
    "tracker=none tracker.mode=offline": "tracker=wandb tracker.sinks.wandb.mode=offline",
    "tracker=csv tracker.wandb.project=x": "'tracker=[csv,wandb]' tracker.sinks.wandb.project=x",
    "tracker.sinks.wandb.projct=x": "'tracker=[mlflow,wandb]' tracker.sinks.wandb.project=x",
    "tracker.sinks.wandb.tags=[a]": "'tracker=[mlflow,wandb]'",
    "tracker.sinks.tensorboard=x": "'tracker=[mlflow,tensorboard]'",
}
CALLBACKS = {  # a setting of a callback that is not chosen -> the option that has it
    "callbacks.profiler.wait=3": "profiler",
    "callbacks.system.seconds=3": "utilization",
    "callbacks.utilization.every=10": "utilization",
    "callbacks.ternary.every=10": "ternary",
    "callbacks.grokking.hold=3": "grokking",
    "callbacks.gradients.histogram=3": "gradients",
}
RIGHT = (
    "tracker=[mlflow,csv,tensorboard,wandb,jsonl]",
    "tracker=[jsonl]",
    "tracker=none",
    "tracker=[csv,mlflow] tracker.uri=sqlite:///x.db",
)


@pytest.fixture(autouse=True)
def forget_logins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


@pytest.mark.parametrize("words", WRONG)
def test_one_clear_answer(words: str) -> None:
    (mistake,) = find_mistakes(words.split(), multirun=False)
    for part in WRONG[words]:
        assert part in mistake
    assert len(mistake.splitlines()) <= 6


@pytest.mark.parametrize("words", SETTINGS)
def test_a_setting_of_a_tracker_that_is_not_chosen(words: str) -> None:
    """The advice is the tracker besides those that are chosen, and passes when it is typed."""
    (mistake,) = find_mistakes(words.split(), multirun=False)
    assert mistake.splitlines()[2].endswith(" is not chosen")
    assert mistake.splitlines()[3:] == [f"  did you mean: {SETTINGS[words]} ?"]
    assert find_mistakes(shlex.split(SETTINGS[words]), multirun=False) == []


@pytest.mark.parametrize("setting", CALLBACKS)
def test_a_setting_of_a_callback_that_is_not_chosen(setting: str) -> None:
    (mistake,) = find_mistakes([setting], multirun=False)
    fix = f"callbacks={CALLBACKS[setting]} {setting}"
    assert mistake.splitlines()[-1] == f"  did you mean: {fix} ?"
    assert find_mistakes(fix.split(), multirun=False) == []


@pytest.mark.parametrize("words", RIGHT)
def test_lists_that_fit(words: str) -> None:
    assert find_mistakes(words.split(), multirun=False) == []


@pytest.mark.parametrize(
    ("mode", "words", "answer"),
    [
        ("online", "tracker=wandb", "WANDB_MODE=online: there is no login"),
        ("cloud", "tracker=[csv,wandb]", "WANDB_MODE=cloud: it takes online,"),
        ("cloud", "tracker=csv", ""),
        ("offline", "tracker=wandb tracker.sinks.wandb.mode=online", "tracker.sinks.wandb.mode=online\n  there is no login"),
        ("disabled", "tracker=wandb", ""),
        ("dryrun", "tracker=wandb", ""),
    ],
)
def test_the_mode_of_wandb_in_the_environment(mode: str, words: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    mistakes = find_mistakes(words.split(), multirun=False)
    assert len(mistakes) == bool(answer)
    assert answer in "".join(mistakes)


# Command line -> what names the library, the library, its extra, and the constructor that says so too.
EXTRAS: dict[str, tuple[str, str, str, Callable[[], object]]] = {
    "tracker=[mlflow,wandb]": ("tracker=wandb", "wandb", "wandb", lambda: import_extra("wandb")),
    "tracker=tensorboard": ("tracker=tensorboard", "tensorboard", "tensorboard", lambda: import_extra("tensorboard")),
    "model=hub_full data=text": ("model=hub", "transformers", "hub", lambda: Hub(Tokens(8, 8))),
    "finetune=side": ("finetune=side", "peft", "peft", lambda: side(torch.nn.Linear(2, 2))),
    "data=mnist": ("data.dataset=ylecun/mnist", "datasets", "hub", lambda: hub_images("ylecun/mnist")),
    "data=hub data.dataset=mine/texts": ("data.dataset=mine/texts", "datasets", "hub", lambda: hub("mine/texts")),
}


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("words", EXTRAS)
def test_an_extra_that_is_not_installed(words: str, is_folder: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of that name, as W&B leaves one in the working directory, is no library."""
    what, library, extra, construct = EXTRAS[words]
    find_spec = importlib.util.find_spec

    def hide(name: str, *arguments: Any) -> ModuleSpec | None:
        if name != library:
            return find_spec(name, *arguments)
        return ModuleSpec(name, None, is_package=True) if is_folder else None

    assert not any("which is not installed" in mistake for mistake in find_mistakes(words.split(), multirun=False))
    monkeypatch.setattr(rules, "find_spec", hide)
    monkeypatch.setattr(files_hub, "CACHE", tmp_path)
    message = f"{what} needs {library}, which is not installed"
    (mistake,) = (line for line in find_mistakes(words.split(), multirun=False) if "not installed" in line)
    assert message in mistake
    assert f"pip install -e '.[{extra}]'" in mistake
    with pytest.raises(ValueError, match=re.escape(f"{message}\npip install -e '.[{extra}]'")):
        construct()


def test_a_copy_of_a_data_set_needs_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name, *rest: None)
    monkeypatch.setattr(files_hub, "CACHE", tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "copy.json").write_text("{}", encoding="utf-8")
    assert find_mistakes(["data=mnist", "model=vision", "tracker=csv"], multirun=False) == []
