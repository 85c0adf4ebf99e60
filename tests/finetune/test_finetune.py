"""Fine-tuning as a user does it: the base's digest, small checkpoints, a merge, and what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from program import TINY, train

from research.composition.pretrained import read_model
from research.data.spec import Tokens
from research.finetune.base import find_checkpoint, read_tensors
from research.finetune.full import full
from research.load import TrainedRun, load_run
from research.merge.__main__ import check_kind
from research.merge.__main__ import main as merge
from research.models.hub import Hub, replace_conv1d
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.options.finetuning import is_beside, is_frozen, is_inside, merge_finetuning
from research.preflight import check
from research.training import checkpoint, digests, snapshot
from research.training.state import RunInfo

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


@pytest.mark.parametrize("becomes_ternary", [True, False])
def test_gpt2_becomes_ternary_and_full_again(becomes_ternary: bool) -> None:
    """In full precision its layers hold their weights transposed."""
    pytest.importorskip("transformers")
    fields = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    models = [Hub(Tokens(32, 8), "gpt2", fields, linear=linear) for linear in (None, BitLinear)]
    source, model = models if becomes_ternary else models[::-1]
    model.load_state_dict(read_tensors(source, model))
    replace_conv1d(models[0].net)
    own, other = (net.state_dict() for net in models)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_full_lets_no_parameter_learn_that_the_model_keeps_fixed() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [p.requires_grad for p in full(model).parameters()] == [True, False]


KINDS = {
    "": (0, 0, 0),
    "research.finetune.full.full": (0, 0, 0),
    "research.finetune.inside.inside": (1, 1, 0),
    "research.finetune.gains.gains": (1, 1, 0),
    "research.finetune.side.side": (1, 0, 1),
    "mine.bias": (1, 0, 1),  # whatever it does: no plain model
    "mine.full": (1, 0, 1),
    "mine.inside": (1, 0, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_leaves_out_and_merges_into(kind: str) -> None:
    config: dict[str, Any] = {
        "finetune": {"_target_": kind, "digest": "d"} if kind else None,
        "model": {"linear": {}},
    }
    assert tuple(map(int, (is_frozen(config), is_inside(config), is_beside(config)))) == KINDS[kind]
    assert RunInfo(1, 1, config=config).base == ("d" if KINDS[kind][0] else "")
    assert (merge_finetuning(config)["finetune"] is None) == (not KINDS[kind][2])


def test_checkpoints_of_what_learns_are_small(tmp_path: Path) -> None:
    """Weights and the optimizer's memory, at rank 2 and width 128, under a tenth of those of the whole model."""
    from functools import partial

    from fitting import fit

    from research.nn.lowrank import add_low_rank

    add = partial(add_low_rank, rank=1, alpha=1.0, include=["*"], exclude=[])
    sizes = {}
    for name, finetune in (("full", None), ("inside", add)):
        settings: dict[str, Any] = {"finetune": finetune} if finetune else {}
        state = fit(tmp_path / name, steps=2, dim=96, **settings)
        folder = checkpoint.commit(tmp_path / name / "again", snapshot.capture(state))
        sizes[name] = sum(file.stat().st_size for file in folder.iterdir())
    assert sizes["inside"] < 0.1 * sizes["full"]


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
    from research.run_dir import lock

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


def test_a_kind_of_ones_own_is_neither_plain_nor_merged(tmp_path: Path) -> None:
    config = {"finetune": {"_target_": "mine.bias"}, "model": {"_target_": "research.models.mlp.MLP"}}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    run = TrainedRun(tmp_path, tmp_path, OmegaConf.create(config), torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="RUN was fine-tuned by mine\\.bias, and ONNX holds plain models"):
        run.require_plain("ONNX")
    with pytest.raises(ValueError, match="it was fine-tuned by mine\\.bias: it is no plain model\ngive the base"):
        read_model(tmp_path, "RUN")
    with pytest.raises(ValueError, match="was fine-tuned by mine\\.bias, of which no merge is known\nuse it as it is"):
        check_kind(str(tmp_path))
