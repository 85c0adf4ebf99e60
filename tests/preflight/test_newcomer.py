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
    "logger=csv": "did you mean: tracker=csv ?",
    "use_wandb=true": "did you mean: tracker=wandb ?",
    "wandb_project=x": "tracker.sinks.wandb.project=NAME",
    "lora_r=8": "finetune=inside",
    "target_modules=q_proj": "finetune.include=['*q_proj']",
    "qat=true": "experiment=qat resume=RUN",
    "model=qwen2": "a pretrained one: model=hub model.folder=FOLDER",
    "finetune=lora finetune.base=x": "LoRA beside the layers: finetune=side; inside the rounding",
    "finetune=inside model=hub finetune.r=8": "did you mean: finetune.rank=8 ?",
    "finetune=side model=hub finetune.lora_alpha=8": "did you mean: finetune.alpha=8 ?",
    "finetune=inside model=hub finetune.target_modules=[q_proj]": "finetune.include=['*q_proj']",
    "model.path=docs": "model=hub model.folder=docs",
    "data=text model=hub model.name=docs": "model.folder=docs",
    "data=text model=hub model.model_name_or_path=gpt2": "hf download gpt2 --local-dir FOLDER",
    "data=text model=hub model.folder=Qwen/Qwen2.5-0.5B": "hf download Qwen/Qwen2.5-0.5B --local-dir FOLDER",
    "objective=distill": "give objective.teacher=VALUE, a run folder",
    "objective=distill objective.teacher=Qwen/Qwen2.5-0.5B": "hf download Qwen/Qwen2.5-0.5B",
    "data=text tokenizer=gpt2": "hf download NAME --local-dir FOLDER, then tokenizer=folder",
    "experiment=finetune_hub": "give model.folder=PATH",
    "finetune=true": "finetune=full finetune.base=RUN",
    "objective=kd": "objective=distill objective.teacher=RUN",
    "tracker=comet": "one of your own: docs/trackers.md",
    "trainer=prod": "did you mean: trainer=production ?",
    "data=imdb": "data=hub or data=hub_images with data.dataset=OWNER/NAME",
    "tasks=arc_easy": "python -m research.evaluate RUN --tasks NAME",
    "teacher=x": "objective=distill objective.teacher=RUN",
    "eval_only=true": "python -m research.evaluate RUN",
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
    "mode=max": "each metric says whether more is better",
    "run_id=abc": "resume=ID",
    "evaluation_strategy=steps": "eval_every=N",
    "save_strategy=epoch": "callbacks.checkpoint.every=N, in steps",
    "early_stop.min_delta=0.1": "without a least gain",
    "drop_path=0.1": "model.dropout=0.1",
    "init_from=scratch": "weights are drawn by seed=N",
    "-d text": "did you mean: data=text ?",
    "data=table model=mlp data.label=y": "did you mean: data.target=y ?",
    "data=labelled_text data.label_column=stars": "did you mean: data.label=stars ?",
    "data=pairs data.output=answer": "did you mean: data.target=answer ?",
    "data=pairs output=here": "did you mean: out=here ?",
    "data=text data.text_column=body": "did you mean: data.field=body ?",
    "data=text tokenizer.vocab_size=1000": "did you mean: tokenizer=bpe data.tokenizer.vocab_size=1000 ?",
    "data=segmentation model=vision data.path=x": "data.images=FOLDER data.masks=FOLDER",
    "data=images model=vision data.img_size=32": "did you mean: data.size=32 ?",
    # values that ours has not, and nothing that trains on other data
    "dataset=wikitext2": "data.dataset=OWNER/NAME",
    "data=imagenet": "data.dataset=OWNER/NAME",
    "data=imagefolder": "did you mean: data=images model=bitvision ?",
    "device=1": "CUDA_VISIBLE_DEVICES=1",
    "optimizer=rmsprop": "did you mean: optim=sgd optim.base._target_=torch.optim.RMSprop ~optim.base.nesterov ?",
    "optimizer=lion": "optim.base._target_=mine.Lion",
    "lr_scheduler=cosine_with_restarts": "a schedule has one cycle: schedule=cosine",
    "criterion=CrossEntropyLoss": "each data set names its loss",
    "data=regression model=mlp loss=mae": "give loss=regression loss.kind=mae",
    "max_time=12h": "did you mean: callbacks.time_limit.seconds=43200 ?",
    "max_time=00:01:30:00": "did you mean: callbacks.time_limit.seconds=5400 ?",
    "clip=0": "did you mean: trainer.clip_norm=null ?",
    "modle=bitnt": "did you mean: model=bitnet ?",
    # several together: each advice with the others taken, and one line each
    "n_layer=4 n_head=6 n_embd=384": "error: n_head=6: did you mean: model.heads=6 ?",
    "n_head=3 n_embd=128": "model.heads=3 is refused too: model.heads=3 does not fit model.dim=128",
    "stesp=1 sede=1 lrr=1 bacth_size=1 evalevery=1 modle=mlp dta=text": "and 2 other mistakes",
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
    "-m precision=16,32": "did you mean: precision=fp16,fp32 ?",
    "-m steps=1e3,2k": "did you mean: steps=1000,2000 ?",
    "-m optim=adamw,grokfast optim.lamb=1,2 optim.alpha=0.8,0.9": """did you mean: optim.lamb=1,2 optim.alpha=0.8,0.9 """
    """hydra.sweeper.when="{optim.lamb: 'optim == \\"grokfast\\"', optim.alpha: 'optim == \\"grokfast\\"'}" or """
    """optim=grokfast optim.lamb=1,2 optim.alpha=0.8,0.9 ?""",
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
    ("files", "answer"),
    [
        (["a.csv"], "did you mean: data=table data.path=there model=bitmlp or data=regression data.path=there model=bitmlp ?"),
        (["a.txt"], "did you mean: data=text data.path=there ?"),
        (["cats/1.png", "dogs/1.JPG"], "did you mean: data=images data.path=there model=bitvision ?"),
        (["1.png", "2.png"], "images need a folder for each class"),
        (["good/a.txt", "bad/b.txt"], "did you mean: data=labelled_text data.path=there or data=text data.path=there ?"),
        (
            ["images/1.png", "masks/1.png"],
            "did you mean: data=segmentation data.images=there/images data.masks=there/masks model=bitvision ?",
        ),
    ],
)
@pytest.mark.parametrize("key", ["data", "dataset"])
def test_a_path_in_place_of_a_data_set_is_answered_with_those_that_read_it(
    key: str, files: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files:
        (tmp_path / "there" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / file).touch()
    monkeypatch.chdir(tmp_path)
    (mistake,) = find_mistakes([f"{key}=there"], False)
    assert (answer if key == "data" else answer.split(" or ")[0].removesuffix(" ?")) in mistake


def test_a_path_of_data_with_spaces_is_one_word(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    assert "there is no file or folder" in "".join(find_mistakes([f"data={folder}"], False))
    folder.mkdir()
    (mistake,) = find_mistakes([f"data={folder}"], False)
    words = shlex.split(mistake.partition("did you mean: ")[2].removesuffix(" ?"))
    assert words == ["data=text", f"data.path='{folder}'"]
    assert find_mistakes(words, False) == []


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
