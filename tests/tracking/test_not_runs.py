"""What is no run, in place of one: its kind is said, and what to type."""

import json
from pathlib import Path

import pytest

from research.preflight.check import find_mistakes
from research.tracking.find import check_run

TRANSFORMERS = "it is a folder of transformers, and no run; train it by model=hub data=text model.folder={}"
EXPORT = "it is an export (hf) of the run first; give the folder of that run"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with what newcomers take for a run."""
    for name in ("saved/config.json", "saved/model.gguf", "adapter/adapter_config.json", "run/model/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "notes.txt").touch()
    for kind, file in (("hf", "config.json"), ("gguf", "model.gguf")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / file).touch()
        (tmp_path / kind / "export.json").write_text(json.dumps({"format": kind, "run": "first"}), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("saved", f"{TRANSFORMERS}, or load it there"),
        ("saved/model.gguf", "it is a file of GGUF, which runs and is not trained; give the run that it is of"),
        ("hf", EXPORT),
        ("gguf/model.gguf", EXPORT.replace("hf", "gguf")),
        ("adapter", "it is an adapter of peft; merge it with its base there"),
        ("run/model", "it is a part of a run; give that, {root}/run"),
        ("notes.txt", "it is a file; give a run folder"),
    ],
)
def test_a_command_says_what_it_was_given(root: Path, name: str, answer: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_run(str(root / name))
    assert f"RUN={root / name}: {answer.format(root / name, root=root)}" in str(error.value)


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        ("finetune=inside finetune.base={}/saved", [TRANSFORMERS.format("{}/saved") + " in place of finetune.base"]),
        ("finetune=full finetune.base={}/hf", [EXPORT]),
        ("resume={}/saved", ["it is a folder of transformers, and no run", "model.folder={}/saved in place of resume"]),
        ("resume={}/gguf", ["it is an export (gguf) of the run first", "give the folder of that run"]),
        ("objective=distill objective.teacher={}/gguf", ["it is an export (gguf) of the run first"]),
        ("model=hub model.folder={}/gguf", ["it holds GGUF"]),
        ("model=hub model.folder={}/run", ["it is a run of this program", "finetune.base={}/run"]),
    ],
)
def test_a_setting_says_what_it_was_given(root: Path, words: str, answers: list[str]) -> None:
    (mistake,) = find_mistakes(["data=text", *words.format(root).split()], False)
    for answer in answers:
        assert answer.format(root) in mistake
