"""Old names of keys and targets: understood in run folders, refused with their new name on a command line."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import ROOT

from research.options.renames import ADDED, PARAMETERS, TARGETS, upgrade_config
from research.options.signature import read_signature
from research.preflight.check import find_mistakes

NODES_OF_0_1 = {  # every target of conf/ in version 0.1, with its keys
    "research.callbacks.checkpoint.Checkpoint": "background every keep_best keep_last",
    "research.callbacks.console.Console": "every",
    "research.callbacks.curve.Curve": "",
    "research.callbacks.early_stop.EarlyStop": "hold target",
    "research.callbacks.gradients.GradientHealth": "every exploding histogram vanishing",
    "research.callbacks.grokking.Grokking": "after end every hold",
    "research.callbacks.pruning.Pruning": "",
    "research.callbacks.ternary.Ternary": "every",
    "research.callbacks.time_limit.TimeLimit": "seconds",
    "research.data.digits.digits": "split_seed train_fraction",
    "research.data.modular.modular": "operation p split_seed train_fraction",
    "research.data.text.text": "glob length path val_bytes val_fraction",
    "research.jsonl.Jsonl": "",
    "research.jsonl.Tracker": "",
    "research.losses.classification": "",
    "research.losses.last_token": "",
    "research.losses.next_token": "",
    "research.losses.stablemax": "",
    "research.models.decoder.Decoder": "depth dim heads hidden linear",
    "research.models.hub.Hub": "exclude fields folder include linear model_type",
    "research.models.mlp.MLP": "depth dim dropout linear",
    "research.models.transformer.Transformer": "act depth dim dropout heads hidden init_std kv_heads linear sub_norm tied",
    "research.nn.bitlinear.BitLinear": "activation_bits activation_per back_end per scale warmup weight_bits",
    "research.optim.ademamix.AdEMAMix": "alpha betas t_alpha t_beta3",
    "research.optim.grokfast.ema": "adapt alpha base clip_norm lamb lr no_decay start_when stop_when unfiltered weight_decay",
    "research.optim.grokfast.ma": "base clip_norm lamb lr no_decay start_when stop_when unfiltered weight_decay window",
    "research.optim.muon.Muon": "adamw_for betas momentum",
    "research.optim.orthograd.orthograd": "base lr no_decay weight_decay",
    "research.optim.plain.plain": "base lr no_decay weight_decay",
    "research.optim.schedules.bitnet": "cooldown middle warmup",
    "research.optim.schedules.constant": "warmup",
    "research.optim.schedules.cosine": "floor warmup",
    "research.optim.schedules.wsd": "decay floor warmup",
    "research.tracking.MLflow": "uri",
    "research.trainer.Trainer": "batch_size checkpoint_activations clip_norm compile device ema eval_every grad_accum "
    "judge_train log_every max_rollbacks max_skips on_nonfinite overfit parallel precision seed steps",
}


@pytest.mark.parametrize("target", NODES_OF_0_1)
def test_a_node_of_0_1_fits_a_component_of_today(target: str) -> None:
    node: dict[str, Any] = {"_target_": target, **dict.fromkeys(NODES_OF_0_1[target].split(), 1)}
    upgraded = upgrade_config({"outer": {"inner": node}})["outer"]["inner"]
    signature = read_signature(upgraded.pop("_target_"))
    assert signature is not None
    assert set(upgraded) <= {parameter.name for parameter in signature.parameters}
    old = {key: value for key, value in upgraded.items() if key not in ADDED.get(str(TARGETS.get(target, target)), {})}
    leaves = [leaf for value in old.values() for leaf in (value.values() if isinstance(value, dict) else [value])]
    assert leaves == [1] * (len(node) - 1), "every value is there"
    assert target in node["_target_"], "the argument is not changed"


def test_every_new_name_exists() -> None:
    for target, names in PARAMETERS.items():
        assert target not in TARGETS
        signature = read_signature(target)
        assert signature is not None
        assert {name.split(".")[0] for name in names.values()} <= {parameter.name for parameter in signature.parameters}
    assert not set(TARGETS) & set(TARGETS.values())
    assert all(read_signature(target) for target in TARGETS.values())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("model.hidden=3", "model.ffn_dim=3"),
        ("+model.tied=true", "model.tie_embeddings=true"),
        ("++model.linear.per=channel", "model.linear.granularity=channel"),
        ("~model.act", "~model.activation"),
        ("hidden=3", "model.ffn_dim=3"),
        ("+judge_train=true", "trainer.eval_train=true"),
        ("model.linear.back_end=int8", "model.linear.backend=int8"),
        ("trainer.judge_train=true", "trainer.eval_train=true"),
        ("trainer.on_nonfinite=skip", "trainer.guard.policy=skip"),
        ("trainer.max_skips=3", "trainer.guard.max_skips=3"),
        ("data=text data.length=8", "data.seq_len=8"),
        ("data=text data.glob=*.md", "data.pattern='*.md'"),
        ("optim._target_=research.optim.plain.plain", "research.optim.param_groups.from_base"),
        ("tracker._target_=research.jsonl.Jsonl", "research.tracking.jsonl.Jsonl"),
        ("trainer._target_=research.trainer.Trainer", "research.training.trainer.Trainer"),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(line: str, words: str) -> None:
    (mistake,) = find_mistakes(line.split(), False)
    assert line.split()[-1] in mistake.splitlines()[0]
    assert words in mistake.rpartition("did you mean")[2]
    assert f"is called '{words.lstrip('~').partition('=')[0]}' since 0.2" in mistake


@pytest.mark.parametrize(
    ("line", "new", "others"),
    [
        (
            "linear=full model.linear.per=channel",
            "model.linear.granularity",
            "linear=full has no such setting, unlike linear=bitnet",
        ),
        ("linear=full +model.linear.per=channel", "model.linear.granularity", "linear=full has no such setting"),
        ("data.length=3", "data.seq_len", "data=modular has no such setting, unlike data=labelled_text, data=pairs, data=text"),
        ("model=mlp data=digits model.hidden=3", "model.ffn_dim", "model=mlp has no such setting, unlike"),
    ],
)
def test_an_old_name_of_another_option_is_answered_too(line: str, new: str, others: str) -> None:
    (mistake,) = find_mistakes(line.split(), False)
    assert f"is called '{new}' since 0.2" in mistake
    assert others in mistake
    assert "no key" not in mistake


def test_a_component_of_ones_own_may_have_an_old_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_network.py").write_text("class Net:\n    def __init__(self, shape, hidden: int = 3) -> None: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    target = "model._target_=own_network.Net"
    assert "since 0.2" not in "\n".join(find_mistakes([target, "+model.hidden=3"], False))
    mistakes = "\n".join(find_mistakes([target, "model.hidden=3"], False))
    assert "no key 'model.hidden'" in mistakes
    assert "since 0.2" not in mistakes


@pytest.mark.parametrize("line", ["model.linear.warmup=3", "+model.linear.warmup=3"])
def test_a_setting_of_another_option_is_no_typing_slip(line: str) -> None:
    (mistake,) = find_mistakes(["linear=full", line], False)
    assert "linear=full has no such setting, unlike linear=bitnet" in mistake
    assert "schedule" not in mistake


@pytest.mark.parametrize(
    ("line", "multirun", "new"),
    [
        ("hydra.sweeper.when={lr: 'model.linear.per == 1'}", True, ["model.linear.granularity"]),
        ("hydra.sweeper.when={model.hidden: 'lr > 1 and trainer.judge_train'}", True, ["model.ffn_dim", "trainer.eval_train"]),
        ("hydra.sweeper.enqueue=[{lr: 1, model.hidden: 64}]", True, ["model.ffn_dim"]),
        ("model.dim=${model.hidden}", False, ["model.ffn_dim"]),
        ("name=width_${model.hidden}_${data.length}", False, ["model.ffn_dim", "data.seq_len"]),
        ("hydra.run.dir=outputs/${model.linear.back_end}", False, ["model.linear.backend"]),
    ],
)
def test_an_old_key_that_another_setting_refers_to_is_refused(line: str, multirun: bool, new: list[str]) -> None:
    (mistake,) = find_mistakes(["lr=1e-3,1e-4", line] if multirun else [line], multirun)
    assert mistake.splitlines()[0].startswith(f"error: {line.partition('=')[0]}=")
    assert all(f"is called '{key}' since 0.2" in mistake for key in new)


def test_an_old_key_in_a_yaml_is_refused(tmp_path: Path) -> None:
    for folder in ("research", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    preset = "# @package _global_\nmodel:\n  dim: ${model.hidden}\n  tied: true\n"
    study = "# @package _global_\nhydra:\n  sweeper:\n    params: {lr: '1e-3,1e-4'}\n    when: {lr: model.act == 'silu'}\n"
    (tmp_path / "conf/experiment/old.yaml").write_text(preset)
    (tmp_path / "conf/sweep/old.yaml").write_text(study)
    for words, new in ((["experiment=old"], ("ffn_dim", "tie_embeddings")), (["sweep=old", "-m"], ("activation",))):
        command = [sys.executable, "train.py", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert all(f"is called 'model.{name}' since 0.2" in done.stderr for name in new)
    assert not (tmp_path / "outputs").exists()


def test_an_old_key_of_a_sweep_is_one_mistake() -> None:
    (mistake,) = find_mistakes(["model.linear.per=tensor,channel"], True)
    assert mistake.splitlines()[0] == "error: model.linear.per=tensor,channel"
    assert "did you mean: model.linear.granularity=tensor,channel ?" in mistake
    params = "hydra.sweeper.params={model.linear.per: [tensor,channel]}"  # as a study's yaml has it
    (mistake,) = find_mistakes([params], True)
    assert "did you mean: model.linear.granularity=" in mistake


def test_an_old_key_is_answered_wherever_a_sweep_names_it() -> None:
    """`search_space` is what hydra-optuna-sweeper calls `params`."""
    (mistake,) = find_mistakes(["hydra.sweeper.search_space={model.hidden: [64,128]}"], True)
    assert "did you mean: model.ffn_dim=" in mistake


def test_a_model_without_its_linear_layers_is_refused() -> None:
    (mistake,) = find_mistakes(["~linear"], False)
    assert mistake.splitlines()[0] == "error: ~linear"
    assert "linear=bitnet or linear=full" in mistake
