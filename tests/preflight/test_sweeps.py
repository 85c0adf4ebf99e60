"""Command lines with -m: every value of a sweep is checked, and the sweep is one study."""

import os

import pytest

from research.preflight.check import find_mistakes

WHEN = "hydra.sweeper.when={optim.lamb: \"optim == 'grokfast'\"}"


@pytest.mark.parametrize(("arguments", "words"), [
    (["lr=1e-3,-1"], "lr takes"), (["model=bitnet,bitnt"], "no option 'bitnt'"), (["model=transformer,mlp"], "takes Vectors"),
    (["optim.lamb=interval(-1,5)"], "optim.lamb takes"), (["seed=range(-1,3)"], "seed takes"),
    (["trainer.steps=choice(10,ten)"], "trainer.steps takes"), (["optim=glob(grok*)", "optim.alpha=0.5"], "alpha"),
    (["seed=range(3,3)"], "seed=range(3,3)"), (["model=glob(x*)"], "no option of group 'model' matches"),
])  # fmt: skip
def test_each_value_of_a_sweep_is_checked(arguments: list[str], words: str) -> None:
    assert words in "\n".join(find_mistakes(arguments, True))


@pytest.mark.parametrize("line", ["modle=bitnet,mlp", "trainer.step=5,6"])
def test_a_wrong_key_of_a_sweep_is_one_mistake(line: str) -> None:
    (mistake,) = find_mistakes([line], True)
    assert mistake.startswith(f"error: {line}\n")
    assert line.replace("modle", "model").replace("step", "steps") in mistake


def test_a_sweep_is_one_study() -> None:
    several = ["data=modular,text", "model=bitnet", "seed=0,1"]
    assert "several studies: modular, text" in "\n".join(find_mistakes(several, True))
    assert find_mistakes([*several, "name=both"], True) == []
    assert "several studies: a, b" in "\n".join(find_mistakes(["name=a,b"], True))


def test_a_sweep_that_is_right_names_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROKBIT_SWEPT", "")
    assert find_mistakes(["model=bitnet", "lr=1e-3,3e-4", "seed=range(0,3)"], True) == []
    assert os.environ["GROKBIT_SWEPT"] == "lr,seed"


@pytest.mark.parametrize(
    "words",
    [
        ["optim=adamw,grokfast", "optim.lamb=interval(0,5)", WHEN],
        ["optim=adamw", "optim.lamb=1,2", WHEN],
        ["lr=1,2", "hydra.sweeper.constraints={params: '<= 2e6'}"],
        ["lr=1,2", "hydra.sweeper.storage={_target_: optuna.storages.RDBStorage, url: 'sqlite:///x.db'}"],
        ["lr=1,2", "hydra.sweeper.params={optim.lamb: 'interval(0,1)'}"],
        ['optim.no_decay=[norm,bias],[norm],["a,b"]'],
        ["model=glob(bitnet*)", "data.p=7"],
        ["name='1'", "lr=1,2"],
    ],
)
def test_what_a_sweep_may_have(words: list[str]) -> None:
    assert find_mistakes(words, True) == []


def test_a_key_that_some_options_lack_needs_a_condition() -> None:
    assert "no key 'optim.lamb'" in "".join(find_mistakes(["optim=adamw,grokfast", "optim.lamb=interval(0,5)"], True))


def test_a_condition_whose_values_cannot_be_compared_is_one_mistake() -> None:
    (mistake,) = find_mistakes(["lr=1e-3,1e-4", "hydra.sweeper.when={lr: 'steps > name'}"], True)
    assert mistake.startswith("error: hydra.sweeper.when.lr=steps > name: ")


@pytest.mark.parametrize(
    ("words", "is_told"),
    [
        ("loss=classification,stablemax monitor=val/loss", True),
        ("loss=regression loss.kind=mse,mae data=regression monitor=val/loss", True),
        ("loss.z_loss=0,0.1 monitor=val/loss", False),  # evaluations leave it out
        ("loss=classification,stablemax monitor=val/acc", False),
        ("lr=1e-3,3e-4 monitor=val/loss", False),
    ],
)
def test_a_sweep_over_what_val_loss_is_gets_a_note(words: str, is_told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    own = [] if "data=" in words else ["data=digits"]
    assert find_mistakes([*own, "model=mlp", *words.split()], True) == []
    assert ("val/loss does not compare them: give monitor=val/acc" in capsys.readouterr().err) == is_told


@pytest.mark.parametrize(("line", "takes_list"), [
    ("finetune=inside,gains", False), ("optim=sgd,adamw", False),
    ("callbacks=default,gradients", True), ("tracker=csv,mlflow", True),
])  # fmt: skip
def test_a_sweep_without_m_is_a_list_where_the_group_takes_one(line: str, takes_list: bool) -> None:
    message = "\n".join(find_mistakes([line], False))
    assert "-m (or --multirun)" in message
    assert ("one list: " in message) == takes_list
