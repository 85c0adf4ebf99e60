"""Fine-tuning as a user does it: the base's digest, small checkpoints, a merge, and what is refused."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from program import TINY, train

from research.composition.pretrained import read_model
from research.export.__main__ import main as export
from research.finetune.base import find_checkpoint
from research.load import load_run
from research.merge.__main__ import check_kind
from research.merge.__main__ import main as merge
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.options.finetuning import SIDE, check_plain
from research.preflight import check
from research.training import checkpoint, digests

START = [*TINY, "tracker=jsonl", "trainer.steps=4", "callbacks.checkpoint.every=2"]
WORDS = {"inside": ["finetune.rank=1"], "gains": [], "side": ["finetune.rank=2", "finetune.dropout=0.1"], "full": []}


def find_mistakes(*words: str) -> str:
    return "\n".join(check.check_overrides(list(words), multirun=False)[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and a run of each kind from it on other data."""
    root = tmp_path_factory.mktemp("runs")
    folders = {"base": root / "base"} | {kind: root / kind for kind in WORDS}
    train(root, *START, f"hydra.run.dir={folders['base']}")
    for kind, words in WORDS.items():
        tune(root, kind, folders["base"], f"hydra.run.dir={folders[kind]}", *words)
    return folders


def tune(root: Path, kind: str, base: Path, *words: str, fails: bool = False) -> Any:
    own = [word for word in START if not word.startswith("model.")]
    return train(root, *own, f"finetune={kind}", f"finetune.base={base}", "optim=adamw", "seed=1", *words, fails=fails)


def read_config(run: Path) -> Any:
    from research.composition.recorded import load_config

    return load_config(run)[0]


@pytest.mark.parametrize("kind", WORDS)
def test_a_run_records_its_base_and_is_read_back(runs: dict[str, Path], kind: str) -> None:
    digest = json.loads((runs["base"] / "checkpoints/step-00000004/manifest.json").read_text())["files"]["model.safetensors"]
    node = read_config(runs[kind])["finetune"]
    assert (node["digest"], node["base"]) == (digest["sha256"], str(runs["base"]))
    summary = json.loads((runs[kind] / "summary.json").read_text())
    assert (summary["learning_params"] == summary["params"]) == (kind == "full")
    trained = load_run(str(runs[kind]), merge=False).model
    _, saved = checkpoint.load_newest(runs[kind])
    assert any("embed" in name or "head" in name for name in saved.tensors["model"]) == (kind == "full"), "adapters alone"
    assert ("base" in saved.manifest.identity) == (kind != "full")
    if kind != "full":  # what is frozen are the base's own bits
        own, frozen = load_run(str(runs["base"])).model, trained.state_dict()
        assert torch.equal(frozen["embed.weight"], own.state_dict()["embed.weight"])


@pytest.mark.parametrize("kind", ["inside", "gains"])
@pytest.mark.parametrize("backend", ["ste", "bf16_exact", "int8"])
def test_the_merged_run_computes_what_was_trained_to_the_bit(
    runs: dict[str, Path], kind: str, backend: Any, tmp_path: Path
) -> None:
    assert merge([str(runs[kind]), "--output", str(tmp_path / "merged")]) == 0
    trained, merged = load_run(str(runs[kind]), merge=False), load_run(str(tmp_path / "merged"))
    assert merged.config.finetune is None
    tokens = trained.data.val[torch.arange(20)][0]
    for model in (trained.model, merged.model):
        for layer in bitlinear_layers(model).values():
            layer.backend = backend
    assert all(type(layer) is BitLinear for layer in bitlinear_layers(merged.model).values())
    assert torch.equal(trained.model(tokens), merged.model(tokens))
    assert not torch.equal(merged.model(tokens), load_run(str(runs["base"])).model(tokens)), "it has learnt"


