"""What a newcomer types by habit: each line is answered in a few lines with the key or the way that is right."""

import shlex
from pathlib import Path

import pytest

from research.preflight.check import find_mistakes
from research.preflight.program import prepare

MAX_ANSWER_LINES = 6

MISTAKES = {
    # what other programs call a setting
    "wd=0.1": "did you mean: optim.weight_decay=0.1 ?",
    "bs=64": "did you mean: batch_size=64 ?",
    "learning_rate=1e-3": "did you mean: lr=1e-3 ?",
    "max_steps=500": "did you mean: steps=500 ?",
    "eval_steps=50": "did you mean: eval_every=50 ?",
    "max_grad_norm=1": "did you mean: trainer.clip_norm=1 ?",
    "gradient_accumulation_steps=2": "did you mean: trainer.grad_accum=2 ?",
    "save_steps=100": "did you mean: callbacks.checkpoint.every=100 ?",
    "hidden_size=64": "did you mean: model.dim=64 ?",
    "n_layers=2": "did you mean: model.depth=2 ?",
    "data=text block_size=64": "did you mean: data.seq_len=64 ?",
    "val_split=0.2": "or data=text data.val_fraction=0.2 ?",
    "output_dir=elsewhere": "did you mean: out=elsewhere ?",
    "load_checkpoint=auto": "did you mean: resume=auto ?",
    "trainer.max_steps=3": "did you mean: steps=3 ?",
    "optimizer=adamw": "did you mean: optim=adamw ?",
    "optimizer.lr=1e-3": "did you mean: optim.lr=1e-3 or lr=1e-3 ?",
    "optim=sgd momentum=0.9": "did you mean: optim.base.momentum=0.9 ?",
    "logger=csv": "did you mean: tracker=jsonl ?",
    "n_trials=10": "did you mean: hydra.sweeper.n_trials=10 ?",
    # what has no key: the way that is right
    "gpus=2": "torchrun --nproc-per-node N train.py trainer=ddp",
    "num_workers=4": "no loader workers",
    "debug=true": "did you mean: trainer=debug ?",
    "fp16=true": "did you mean: precision=fp16 ?",
    "no_cuda=true": "did you mean: trainer.device=cpu ?",
    "deterministic=true": "the same seed gives the same bits",
    "quiet=true": "did you mean: ~callbacks.console ?",
    "warmup_ratio=0.1": "schedule.warmup=N",
    "tokenizer_name=gpt2": "tokenizer=folder data.tokenizer.path=FOLDER",
    "pretrained=true": "model=hub model.folder=FOLDER",
    "early_stopping=true": "callbacks.early_stop.patience=5",
    "num_seeds=3": "-m seed=0,1,2",
    # values as others write them
    "device=cuda": "did you mean: trainer.device=auto ?",
    "precision=16-mixed": "did you mean: precision=fp16 ?",
    "monitor=val_accuracy": "did you mean: monitor=val/acc ?",
    "steps=1e3": "did you mean: steps=1000 ?",
    "steps=10,000": "did you mean: steps=10000 ?",
    "lr=0,001": "did you mean: lr=0.001 ?",
    "trainer.compile=yes": "did you mean: trainer.compile=true ?",
    "target=95%": "did you mean: target=0.95 ?",
    # case
    "LR=1e-3": "did you mean: lr=1e-3 ?",
    "Model=BitNet": "did you mean: model=bitnet ?",
    "model=BitNet": "did you mean: model=bitnet ?",
    "batchSize=32": "did you mean: batch_size=32",
    # flags, spaces, colons, dashes and quotes of a text editor
    "--lr 1e-3": "did you mean: lr=1e-3 ?",
    "--batch-size=32": "did you mean: batch_size=32 ?",
    "-lr 1e-3": "did you mean: lr=1e-3 ?",
    "--resume": "resume=auto",
    "--config conf/experiment/text.yaml": "did you mean: experiment=text ?",
    "lr 1e-3": "did you mean: lr=1e-3 ?",
    "lr = 1e-3": "did you mean: lr=1e-3 ?",
    "'lr: 1e-3'": "did you mean: lr=1e-3 ?",
    "model bitnet": "did you mean: model=bitnet ?",
    "lr==1e-3": "did you mean: lr=1e-3 ?",
    "—lr 1e-3": "did you mean: lr=1e-3 ?",
    "name=“first”": "did you mean: name=first ?",
    "optim.base.betas=[0.9, 0.95]": "did you mean: optim.base.betas='[0.9,0.95]' ?",
    "name=[EOS]": "did you mean: name=\"'[EOS]'\" ?",
    "data=text data.field=<|x|>": "one text: data.field=\"'<|x|>'\"",
    "model=bitnet,optim=adamw": "did you mean: model=bitnet optim=adamw ?",
    # options and files
    "bitnet": "model=bitnet",
    "experiment=text.yaml": "did you mean: experiment=text ?",
    "model=conf/model/bitnet": "did you mean: model=bitnet ?",
    "conf/experiment/text.yaml": "did you mean: experiment=text ?",
    "my.yaml": "save it as conf/experiment/my.yaml; then experiment=my",
    "+experiment=text": "leave out the +: experiment=text",
    # sweeps
    "sweep=digits": "a sweep: add -m",
    "lr=1e-3,3e-4": "a sweep: add -m",
    "model=bitnet,mlp": "with -m (or --multirun) it is a sweep",
    "-m lr=1e-3, 3e-4": "did you mean: lr=1e-3,3e-4 ?",
    "-m lr=[1e-3,3e-4]": "did you mean: lr=0.001,0.0003 ?",
    "lr=1e-3,": "did you mean: lr=1e-3 ?",
    "--multi lr=1e-3,3e-4": "did you mean: --multirun ?",
    # commands
    "train": "leave it out",
    "help": "python train.py --help",
    "--hlep": "did you mean: --help ?",
}


