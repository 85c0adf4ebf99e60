"""Mistakes of a command line: each is answered at once with setting, value and fix, and starts nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from program import ROOT

from research.options.conf import CONF, list_groups
from research.preflight.advice import CommandLine
from research.preflight.check import find_mistakes, judge

HEAVY = ("torch", "mlflow", "accelerate", "optuna")

MISTAKES = [
    # a key mistyped, a key typed by its last part alone, an option mistyped
    ("trainer.step=5", ["'trainer.step'", "trainer.steps=5"]),
    ("log_every=5", ["trainer.log_every=5"]),
    ("modle=bitnet", ["'modle'", "model=bitnet"]),
    ("~trainer.stepz", ["'trainer.stepz'", "~trainer.steps"]),
    ("model=bitnt", ["'bitnt'", "bitmlp, bitnet, bitnet_2b4t", "did you mean: model=bitnet"]),
    ("experiment=txt", ["'txt'", "experiment=text"]),
    ("tracker=null", ["one of its options", "jsonl, mlflow, none", "did you mean: tracker=none ?"]),
    ("model=transformer model.linear.scale_method=1", ["'model.linear.scale_method'", "linear=full has no such setting"]),
    # + does not get past the checks, and is not needed for a key that is there
    ("+trainer.foo=1", ["research.training.trainer.Trainer", "foo", "it has: steps, batch_size"]),
    ("+trainer.overfit=0", ["'trainer.overfit'", "leave out the +"]),
    ("+extra=1", ["no key 'extra'"]),
    # a node that is set to a value, or left out
    ("callbacks.time_limit=null", ["'callbacks.time_limit'", "~callbacks.time_limit"]),
    ("~target", ["'target'", "target=null"]),
    ("~model", ["a run needs model", "bitdecoder, bitmlp"]),
    ("~callbacks", ["a run needs callbacks"]),
    # type, range, choice, nothing
    ("trainer.steps=ten", ["trainer.steps takes a whole number in [1, inf)", '"ten"']),
    ("optim.alpha=1", ["optim.alpha takes a number in [0, 1)", "got 1"]),
    ("trainer.precision=fp99", ["trainer.precision takes fp32, bf16", '"fp99"']),
    ("trainer.steps=", ["trainer.steps takes", "got nothing"]),
    ("trainer.clip_norm=.nan", ["trainer.clip_norm takes a number"]),
    ("seed=true", ["seed takes a whole number", "got true"]),
    ("monitor=val/accuracy", ["monitor takes val/loss, val/acc, val/bpb", '"val/accuracy"']),
    ("model.linear.weight_bits=3", ["model.linear.weight_bits takes a number in {1, 1.58, 2, 4, 8}", "got 3"]),
    ("model.linear.granularity=0", ["model.linear.granularity takes tensor, channel or a whole number in [1, inf)", "got 0"]),
    ("optim=grokfast_ma optim.window=0", ["optim.window takes a whole number in [1, inf)", "got 0"]),
    ("optim.lamb=-1", ["optim.lamb takes a number in [0, inf)", "got -1"]),
    # a file that is not there
    (f"out={'x' * 300}", ["a folder's name has over 255 bytes", "give out=FOLDER, shorter"]),
    (f"data={'x' * 300}", ["group 'data' has no option"]),
    (f"data=./{'x' * 300}", ["there is no file or folder"]),
    (f"model=hub model.folder={'x' * 300}", ["there is no file or folder"]),
    ("experiment=finetune_hub", ["FOLDER stands for a path of yours: give model.folder=PATH"]),
    ("model=hub model.folder=nowhere/at/all", ["no file or folder", "nowhere/at/all", "looked from"]),
    ("data=text data.path=nowhere/at/all", ["no file or folder", "nowhere/at/all", "looked from"]),
    ("resume=nowhere", ["error: resume=nowhere", "there is no", "nowhere", "give auto, a run folder"]),
    # a target that does not exist, a package that is not installed
    ("model._target_=research.models.mlp.MPL", ["no 'MPL'", "research.models.mlp.MLP"]),
    ("optim.base._target_=lion_pytorch.Lion", ["no package 'lion_pytorch'", "pip install lion_pytorch"]),
    # a sweep without -m, spaces and brackets
    ("lr=1e-3,3e-4", ["lr=1e-3,3e-4", "-m (or --multirun)"]),
    ("optim.no_decay=norm,bias", ["-m (or --multirun)", "'optim.no_decay=[norm,bias]'"]),
    ("seed=range(0,3)", ["seed=range(0,3)", "-m (or --multirun)"]),
    ("trainer.steps = 5", ["without spaces around '='"]),
    ("optim.base.betas=[0.9,0.98", ["brackets must close", "'optim.base.betas=[0.9,0.98]'"]),
    # a key that nothing reads
    ("trainer=debug steps=10", ["nothing reads 'steps'", "trainer.steps", "trainer=debug"]),
    # choices that do not fit each other; rules that constructors share are in test_rules.py
    ("data=digits", ["data=digits gives Vectors, model=bitnet takes Tokens", "model=bitmlp or model=mlp"]),
    ("loss=classification", ["loss=classification", "data=modular", "loss=last_token"]),
    ("model=decoder data=text", ["data=text", "model=decoder", "at every position", "model=transformer"]),
    ("monitor=val/bpb", ["monitor=val/bpb", "at every position", "monitor=val/acc"]),
    ("loss=regression", ["loss=regression is of numbers", "data=modular", "give loss=last_token"]),
    ("data=digits model=mlp metrics=regression", ["is for data=regression, not for loss=classification", "leave out metrics"]),
    ("data=regression model=mlp metrics=classification", ["not for loss=regression", "give metrics=regression"]),
    ("~schedule._partial_", ["~schedule._partial_", "gets step, steps from the run", "give +schedule._partial_=true"]),
    ("monitor=val/loss", ["target=0.99", "val/acc", "target=null"]),
    ("target=99", ["val/acc is at most 1", "give target=0.99"]),
    ("data=segmentation model=vision target=2.5", ["val/iou is at most 1", "give target=0.025"]),
    ("schedule.warmup=5000", ["trainer.steps=4000", "give schedule.warmup=400, or more steps"]),
    ("optim.start_when=soon", ["optim.start_when=soon", "as val/acc:0.5"]),
    ("optim.stop_when=0", ["optim.stop_when=0", "a number of steps"]),
    ("optim.start_when=val/acc:95", ["optim.start_when=val/acc:95", "at most 1"]),
    ("optim.start_when=100 steps=100", ["optim.start_when=100", "trainer.steps=100", "fewer than 100"]),
    ("optim.start_when=train/acc:0.9", ["optim.start_when=train/acc:0.9", "trainer.eval_train=true"]),
    ("model=hub model.folder=conf model.fields.hidden_size=64", ["model.folder=conf", "model.fields.hidden_size", "leave out"]),
    ("model=hub model.folder=conf model.model_type=gpt2", ["model.folder=conf", "model.model_type", "leave out"]),
    ("model=hub model.folder=conf +model.fields.rope_theta=1e5", ["model.folder=conf", "model.fields.rope_theta"]),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_names_setting_value_and_fix(line: str, words: list[str]) -> None:
    (mistake,) = find_mistakes(line.split(), False)[:1]
    assert mistake.startswith("error: ")
    for word in words:
        assert word in mistake
    assert len(mistake.splitlines()) <= 6


def run_program(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("line", ["trainer.step=5", "data=digits", "lr=1e-3,3e-4", "resume=nowhere"])
def test_a_mistake_ends_the_program_before_it_starts(tmp_path: Path, line: str) -> None:
    done = run_program(*line.split(), f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {line}\n")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_mistake_imports_a_heavy_library() -> None:
    code = (
        f"import json, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from research.preflight.check import find_mistakes\n"
        "for line in json.load(sys.stdin): find_mistakes(line.split(), False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    words = ("_target_", "folder", "path", "resume", "trainer.step=", "start_when")  # each takes a way of its own
    lines = json.dumps([line for line, _ in MISTAKES if any(word in line for word in words)])
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_runs_need_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    (mistake,) = find_mistakes([f"out={file / 'runs'}"], False)
    assert f"{file} is a file" in mistake
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # as on a read-only disk
    (mistake,) = find_mistakes([f"out={tmp_path / 'runs'}"], False)
    assert f"{tmp_path} cannot be written to" in mistake


def test_all_mistakes_are_in_one_answer() -> None:
    words = ["trainer.step=5", "model=bitnt", "lr=-1", "optim.lamb=much", "data.p=48", "data.operation=/"]
    heads = [mistake.splitlines()[0].removeprefix("error: ") for mistake in find_mistakes(words, False)]
    assert sorted(heads) == sorted([*words[:4], "data.p=48 data.operation=/"])


def test_a_wrong_value_is_not_a_conflict_too() -> None:
    (mistake,) = find_mistakes(["model.heads=0"], False)
    assert "model.heads takes a whole number in [1, inf)" in mistake


def test_the_traceback_is_there_for_those_who_want_it() -> None:
    done = run_program("trainer.step=5", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "trainer.steps=5" in done.stderr


RIGHT = [
    "model=bitnet optim=grokfast lr=1e-3", "~callbacks.time_limit", "data.p=97", "optim.no_decay=[norm,bias,embed]",
    "hydra.run.dir=elsewhere", "data=text", "optim=muon lr=0.01 trainer.clip_norm=null", "model.kv_heads=2", "name='a=b'",
    "data=digits model=bitmlp loss=classification", "experiment=text seed=3", "tracker.uri=sqlite:///x.db", "target=0.5",
    "optim.base._target_=torch.optim.NAdam ~optim.base.fused", "trainer.device=cpu", "+optim.base.eps=1e-9",
    "model=hub +model.fields.rope_theta=1e5", "model.linear.weight_bits=4 model.linear.granularity=16",
    "model=hub ~model.fields", "model.linear.warmup=50 steps=100", "model.linear.warmup=0.3",
    "model=hub ~model.linear",
    "callbacks=ternary callbacks.ternary.every=20", "callbacks=gradients eval_every=7 trainer.log_every=3",
    "trainer=debug callbacks=ternary", "trainer=debug trainer.steps=10 batch_size=4",
    # what is set lower down needs nothing at the top
    "steps=6 trainer.steps=12", "precision=bf16 trainer.precision=fp32", "monitor=val/loss callbacks.early_stop.target=0.1",
    "monitor=val/loss ~callbacks.early_stop", "monitor=val/loss target=0.1", "monitor=val/loss target=null",
]  # fmt: skip


@pytest.mark.parametrize("line", RIGHT)
def test_what_is_right_passes(line: str) -> None:
    assert find_mistakes(line.split(), False) == []


@pytest.mark.parametrize(
    ("line", "head", "advice"),
    [
        ("data=images", "data=images", "give model=bitvision or model=vision"),
        ("data=table", "data=table", "give model=bitmlp or model=mlp"),
        ("model=mlp", "model=mlp", "give data=digits or data=regression or data=table"),
        ("data=modular tokenizer=bpe", "tokenizer=bpe", "data=modular has no such setting, unlike data=labelled_text"),
        ("linear=bitnet model=bitmlp", "model=bitmlp", "give data=digits"),
    ],
)
def test_a_mistake_begins_with_what_was_typed(line: str, head: str, advice: str) -> None:
    """And what was typed for the data stays: the model goes by them."""
    (mistake,) = find_mistakes(line.split(), False)
    first, *_, last = mistake.splitlines()
    assert first == f"error: {head}"
    assert last.strip().startswith(advice)
    assert ("data=" in last) == (head != "data=images" and head != "data=table")


def test_a_loss_of_ones_own_takes_the_place_of_one_with_settings() -> None:
    """Settings of training alone at their defaults are left out where it does not take them; others are told."""
    target = "loss._target_=research.losses.stablemax"
    assert find_mistakes([target], False) == []
    (mistake,) = find_mistakes([target, "loss.z_loss=1e-4"], False)
    assert "has no parameter z_loss" in mistake
    assert "give ~loss.z_loss" in mistake


# What options and presets leave to the command line: tests/test_presets.py gives it.
NEEDS = {"finetune": "finetune.base", "objective": "objective.teacher"}
NEEDS |= {"distill": "objective.teacher", "qat": "give resume=FOLDER", "lora_inside": "finetune.base", "gains": "finetune.base"}


def test_every_option_and_preset_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it, for trainer=ddp
    for group, options in list_groups().items():
        for option in options:
            fits = ["data=digits"] if option in ("mlp", "bitmlp", "classification") else []
            fits += ["model=mlp"] if option in ("digits", "classification") else []
            fits += ["data=text"] if option in ("next_token", "seq2seq") or group == "tokenizer" else []
            fits += ["data=images"] if "vision" in option else ["model=vision"] if option in ("images", "segmentation") else []
            fits += ["data=segmentation", "model=vision"] if option == "per_pixel" else []
            fits += ["data=segmentation"] if (group, option) == ("metrics", "segmentation") else []
            fits += ["data=regression", "model=mlp"] if group in ("loss", "metrics") and option == "regression" else []
            fits += ["model=mlp"] if group == "data" and option in ("table", "regression") else []
            fits += ["model.folder=null"] if option == "finetune_hub" else []
            fits += ["data.tokenizer.path=any"] if (group, option) == ("tokenizer", "folder") else []
            fits += ["data.dataset=OWNER/NAME"] if option in ("hub", "hub_images") and group == "data" else []
            fits += ["model=vision"] if option in ("hub_images", "mnist", "cifar10") else []
            with initialize_config_dir(str(CONF), version_base="1.3"):
                line = CommandLine((*fits, f"{group}={option}"), group == "sweep")
                need = NEEDS.get(option if group == "experiment" else group, "nothing")
                assert [text for text in judge(line).mistakes if need not in text] == [], f"{group}={option}"


def test_a_component_of_ones_own_is_checked_like_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Net:\n    def __init__(self, shape, width: int) -> None: ...\n")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from research.preflight.check import find_mistakes\n"
        "import json; print(json.dumps(find_mistakes(['model._target_=mine.Net', '+model.width=wide'], False)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mistakes = "\n".join(json.loads(done.stdout))
    assert "mine.Net has no parameter" in mistakes
    assert 'model.width takes a whole number; got "wide"' in mistakes