def test_a_merged_run_is_a_base_and_begins_other_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    merge([str(runs["gains"]), "--output", str(tmp_path / "merged")])
    tune(tmp_path, "inside", tmp_path / "merged", f"hydra.run.dir={tmp_path / 'next'}", "finetune.rank=1")
    linear = read_config(tmp_path / "next")["model"]["linear"]
    assert (linear["scale_method"], linear["granularity"]) == ("absmax", "channel")
    begin = [*START, f"resume={tmp_path / 'merged'}", "resume.weights_only=true", "linear=bitnet"]
    refused = train(tmp_path, *begin, fails=True).stderr  # other scales would make another model of its weights
    assert 'model.linear.granularity is "tensor" here, was "channel" there' in refused
    train(tmp_path, *begin,
          "model.linear.scale_method=absmax", "model.linear.granularity=channel")  # fmt: skip


def test_beside_ternary_layers_a_merge_is_refused_with_what_it_loses(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge([str(runs["side"]), "--output", str(tmp_path / "merged")]) == 2
    message = capsys.readouterr().err
    assert "of what they do, val/loss goes from" in message
    assert "finetune=inside, which merges" in message
    assert not (tmp_path / "merged").exists()


def test_a_merge_does_not_overwrite(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "research.merge.plain", None)  # what is refused at once imports nothing heavy
    (tmp_path / "file").write_text("mine")
    assert merge([str(runs["inside"]), "--output", str(tmp_path)]) == 2
    assert merge([str(runs["base"]), "--output", str(tmp_path / "new")]) == 2
    message = capsys.readouterr().err
    assert "is not empty" in message
    assert "was not fine-tuned" in message


def test_in_full_precision_an_adapter_merges_to_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, *START, "model=transformer", f"hydra.run.dir={tmp_path / 'base'}")
    assert "finetune=inside is of ternary layers" in find_mistakes("finetune=inside", f"finetune.base={tmp_path / 'base'}")
    tune(tmp_path, "side", tmp_path / "base", f"hydra.run.dir={tmp_path / 'side'}", "finetune.rank=2")
    assert merge([str(tmp_path / "side"), "--output", str(tmp_path / "merged")]) == 0
    assert "outputs off by" in capsys.readouterr().out
    trained, merged = (load_run(str(tmp_path / name)) for name in ("side", "merged"))
    tokens = trained.data.val[torch.arange(20)][0]
    torch.testing.assert_close(trained.model(tokens), merged.model(tokens), rtol=1e-4, atol=1e-5)


def test_a_base_that_changed_is_refused_with_both_digests(runs: dict[str, Path], tmp_path: Path) -> None:
    older, words = runs["full"] / "checkpoints/step-00000004", ["finetune=inside", "finetune.rank=1", "optim=adamw"]
    message = find_mistakes(*words, f"finetune.base={older}", f"resume.path={runs['inside']}")
    known = digests.hash_checkpoint(older), digests.hash_checkpoint(runs["base"] / "checkpoints/step-00000004")
    assert all(text in message for text in (*known, str(older), "by finetune.base"))