@pytest.mark.parametrize(("line", "answer"), MISTAKES.items(), ids=MISTAKES)
def test_a_habit_is_answered(line: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare(["train.py", *shlex.split(line)])
    text = capsys.readouterr().err
    assert ended.value.code == 2
    assert answer in text
    assert len(text.splitlines()) <= MAX_ANSWER_LINES
    assert text.startswith("error: ")


def test_the_table_is_long_enough() -> None:
    assert len(MISTAKES) >= 61


def test_of_a_key_that_is_given_twice_the_last_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lr=1e-3", "seed=1", "lr=3e-4", "seed=1"]
    assert prepare(["train.py", *words]) == ["train.py", *words]
    assert capsys.readouterr().err == "note: lr=1e-3 is given again as lr=3e-4: the last one counts, and a sweep is -m lr=A,B\n"


@pytest.mark.parametrize(
    "line",
    [
        "--cfg job", "-c job lr=1e-3", "--info", "--info defaults lr=1e-3", "--cfg=job", "--cfg job -p optim",
        "sweep=digits --cfg job",
        "-m sweep=digits", "-m lr=1e-3 hydra.sweeper.repeats.n=3", "\"name='a–b'\"", "\"name='a,b'\"", "target=-1",
    ],
)  # fmt: skip
def test_what_is_right_passes(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    assert sorted(prepare(["train.py", *words])[1:]) == sorted(words), capsys.readouterr().err
    assert capsys.readouterr().err == ""


def test_of_a_sweep_of_one_run_a_note_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["train.py", "lr=1e-3", "-m"]) == ["train.py", "-m", "lr=1e-3"]
    assert capsys.readouterr().err == "note: a sweep of one run; several are -m lr=1e-3,3e-4\n"


@pytest.mark.parametrize(
    ("typed", "right"),
    [("nots", "data.path=notes"), ("Notes/a.txt", "data.path=notes/a.txt"), ("{}/nots", "data.path={}/notes"), ("zebra", "")],
)
def test_a_path_that_is_nearly_there_is_suggested(
    typed: str, right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    (mistake,) = find_mistakes(["data=text", f"data.path={typed.format(tmp_path)}"], False)
    assert "there is no file or folder" in mistake
    shown = mistake.partition("did you mean: ")[2].partition(" ?")[0]
    assert shown == right.format(tmp_path)
