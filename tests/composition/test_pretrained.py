"""What a run starts from completes its configuration, in the preflight and where the run begins."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir

from research.composition.compose import ComposedConfig
from research.composition.overrides import expand_argument, parse
from research.composition.pretrained import BYTES, FOLDER, HUB, complete_model
from research.options.conf import CONF
from research.preflight import check
from research.preflight.requested import RequestedConfig
from research.tracking.find import find_run

BITLINEAR = "research.nn.bitlinear.BitLinear"
TRANSFORMER = {"_target_": "research.models.transformer.Transformer", "dim": 64}


def compose(words: list[str]) -> RequestedConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return RequestedConfig.from_overrides(parse([expand_argument(word) for word in words])[0], {})


def make_run(folder: Path, model: dict[str, Any], tokenizer: str | None = None, own_config: bool = False) -> Path:
    """Write what is read of a run: its config.yaml, its tokenizer (an empty text: bytes), a hub model's config.json."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {"_target_": "research.data.text.text"}}))
    if tokenizer is not None:
        (folder / "tokenizer").mkdir()
    if tokenizer:
        (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer)
    if own_config:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
    return folder


def complete_tuned(words: list[str], base: Path, kind: str = "inside") -> Any:
    """Complete what these words compose, with a finetune node as its options have it."""
    requested = compose(words)
    cfg = requested.cfg | {"finetune": {"_target_": f"research.finetune.{kind}.{kind}", "base": str(base)}}
    choices = cfg["hydra"]["runtime"]["choices"] | {"finetune": kind}
    return complete_model(ComposedConfig(cfg), find_run(str(base), "finetune.base"), requested.typed_overrides, choices)


def test_a_hub_model_without_a_folder_is_a_new_one() -> None:
    (note,) = compose(["model=hub", "data=text"]).notes
    assert note == "note: model.folder is null: a new llama with random weights; a pretrained model is model.folder=FOLDER"
    for words in (["model=hub", "data=text", "resume=RUN"], ["data=text"], ["model=hub", "data=text", "model.folder=nowhere"]):
        assert compose(words).notes == ()


def test_a_base_brings_its_model_and_its_tokenizer(tmp_path: Path) -> None:
    model = TRANSFORMER | {"linear": {"_target_": BITLINEAR, "_partial_": True}}
    run = make_run(tmp_path / "a run", model, tokenizer="{}")
    for base in (run, run / "checkpoints" / "step-00000004"):
        base.mkdir(parents=True, exist_ok=True)
    done = complete_tuned(["data=text"], run)
    assert done.settings["model"]["dim"] == 64
    assert done.settings["data.tokenizer"] == {"_target_": FOLDER, "path": str(run / "tokenizer")}
    assert done.conflict is None
    assert str(run / "tokenizer") in done.notes[0]
    assert complete_tuned(["data=modular"], run).settings.keys() == {"model"}


@pytest.mark.parametrize(("words", "count"), [(["data=text"], 1), (["data=text", "data.seq_len=64"], 0)], ids=str)
def test_a_note_says_where_a_base_had_texts_of_another_length(words: list[str], count: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRANSFORMER, tokenizer="")
    (run / "config.yaml").write_text(yaml.safe_dump({"model": TRANSFORMER, "data": {"seq_len": 64}}), encoding="utf-8")
    notes = complete_tuned(words, run).notes
    assert len(notes) == count
    assert all(note.startswith(f"note: data.seq_len=256 here, and 64 in finetune.base={run}") for note in notes)


def test_a_base_of_bytes_keeps_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRANSFORMER, tokenizer="")
    assert complete_tuned(["data=labelled_text"], run).settings["data.tokenizer"] == {"_target_": BYTES}
    assert "give tokenizer=bytes" in complete_tuned(["data=text", "tokenizer=bpe"], run).conflict.fix


def test_the_run_of_a_hub_model_is_built_by_its_own_config(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"_target_": HUB, "folder": "gone"}, own_config=True)
    model = complete_tuned(["data=modular"], run).settings["model"]
    assert model == {"_target_": HUB, "folder": str(run / "model"), "load_weights": False, "keep_blocks": []}