def test_a_base_whose_newest_checkpoint_is_damaged_is_its_good_one(runs: dict[str, Path], tmp_path: Path) -> None:
    """Also where both were of the same weights, as those of a last step at lr=0."""
    base = Path(shutil.copytree(runs["base"], tmp_path / "base"))
    good, newest = (base / "checkpoints" / f"step-0000000{step}" for step in (4, 5))
    shutil.copytree(good, newest)
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    digest = digests.hash_run(base)
    assert digest == digests.hash_checkpoint(good) == digests.hash_checkpoint(newest)
    assert find_checkpoint(base, str(base), digest) == good


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetune=inside"], "fine-tuning needs a base to begin at"),
        (["finetune=full"], "fine-tuning needs a base to begin at"),
        (["finetune=gains", "finetune.base=nowhere"], "there is no such folder"),
        (["finetune=inside", "finetune.base=BASE", "finetune.rank=0"], "finetune.rank=0"),
        (["finetune=inside", "finetune.base=BASE", "finetune.alpha=-1"], "finetune.alpha=-1"),
        (["finetune=side", "finetune.base=BASE", "finetune.dropout=1"], "finetune.dropout=1"),
        (["finetune=inside", "finetune.base=BASE", "model.dim=48"], "brings its own model"),
        (["finetune=inside", "finetune.base=BASE", "linear=full"], "brings its own model"),
        (["finetune=gains", "finetune.base=SIDE"], "it is no plain model"),
        (["finetune=gains", "finetune.base=BASE", "resume.path=BASE"], "is the very run of resume"),
        (["finetune=side", "finetune.base=BASE", "trainer=fsdp"], "trainer.parallel=fsdp shards weights"),
        (["finetune=inside", "finetune.base=BASE", "finetune.digest=abc"], "finetune.digest=abc is not that of"),
        (["finetune=lora", "finetune.base=BASE"], "side"),
        (
            ["model=hub", "data=text", "finetune=gains", "finetune.include=[a]"],
            "did you mean: finetune=inside finetune.include='[a]' ?",
        ),
        (["finetune=inside", "finetune.base=EMPTY"], "has no usable checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_answered(runs: dict[str, Path], tmp_path: Path, words: list[str], expected: str) -> None:
    shutil.copytree(runs["base"], tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoints"))
    places = {"BASE": runs["base"], "SIDE": runs["side"], "EMPTY": tmp_path / "empty"}
    for name, place in places.items():
        words = [word.replace(f"={name}", f"={place}") for word in words]
    message = find_mistakes(*words)
    assert expected in message
    assert len(message.splitlines()) <= 8


def test_a_base_in_training_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    from research.files.locks import lock

    base = tmp_path / "base"
    shutil.copytree(runs["base"], base)
    with lock(base):
        assert "is in training: its weights change" in find_mistakes("finetune=inside", f"finetune.base={base}")
        newest = base / "checkpoints/step-00000004"
        assert find_mistakes("finetune=inside", f"finetune.base={newest}", "finetune.rank=1") == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetune.rank=999"], "give at most"),
        (["finetune.include=[nothing*]"], "the pattern nothing* matches no layer"),
        (["data.p=13"], "is another model than this run's"),
    ],
    ids=str,
)
def test_what_only_the_model_knows_is_answered_by_name(
    runs: dict[str, Path], tmp_path: Path, words: list[str], expected: str
) -> None:
    failed = tune(tmp_path, "inside", runs["base"], *words, fails=True)
    assert expected in failed.stderr


def test_an_export_of_a_side_run_is_refused_by_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run := tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = {"finetune": {"_target_": SIDE}, "model": {"_target_": "research.models.mlp.MLP"}}
    (run.parent / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    words = ["--format", "torch", "--output", str(tmp_path / "out")]
    assert export([str(run.parent), *words]) == 2
    assert "beside its layers (finetune=side), and an export holds plain models; use it as it is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_kind_of_ones_own_is_neither_plain_nor_merged(tmp_path: Path) -> None:
    config = {"finetune": {"_target_": "mine.bias"}, "model": {"_target_": "research.models.mlp.MLP"}}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="RUN was fine-tuned by mine\\.bias, and ONNX holds plain models"):
        check_plain(config, "ONNX")
    with pytest.raises(ValueError, match="it was fine-tuned by mine\\.bias: it is no plain model\ngive the base"):
        read_model(tmp_path, "RUN")
    with pytest.raises(ValueError, match="was fine-tuned by mine\\.bias, of which no merge is known\nuse it as it is"):
        check_kind(str(tmp_path))


OWN = ["trainer=debug", "data.p=11", "batch_size=16", "trainer.device=cpu", "tracker=jsonl", "optim=adamw", "seed=1"]


