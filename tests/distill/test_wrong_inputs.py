"""What cannot be learnt from is refused by name, before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from research.data.modular import modular
from research.data.spec import Dataset, MemoryDataset, Split, Tokens, Vectors
from research.data.tokenizers import BPE, Bytes
from research.distill.objective import Distill
from research.files.locks import lock
from research.losses import classification, last_token, regression, stablemax
from research.preflight.check import find_mistakes
from research.run_dir import Summary, read_summary

SMALL = ("model.dim=16", "model.heads=2", "data.p=11", "batch_size=8", "objective=distill")
RUN = "objective.teacher={0}/full"
TYPED = {
    "no teacher": ("", "objective.teacher needs a value"),
    "not there": ("objective.teacher={0}/none", "error: objective.teacher={0}/none\n  there is no such folder"),
    "no run": ("objective.teacher={0}", "has no config.yaml that can be read", "give a run"),
    "no id": ("objective.teacher=" + "0" * 32, "objective.teacher=" + "0" * 32),
    "weight": (RUN + " objective.weight=1.5", "objective.weight takes a number in [0, 1]; got 1.5"),
    "weight below": (RUN + " objective.weight=-0.1", "objective.weight takes a number in [0, 1]"),
    "temperature": (RUN + " objective.temperature=0", "objective.temperature takes a number in (0, inf)"),
    "kind": (RUN + " objective.kind=jeffreys", "objective.kind takes forward, reverse, symmetric"),
    "top_k of none": (RUN + " objective.top_k=0", "objective.top_k takes a whole number in [1, inf)"),
    "top_k": (RUN + " objective.top_k=14", "objective.top_k=14, and the teacher has 13 classes", "at most 13"),
    "hidden": (RUN + " objective.hidden=0", "objective.hidden takes a number in (0, inf)"),
    "layers": (RUN + " objective.hidden=1 objective.layers=[-1]", "numbered from 0", "one number a block of the student"),
    "layers alone": (RUN + " objective.layers=[1]", "objective.hidden=null compares none", "objective.hidden=1"),
    "store": (RUN + " objective.store={0}/s", "it needs to know how many", "objective.top_k"),
    "stored": (RUN + " objective.stored=true", "reads a store, and there is none", "objective.store=FOLDER"),
    "stored where none is": (
        RUN + " objective.stored=true objective.store={0}/none objective.top_k=2",
        "there is no store.json",
        "objective.stored=false",
    ),
    "hidden from a store": (
        RUN + " objective.hidden=1 objective.store={0}/s objective.top_k=2",
        "needs the teacher itself in each step",
    ),
    "stablemax": (RUN + " loss=stablemax", "by another function than softmax", "leave out loss=stablemax"),
    "digest": (RUN + " objective.digest=abc", "its weights have the digest", "objective.digest is abc"),
    "itself": (RUN + " resume={0}/full model=transformer", "is this very run: it would learn from itself"),
    "into itself": (RUN + " hydra.run.dir={0}/full", "is this very run"),
}


@pytest.mark.parametrize("name", TYPED)
def test_a_wrong_line_is_answered(teachers: Path, name: str) -> None:
    line, *words = (text.format(teachers) for text in TYPED[name])
    mistakes = "\n".join(find_mistakes([*SMALL, *line.split()], False))
    assert all(word in mistakes for word in words), mistakes


def test_a_teacher_in_training_and_one_without_weights_are_refused(teachers: Path, tmp_path: Path) -> None:
    shutil.copytree(teachers / "full", tmp_path / "full")
    with lock(tmp_path / "full"):
        (mistake,) = find_mistakes([*SMALL, f"objective.teacher={tmp_path / 'full'}"], False)
    assert "it is in training, so its newest weights change" in mistake
    for file in (tmp_path / "full" / "checkpoints").glob("*/model.safetensors"):
        file.write_bytes(b"0")
    (mistake,) = find_mistakes([*SMALL, f"objective.teacher={tmp_path / 'full'}"], False)
    assert "it has no usable checkpoint (step-" in mistake
    shutil.rmtree(tmp_path / "full" / "checkpoints")
    (mistake,) = find_mistakes([*SMALL, f"objective.teacher={tmp_path / 'full'}"], False)
    assert "holds no checkpoint, so no weights" in mistake
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (mistake,) = find_mistakes([*SMALL, f"objective.teacher={tmp_path / 'hub'}"], False)
    assert "has no *.safetensors" in mistake


def make_data(shape: Any, classes: tuple[str, ...] = (), tokenizer: Any = None, numbers: bool = False) -> Dataset[Any]:
    x = torch.zeros(4, shape.seq_len, dtype=torch.int64) if isinstance(shape, Tokens) else torch.zeros(4, shape.num_features)
    split = Split(x, torch.zeros(4) if numbers else torch.zeros(4, dtype=torch.int64))
    return MemoryDataset(shape, split, split, "digest", "source", "sample", tokenizer=tokenizer, classes=classes)


def make_teacher(teachers: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """A copy of a teacher whose summary says something else."""
    shutil.copytree(teachers / "full", target)
    summary = read_summary(target)
    assert summary is not None
    facts = json.loads(json.dumps(vars(summary)))
    change(facts)
    Summary(**facts).write(target)
    return str(target)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (modular(p=13).shape, "it has vocab_size=13, the data have vocab_size=15"),
        (Tokens(13, 99), "it has seq_len=4, the data have seq_len=99"),
        (Tokens(13, 4, num_classes=3), "it has num_classes=0, the data have num_classes=3"),
        (Vectors(64, 10), "was trained on other data, without num_features, the data have num_features=64"),
    ],
)
def test_a_teacher_of_another_shape_is_refused(teachers: Path, shape: Any, words: str) -> None:
    objective = Distill(last_token, str(teachers / "full"))
    with pytest.raises(ValueError, match="give a teacher of such data, or the data of the teacher") as caught:
        objective.check(make_data(shape))
    assert words in str(caught.value)
    objective.check(make_data(Tokens(13, 3)))  # shorter sequences


def test_a_teacher_of_other_classes_or_tokens_is_refused(teachers: Path, tmp_path: Path) -> None:
    named = make_teacher(teachers, tmp_path / "named", lambda facts: facts.update(classes=["dog", "cat"]))
    objective = Distill(last_token, named)
    objective.check(make_data(Tokens(13, 4), ("dog", "cat")))
    with pytest.raises(ValueError, match=r"its classes are dog, cat, \.\.\. and those of the data cat, dog"):
        objective.check(make_data(Tokens(13, 4), ("cat", "dog")))
    bpe = BPE(300)
    bpe.train([b"a text to learn some pairs from, and another text" * 9])
    text = make_teacher(teachers, tmp_path / "text", lambda facts: facts["shape"].update(vocab_size=bpe.vocab_size))
    objective, shape = Distill(last_token, text), Tokens(bpe.vocab_size, 4)
    with pytest.raises(ValueError, match="it is of no text, and the data are"):
        objective.check(make_data(shape, tokenizer=bpe))
    bpe.save(tmp_path / "text" / "tokenizer")
    objective.check(make_data(shape, tokenizer=bpe))
    other = BPE(300)
    other.train([b"other words give wholly different merges, do they not?" * 9])
    with pytest.raises(ValueError, match=r"those of the tokenizer of .*, the data have BPE of .*\ngive tokenizer=folder"):
        objective.check(make_data(Tokens(bpe.vocab_size, 4), tokenizer=other))
    with pytest.raises(ValueError, match="the data have bytes"):
        objective.check(make_data(shape, tokenizer=Bytes()))


def test_numbers_have_no_teacher(teachers: Path) -> None:
    for loss in (regression, stablemax):
        with pytest.raises(ValueError, match=f"loss={loss.__name__} "):
            Distill(loss, str(teachers / "full"))
    with pytest.raises(ValueError, match="the targets of these data are numbers"):
        Distill(classification, str(teachers / "full")).check(make_data(Vectors(13, 1), numbers=True))


def test_weights_that_changed_since_are_refused(teachers: Path) -> None:
    objective = Distill(last_token, str(teachers / "full"), digest="f" * 64)
    from research.distill.teacher import load_teacher

    with pytest.raises(ValueError, match=r"its weights have the digest .*, ffffffffffff is needed"):
        load_teacher(objective.teacher, objective.digest, modular(p=11).shape)