@pytest.mark.parametrize(
    ("words", "kind", "key", "expected"),
    [
        (["model=transformer", "linear=bitnet"], "inside", "model.linear._target_", BITLINEAR),
        (["model.dim=64"], "inside", "model.dim", 64),
        (["model.dropout=0.5"], "inside", "model.dropout", 0.5),  # which changes no weight
        (["linear=full"], "full", "model.linear._target_", "torch.nn.Linear"),  # another kind: trained on as it
        (["model.linear.warmup=3"], "full", "model.linear.warmup", 3),
    ],
    ids=str,
)
def test_what_may_be_typed_counts(words: list[str], kind: str, key: str, expected: Any, tmp_path: Path) -> None:
    model = TRANSFORMER | {"linear": {"_target_": BITLINEAR, "_partial_": True, "warmup": 0}}
    done = complete_tuned(["data=modular", *words], make_run(tmp_path / "run", model), kind)
    assert done.conflict is None
    value: Any = done.settings
    for part in key.split("."):
        value = value[part]
    assert value == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=mlp"], "model._target_ is research.models.mlp.MLP here, was research.models.transformer.Transformer"),
        (["model.dim=32"], "model.dim is 32 here, was 64 there"),
        (["model.heads=2"], "model.heads is 2 here, was nothing there"),
        (["linear=full"], f"model.linear._target_ is torch.nn.Linear here, was {BITLINEAR}"),
    ],
    ids=str,
)
def test_another_model_is_refused_by_name(words: list[str], message: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRANSFORMER | {"linear": {"_target_": BITLINEAR, "_partial_": True}})
    conflict = complete_tuned(["data=modular", *words], run).conflict
    assert message in conflict.message
    assert f"finetune.base={run} brings its own model" in conflict.message
    assert "another finetune.base" in conflict.fix


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"_target_": "os.system"}, "model._target_=os.system"),
        (TRANSFORMER | {"dim": "${oc.env:HOME}"}, "holds a reference"),
        ({}, "has no model"),
        (None, "there is no such folder"),
    ],
    ids=str,
)
def test_a_base_that_is_none_is_refused(model: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    run = tmp_path / "run" if model is None else make_run(tmp_path / "run", model)
    with pytest.raises(ValueError, match=f"finetune.base={run}: ") as caught:
        complete_tuned(["data=modular"], run)
    assert message in str(caught.value)


@pytest.mark.parametrize("typed", ["folder", "./folder", "~/folder", "ABSOLUTE"])
def test_the_tokenizer_of_a_folder_takes_the_place_of_bytes(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    typed = str(tmp_path / "folder") if typed == "ABSOLUTE" else typed
    requested = compose(["model=hub", f"model.folder={typed}", "data=text"])
    assert requested.get("data.tokenizer") == {"_target_": FOLDER, "path": str(tmp_path / "folder")}
    end = compose(["model=hub", f"model.folder={typed}", "data=text", "tokenizer=folder", "data.tokenizer.end=X"])
    assert end.get("data.tokenizer") == {"_target_": FOLDER, "path": str(tmp_path / "folder"), "end": "X"}


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    requested = compose(["model=hub", f"model.folder={tmp_path}", "data=text"])
    assert requested.get("data.tokenizer._target_") == BYTES
    assert requested.notes == (f"note: model.folder={tmp_path} has no tokenizer: the data keep their own, Bytes",)


@pytest.mark.parametrize("words", [["tokenizer=bpe"], ["tokenizer=bytes"], ["data.tokenizer={_target_: OTHER}"]], ids=str)
@pytest.mark.parametrize("sweeps", [False, True])
def test_another_tokenizer_is_refused_before_anything_is_imported(words: list[str], sweeps: bool, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "a b"):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").touch()
    (tmp_path / "a b" / "tokenizer.json").write_text("{}")
    words = [word.replace("OTHER", "research.data.tokenizers.BPE") for word in words]
    line = f"model.folder={tmp_path},'{tmp_path / 'a b'}'" if sweeps else f"model.folder='{tmp_path / 'a b'}'"
    (mistake,) = check.find_mistakes(["model=hub", line, "data=text", *words], sweeps)
    assert "knows the tokens of its own alone" in mistake
    assert f"leave it out, or give tokenizer=folder data.tokenizer.path=\"'{tmp_path / 'a b'}'\"" in mistake


def test_a_sweep_says_the_tokenizer_of_each_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
        for file in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name / file).touch()
    words = ["model=hub", f"model.folder={tmp_path / 'a'},{tmp_path / 'b'}", "data=text"]
    assert check.check_overrides(words, multirun=True)[0] == []
    err = capsys.readouterr().err
    assert [err.count(f"the tokenizer of model.folder={tmp_path / name}\n") for name in "ab"] == [1, 1]