@pytest.mark.parametrize(
    ("run", "words", "expected"),
    [
        ("inside", "finetune=inside finetune.rank=1 finetune.base=BASE finetune.alpha=64", "finetune.alpha is 64 here"),
        ("side", "finetune=side finetune.base=BASE", "finetune.rank is 8 here, was 2 there"),
        ("gains", "finetune=gains finetune.norms=false finetune.base=BASE", "finetune.norms is false here, was true there"),
        ("gains", "model.dim=32 model.heads=2", "finetune is null here, was gains there"),
        ("gains", "finetune=inside finetune.base=BASE", "finetune is inside here, was gains there"),
        ("gains", "finetune=inside finetune.base=BASE resume.weights_only=true", "finetune is inside here, was gains there"),
        ("gains", "resume.weights_only=true", "to begin at its weights: "),
        ("side", "resume.weights_only=true", "to go on with it: "),
        ("full", "", "model.dim is 128 here, was 32 there"),
        ("full", "finetune=gains finetune.base=BASE", "finetune is gains here, was full there"),
        ("base", "finetune=gains finetune.base=SIDE", "it is no plain model"),
        ("base", "finetune=gains finetune.base=FULL", "finetune is gains here, was null there"),
        ("merged", "model=bitnet resume.weights_only=true", "model.linear.granularity is"),
        ("merged", "model=bitnet", "finetune=full finetune.base="),
        ("later", "", "finetune.base={moved}/checkpoints/step-00000004"),
        ("later", "finetune=inside finetune.rank=1 finetune.base=MOVED", "finetune.base={moved}/checkpoints/step-00000004"),
    ],
)  # fmt: skip
def test_a_refused_resume_prints_a_line_that_passes(
    runs: dict[str, Path], others: dict[str, Path], run: str, words: str, expected: str
) -> None:
    """A run keeps how it was fine-tuned: its adapters would compute another model in another way."""
    folders = runs | others
    for name, folder in folders.items():
        words = words.replace(f"={name.upper()}", f"={folder}")
    typed = [*OWN, *words.split(), f"resume={folders[run]}"]
    message = "\n".join(check.find_mistakes(typed, False))
    assert expected.format(moved=others["moved"]) in message
    if line := re.search(r"python train.py (.*)", message):
        typed = shlex.split(line[1])
    elif fix := re.search(r"by (finetune.base=.*)", message):
        typed.append(fix[1])
    else:
        return
    assert check.find_mistakes(typed, False) == []


def test_dropout_beside_layers_may_change_and_a_base_may_be_gone(runs: dict[str, Path], others: dict[str, Path]) -> None:
    words = [*OWN, "finetune=side", "finetune.rank=2", "finetune.dropout=0.2", f"finetune.base={runs['base']}"]
    assert check.find_mistakes([*words, f"resume={runs['side']}"], False) == []
    assert check.find_mistakes([*OWN, "model.dim=32", "model.heads=2", f"resume={runs['full']}"], False) == []
    message = "\n".join(check.find_mistakes([*OWN, f"resume={others['lost']}"], False))
    assert f"give finetune.base=FOLDER, as it was: {runs['full']} has no weights of digest" in message


@pytest.fixture(scope="module")
def others(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A merged run, and copies of one whose base was trained on (`moved`) or has other weights (`lost`)."""
    root = tmp_path_factory.mktemp("others")
    folders = {name: root / name for name in ("merged", "moved", "later", "lost")}
    merge([str(runs["gains"]), "--output", str(folders["merged"])])
    shutil.copytree(runs["base"], folders["moved"])
    shutil.copytree(runs["full"] / "checkpoints/step-00000004", folders["moved"] / "checkpoints/step-00000006")
    for name, base in (("later", folders["moved"]), ("lost", runs["full"])):
        shutil.copytree(runs["inside"], folders[name])
        own = [folders[name] / file for file in ("overrides.txt", "config.yaml")]
        for file in (*folders[name].glob("checkpoints/*/manifest.json"), *own):
            file.write_text(re.sub(rf"{re.escape(str(runs['base']))}(?![\w/])", str(base), file.read_text()))
    return folders
