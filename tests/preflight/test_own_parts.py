"""Models, losses and data sets of one's own: what they leave out is not checked, what they say wrongly is answered."""

from pathlib import Path

import pytest

from research.options import source
from research.options.signature import read_signature
from research.preflight.check import find_mistakes

HEAD = "from typing import Any\nfrom jaxtyping import Float, Int, Shaped\nfrom torch import Tensor\nimport torch\n"
NUMBERS = "from research.data.spec import Dataset, MemoryDataset, Tokens, Vectors\n"
LOGITS, TARGETS = 'Float[Tensor, "batch classes"]', 'Int[Tensor, "batch"]'


TASK = """\
# @package _global_
defaults:
  - override /loss: classification
name: mine
monitor: val/acc
steps: 3
batch_size: 2
eval_every: 1
data:
  _target_: own.part
"""
YAML = {"loss": "_target_: own.part\n_partial_: true\n", "model": "_target_: own.part\n", "data": TASK}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder outside the clone; one for all tests, as composing it for the first time takes most of their time."""
    folder = tmp_path_factory.mktemp("own")
    for group, text in YAML.items():
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "mine.yaml").write_text(text)
    return folder


@pytest.fixture
def folder(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start from that folder, and forget what was read of its module before."""
    monkeypatch.chdir(shared_folder)
    monkeypatch.syspath_prepend(shared_folder)
    for cached in (source.find_source, source.load, source.find_definition, read_signature):
        cached.cache_clear()
    return shared_folder


def judge(folder: Path, group: str, code: str, *words: str) -> list[str]:
    """Return the mistakes of a run with a part of one's own."""
    (folder / "own.py").write_text(HEAD + NUMBERS + code)
    return find_mistakes([*words, f"{group}=mine", f"hydra.searchpath=[file://{folder / 'conf'}]"], False)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (LOGITS, TARGETS),
        ('Float[Tensor, "n c"]', 'Shaped[Tensor, "n"]'),  # names of axes do not matter
        ('Float[torch.Tensor, "batch 10"]', "Tensor"),
        ('Float[Tensor, "batch *rest classes"]', 'Int[Tensor, "batch *rest"]'),
        ('Float[Tensor, "..."]', TARGETS),
        ("Tensor", "Tensor"),
        ("Any", "'Tensor'"),
        ("", ""),
        ("", TARGETS),
    ],
)
def test_a_loss_that_may_fit_passes(folder: Path, logits: str, targets: str) -> None:
    arguments = ", ".join(f"{name}: {text}" if text else name for name, text in (("logits", logits), ("targets", targets)))
    assert judge(folder, "loss", f"def part({arguments}, *, weight: float = 1.0): ...\n", "data=digits", "model=mlp") == []


@pytest.mark.parametrize(
    ("data", "logits", "targets", "words"),
    [
        ("digits", 'Float[Tensor, "b s v"]', 'Int[Tensor, "b s"]', ["takes logits [b s v] and targets [b s]"]),
        ("digits", LOGITS, 'Int[Tensor, "b s"]', ["data=digits has logits [batch classes] and targets [batch]"]),
        ("digits", 'Float[Tensor, "b s v"]', "Tensor", ["takes logits [b s v] and targets [...]"]),
        ("modular", LOGITS, TARGETS, ["data=modular has logits [batch seq vocab] and targets [batch]", "give loss=last_token"]),
        ("text", 'Float[Tensor, "b s v"]', TARGETS, ["targets [batch seq]", "give loss=next_token"]),
    ],
)
def test_a_loss_of_other_axes_is_answered(folder: Path, data: str, logits: str, targets: str, words: list[str]) -> None:
    model = "mlp" if data == "digits" else "transformer"
    code = f"def part(logits: {logits}, targets: {targets}): ...\n"
    (mistake,) = judge(folder, "loss", code, f"data={data}", f"model={model}")
    for word in (*words, "annotate your loss so if it computes that, or leave the annotations out; else give loss="):
        assert word in mistake


@pytest.mark.parametrize("data", ["digits", "text"])
@pytest.mark.parametrize("annotation", ["", ": Any", ": Vectors | Tokens", ": 'Tokens'"])
def test_a_model_that_may_fit_passes(folder: Path, data: str, annotation: str) -> None:
    assert (
        judge(
            folder, "model", f"class part(torch.nn.Module):\n    def __init__(self, shape{annotation}): ...\n", f"data={data}"
        )
        == []
    )


def test_a_model_of_another_shape_is_answered(folder: Path) -> None:
    code = "class part(torch.nn.Module):\n    def __init__(self, shape: Vectors): ...\n"
    (mistake,) = judge(folder, "model", code)
    assert "data=modular gives Tokens, model=mine takes Vectors" in mistake
    assert "give data=digits" in mistake


@pytest.mark.parametrize("annotation", ["", " -> Any", " -> Dataset", " -> Dataset[Tokens]", " -> MemoryDataset[Tokens]"])
def test_a_data_set_that_may_fit_passes(folder: Path, annotation: str) -> None:
    assert judge(folder, "data", f"def part(){annotation}: ...\n", "model=transformer") == []


def test_a_data_set_of_another_shape_is_answered(folder: Path) -> None:
    (mistake,) = judge(folder, "data", "def part() -> Dataset[Vectors]: ...\n", "model=transformer")
    assert "data=mine gives Vectors, model=transformer takes Tokens" in mistake
    assert "model=bitmlp or model=mlp" in mistake


def test_a_loss_of_another_number_of_axes_than_an_own_task_has_is_answered(folder: Path) -> None:
    (mistake,) = judge(folder, "data", "def part() -> Dataset[Vectors]: ...\n", "model=mlp", "loss=next_token")
    assert "takes logits [batch seq vocab] and targets [batch seq], data=mine has logits [batch classes]" in mistake
    assert "give loss=classification" in mistake
    assert "annotate" not in mistake


def test_a_loss_that_the_run_calls_needs_partial(folder: Path) -> None:
    """One that makes a loss has all that it needs, and is called at once."""
    run = ("data=digits", "model=mlp", "~loss._partial_")
    (mistake,) = judge(folder, "loss", "def part(logits, targets, *, weight: float = 1.0): ...\n", *run)
    assert "own.part gets logits, targets from the run: it needs _partial_: true" in mistake
    for code in ("def part(weight: float = 1.0): ...\n", "class part:\n    def __init__(self, weight: float = 1.0): ...\n"):
        for cached in (source.find_source, source.load, source.find_definition, read_signature):
            cached.cache_clear()
        assert judge(folder, "loss", code, *run) == []


def test_a_folder_that_is_no_package_is_told(folder: Path) -> None:
    (folder / "bare").mkdir(exist_ok=True)
    (folder / "bare" / "deep.py").write_text("def part(logits, targets): ...\n")
    run = ("data=digits", "model=mlp", "loss._target_=bare.deep.part")
    (mistake,) = judge(folder, "loss", "", *run)
    assert f"{folder / 'bare'} has no __init__.py" in mistake
    assert f"make an empty file {folder / 'bare' / '__init__.py'}" in mistake


def test_options_that_are_not_read_are_told(folder: Path) -> None:
    (mistake,) = find_mistakes(["data=digits", "model=mlp", "loss=mine"], False)
    assert "conf/loss/mine.yaml is there, and is not read" in mistake
    assert mistake.endswith("give --config-dir conf")
