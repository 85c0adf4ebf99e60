"""What is asked wrongly gets one clear answer, before torch is imported where it can be told then."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from program import ROOT

Evaluate = Callable[..., tuple[int, str, str]]
README = ROOT / "README.md"
RECORDED: dict[str, Any] = {
    "model": {"_target_": "research.models.transformer.Transformer"},
    "data": {
        "_target_": "research.data.text.text",
        "path": str(README),
        "seq_len": 32,
        "val_bytes": 4096,
        "val_fraction": 0.1,
        "test_fraction": 0.0,
        "tokenizer": {"_target_": "research.data.tokenizers.Bytes"},
    },
    "loss": {"_target_": "research.losses.next_token", "_partial_": True},
    "monitor": "val/bpb",
    "trainer": {"batch_size": 4},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run folder that says what it was trained on; it has no checkpoint."""
    (run := tmp_path / "run").mkdir()
    (run / "tokenizer").mkdir()
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(RECORDED)))
    (tmp_path / "gone").mkdir()
    away = RECORDED | {"data": RECORDED["data"] | {"path": str(tmp_path / "away")}}
    (tmp_path / "gone" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(away)))
    (tmp_path / "notes.txt").write_text("no run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "export.json").write_text("{")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text('{"format": "onnx", "model": {}}')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "study.journal").touch()
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("run data.pth=notes.txt", "there is no key 'data.pth'\n  did you mean: data.path=notes.txt ?"),
        ("run data=txt", "did you mean: data=text ?"),
        ("run data=digits", "data=digits gives Vectors, the run has a model=bitnet of Tokens"),
        ("run data=images", "data=images gives Images"),
        ("run data.path=nowhere", "there is no file or folder"),
        ("run data=nowhere.txt", "group 'data' has no option"),
        ("run data=text data.seq_len=0", "data.seq_len takes a whole number in [1, inf)"),
        ("run data.seq_len=abc", "data.seq_len takes a whole number"),
        ("run data=text loss=classification", "give loss=next_token"),
        ("run data=text metrics=regression", "leave out metrics=regression"),
        ("run metrics=foo", "group 'metrics' has no option 'foo'"),
        ("run metrics.mine._target_=nowhere.Mine", "there is no key 'metrics.mine._target_'"),
        ("run tokenizer=bpe", "is judged with it\n  leave it out"),
        ("run data.tokenizer.vocab_size=300", "is judged with it"),
        ("run lr=1e-3", "it does not read lr\n  leave it out"),
        ("run model=mlp", "it does not read model"),
        ("run model.dim=8", "it does not read model"),
        ("run seed=1", "it does not read seed"),
        ("run precision=bf16", "give --precision bf16"),
        ("run batch_size=4", "give --batch-size 4"),
        ("run data=text,digits", "it is no sweep\n  give one: data=text\n"),
        ("run data.seq_len=1,2", "it is no sweep\n  give one: data.seq_len=1\n"),
        ("run data.path=a,b", "give one: data.path=a, or one list: data.path='[a,b]'\n"),
        ("run foo=1", "there is no key 'foo'"),
        ("run ~data", "an evaluation needs data"),
        ("run --split test", "--split test: data.test_fraction=0 sets no test apart\n  give --split val"),
        ("run data.path=notes.txt --split test", "or --split all for all of these data"),
        ("run --split middle", "invalid choice: 'middle'"),
        ("run --samples 0", "--samples 0: give at least 1"),
        ("run --batch-size -1", "--batch-size -1: give at least 1"),
        ("run --samples many", "invalid int value: 'many'"),
        ("run --packed --precision bf16", "--packed computes on the CPU in fp32; leave out --precision bf16"),
        ("run --packed --device auto", "--packed computes on the CPU in fp32; leave out --device auto"),
        ("export data=text --device auto", "RUN=export: an export is computed on the CPU in fp32; leave out --device auto"),
        ("run export --precision bf16", "RUN=export: an export is computed on the CPU in fp32; leave out --precision bf16"),
        ("run --output empty", "--output empty: give a file"),
        ("run --output nowhere/a.json", "give a file in a folder that is there"),
        ("run --config-dir nowhere", "--config-dir nowhere: there is no such folder"),
        ("run --tasks-folder empty", "name its tasks with --tasks"),
        ("run --tasks x --split val", "--tasks have data of their own; leave out --split"),
        ("run --tasks x data=text", "leave out data=text"),
        ("run --tasks x --precision bf16", "--tasks compute on the CPU in fp32"),
        ("run --tasks x --device auto", "--tasks compute on the CPU in fp32"),
        ("data=text", "data=text chooses data; give a RUN too"),
        ("nowhere", "RUN=nowhere: there is no such folder; give a run folder"),
        ("notes.txt", "RUN=notes.txt: it is a file; give a run folder"),
        ("run nowhere", "RUN=nowhere: there is no such folder"),
        ("empty", "has no config.yaml that can be read"),
        (".", "give a run, as the newest one here"),
        ("new", "none of the 0 runs of this sweep has saved a checkpoint"),
        ("broken", "its export.json is damaged"),
        ("gone", "RUN=gone: its own data: data.path="),
        ("gone data.path=nowhere", "error: data.path=nowhere"),
        ("model", "it does not say what data it is of"),
        ("model --packed data=text", "--packed is for runs, and model is none"),
        ("", "the following arguments are required"),
    ],
)
def test_wrong_words_get_one_answer(words: str, answer: str, folder: Path, evaluate: Evaluate) -> None:
    code, out, err = evaluate(*words.split())
    assert (code, out) == (2, "")
    assert answer in err
    assert err.count("error:") == 1
    assert len(err.splitlines()) <= 6


def test_several_mistakes_are_told_together(folder: Path, evaluate: Evaluate) -> None:
    _, _, err = evaluate("run", "data.pth=notes.txt", "lr=3", "metrics=foo")
    assert all(text in err for text in ("data.path=notes.txt", "does not read lr", "no option 'foo'"))


def test_mistakes_wait_for_no_torch(folder: Path) -> None:
    code = "import sys; from research.evaluate.__main__ import main; main(['run', 'data=txt', 'data.seq_len=0']); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, "data=text" in done.stderr) == ("False\n", True)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["data=modular"], "was trained with a vocabulary of 256 tokens, these data have a vocabulary of 49 tokens"),
        (["data=text", f"data.path={README}", "data.seq_len=64"], "sequences of 64 tokens; give data.seq_len=32"),
        (["data=text", f"data.path={ROOT / 'conf' / 'loss'}", "data.pattern=*.txt"], "data.path"),
    ],
)
def test_data_that_do_not_fit_are_named_beside_the_run(words: list[str], answer: str, sweep: Path, evaluate: Evaluate) -> None:
    code, out, err = evaluate(sweep / "0", *words)
    assert (code, out) == (2, "")
    assert answer in err


def test_names_of_classes_must_be_the_same(tmp_path: Path) -> None:
    import torch

    from research.data.spec import Images, MemoryDataset, Split, Tokens, Vectors
    from research.evaluate.compare import check_shape
    from research.evaluate.forms import LoadedModel
    from research.evaluate.refs import ModelRef

    split = Split(torch.zeros(2, 3), torch.tensor([0, 1]))
    data = MemoryDataset(Vectors(3, 2), split, split, "", "", "sample", classes=("cat", "dog"))
    form = LoadedModel("run", torch.nn.Linear(3, 2), Vectors(3, 2), classes=["cat", "cow"])
    with pytest.raises(ValueError, match="class 1 is 'cow' there and 'dog' in these data"):
        check_shape(ModelRef("x", tmp_path, "run"), form, data)
    cases: list[tuple[Any, Any, str]] = [
        (Vectors(4, 2), Vectors(3, 2), "4 features, these data have 3"),
        (Vectors(3, 5), Vectors(3, 2), "5 classes, these data have 2"),
        (Tokens(9, 3), Tokens(9, 3, num_classes=4), "next tokens to predict and no classes, these data have 4 classes"),
        (Images(1, 8, 8, 2, True), Images(1, 8, 8, 2), "a class for each pixel, these data have a class for each image"),
        (Images(1, 8, 8, 2), Images(3, 8, 8, 2), "channels 1, these data have channels 3"),
        (Tokens(9, 3), Vectors(3, 2), "sequences of tokens, these data are vectors of numbers"),
    ]
    for shape, other, answer in cases:
        form.shape = shape
        with pytest.raises(ValueError, match=answer):
            check_shape(ModelRef("x", tmp_path, "run"), form, replace(data, shape=other))
