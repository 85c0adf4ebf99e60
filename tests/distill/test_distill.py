"""Runs that learn from a teacher, as users start them: what they compute, keep, refuse and go on with."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from program import ROOT, read_metrics, run_ranks, train

from research.data.modular import modular
from research.data.spec import Images
from research.distill.objective import Distill
from research.distill.store import Store, describe_answers
from research.load import load_run
from research.losses import IGNORE, last_token, next_token, per_pixel
from research.models.transformer import Transformer
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.training.state import State
from research.training.trainer import Supervised, Trainer

SMALL = ("model.dim=16", "model.heads=2", "data.p=11", "batch_size=8", "tracker=jsonl", "target=null", "trainer.device=cpu")
STEPS = ("steps=6", "eval_every=3", "trainer.log_every=1", "callbacks.checkpoint.every=4")
DATA = modular(p=11)
FULL = torch.nn.Linear


def make_state(objective: Any, steps: int = 3, depth: int = 2, dim: int = 16, **settings: Any) -> State:
    """A student before its first step."""
    torch.manual_seed(0)
    model = Transformer(DATA.shape, dim, depth, 2, FULL, sub_norm=True, dropout=0.1)
    optimizer = from_base(model, partial(torch.optim.AdamW, fused=True), lr=1e-2, weight_decay=0.1)
    trainer = Trainer(steps=steps, batch_size=8, eval_every=steps, log_every=1, device="cpu", **settings)
    return trainer.setup(model, optimizer, constant, last_token, DATA, objective=objective)


def fit(objective: Any, **settings: Any) -> State:
    state = make_state(objective, **settings)
    Trainer(steps=state.info.steps, batch_size=8, eval_every=state.info.steps, log_every=1, device="cpu").fit(state)
    return state


def get_weights(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.model.state_dict().items()}


def test_without_weight_it_is_the_loss_to_the_bit(teachers: Path) -> None:
    alone, taught = fit(None), fit(Distill(last_token, str(teachers / "full"), weight=0.0))
    for name, weights in get_weights(alone).items():
        assert torch.equal(weights, taught.model.state_dict()[name]), name
    assert "train/teacher_kl" not in taught.progress.metrics


@pytest.mark.parametrize("teacher", ["full", "ternary"])
def test_the_loss_is_the_mix_of_both_terms(teachers: Path, teacher: str) -> None:
    """Against a plain computation; evaluations report the plain loss; the teacher learns nothing and is in no checkpoint."""
    state = make_state(Distill(last_token, str(teachers / teacher), weight=0.25, temperature=2.0))
    assert isinstance(state.objective, Distill)
    x, y = DATA.train[torch.arange(5)]
    state.model.eval()
    losses = state.objective(state.model, x, y)
    student, aim = state.model(x)[:, -1], load_run(str(teachers / teacher)).model(x)[:, -1]
    p, q = (aim.double() / 2).softmax(-1), (student.double() / 2).softmax(-1)
    term = 4 * (p * (p / q).log()).sum(-1)
    expected = 0.75 * torch.nn.functional.cross_entropy(student, y, reduction="none") + 0.25 * term
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-5)
    state.objective.count_step()
    assert state.objective.collect_metrics()["train/teacher_kl"] == pytest.approx(float(term.detach().mean()), rel=1e-4)
    net = state.objective.net
    assert net is not None
    assert not any(p.requires_grad for p in net.parameters())
    known = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert not known & {id(p) for p in net.parameters()}
    assert not net.training
    assert {*state.stateful} == {"scaler", "objective"}
    torch.testing.assert_close(state.loss(state.model(x), y), Supervised(last_token)(state.model, x, y))


def test_a_target_to_ignore_has_no_term(teachers: Path) -> None:
    state = make_state(Distill(next_token, str(teachers / "full"), weight=1.0, hidden=1.0))
    x = DATA.train[torch.arange(3)][0]
    y = torch.full_like(x, IGNORE)
    y[:, -1] = 1
    losses = state.objective(state.model, x, y)
    assert (losses[:, :-1] == 0).all()
    assert (losses[:, -1] > 0).all()


def test_a_mean_is_refused_before_it_spreads(teachers: Path) -> None:
    state = make_state(Distill(lambda logits, y: last_token(logits, y).mean(), str(teachers / "full")))
    with pytest.raises(ValueError, match="a loss gives one number a target"):
        state.objective(state.model, *DATA.train[torch.arange(3)])


def test_pixels_have_a_term_each() -> None:
    objective = object.__new__(Distill)
    objective.shape, objective.num_classes = Images(1, 2, 3, 4, per_pixel=True), 4
    logits, y = torch.randn(5, 4, 2, 3), torch.zeros(5, 2, 3, dtype=torch.int64)
    assert torch.equal(objective.align(logits, y), logits.permute(0, 2, 3, 1))
    assert per_pixel(logits, y).shape == y.shape


def test_hidden_outputs_are_compared_by_direction(teachers: Path) -> None:
    """A student with the teacher's weights is 0 apart, any other is not; no hook stays on it."""
    objective = Distill(last_token, str(teachers / "full"), weight=0.0, hidden=2.0)
    state = make_state(objective)
    x, y = DATA.train[torch.arange(4)]
    state.model.eval()
    plain = Supervised(last_token)(state.model, x, y)
    assert (objective(state.model, x, y) > plain).all()
    state.model.load_state_dict(load_run(str(teachers / "full")).model.state_dict())
    plain = Supervised(last_token)(state.model, x, y)
    torch.testing.assert_close(objective(state.model, x, y), plain, rtol=1e-4, atol=1e-4)
    objective.count_step()
    assert [*objective.collect_metrics()] == ["train/teacher_hidden"]
    assert not any(module._forward_hooks for module in state.model.modules())


def test_blocks_are_spread_evenly(teachers: Path) -> None:
    state = make_state(Distill(last_token, str(teachers / "full"), hidden=1.0), depth=1)
    assert isinstance(state.objective, Distill)
    assert state.objective.net is not None
    assert state.objective.teacher_blocks == [state.objective.net.get_submodule("blocks.1")]
    state = make_state(Distill(last_token, str(teachers / "full"), hidden=1.0, layers=[0]), depth=1)
    assert isinstance(state.objective, Distill)
    assert state.objective.net is not None
    assert state.objective.teacher_blocks == [state.objective.net.get_submodule("blocks.0")]


@pytest.mark.parametrize(("settings", "words"), [
    ({"hidden": 1.0, "layers": [0]}, ("objective.layers=[0]", "the student has 2 blocks")),
    ({"hidden": 1.0, "layers": [0, 2]}, ("objective.layers=[0, 2]", "the teacher 2")),
])  # fmt: skip
def test_layers_that_fit_no_blocks_are_refused(teachers: Path, settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"objective\.layers") as caught:
        make_state(Distill(last_token, str(teachers / "full"), **settings))
    assert all(word in str(caught.value) for word in words)


def test_another_width_is_refused(teachers: Path) -> None:
    with pytest.raises(
        ValueError, match=r"objective.hidden: a block of the student gives \(4, 32\), that of the teacher \(4, 16\)"
    ):
        make_state(Distill(last_token, str(teachers / "full"), hidden=1.0), dim=32)
    make_state(Distill(last_token, str(teachers / "full")), dim=32)  # which logits do not mind


def save_llama(folder: Path, **sizes: int) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    own = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 3, "max_position_embeddings": 8} | sizes
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(intermediate_size=32, num_attention_heads=2, **own)).save_pretrained(folder)
    return str(folder)


def test_a_pretrained_folder_teaches(tmp_path: Path) -> None:
    """Tokens that the data have not are left out of its distribution; another folder has another digest."""
    objective = Distill(last_token, save_llama(tmp_path / "hub"), weight=1.0, hidden=1.0)
    state = make_state(objective)
    state.model.eval()
    assert objective.net is not None
    x, y = DATA.train[torch.arange(4)]
    losses, aim = objective(state.model, x, y), objective.net(x)[:, -1, :13].double()
    assert objective.net(x).shape[-1] == 16
    objective.count_step()
    apart = objective.collect_metrics()
    term = (aim.softmax(-1) * (aim.log_softmax(-1) - state.model(x)[:, -1].double().log_softmax(-1))).sum(-1)
    assert apart["train/teacher_kl"] == pytest.approx(float(term.detach().mean()), rel=1e-4)
    assert float(losses.detach().mean()) == pytest.approx(apart["train/teacher_kl"] + apart["train/teacher_hidden"], rel=1e-4)
    assert [*map(objective.net.get_submodule, ("net.model.layers.0", "net.model.layers.2"))] == objective.teacher_blocks
    assert objective.digest != Distill(last_token, save_llama(tmp_path / "other", num_hidden_layers=2)).digest
    for sizes, words in (({"vocab_size": 12}, "it has vocab_size=12"), ({"max_position_embeddings": 3}, "it has seq_len=3")):
        with pytest.raises(ValueError, match=words):
            make_state(Distill(last_token, save_llama(tmp_path / words[-1], **sizes)))


def test_a_store_is_what_the_teacher_says(teachers: Path, tmp_path: Path) -> None:
    """Filled and read to the same bits, and float16's rounding off what is computed. It needs no teacher once all is there."""
    settings: dict[str, Any] = {"weight": 1.0, "top_k": 4, "kind": "symmetric", "temperature": 2.0}
    live, kept = (
        make_state(Distill(last_token, str(teachers / "full"), **settings, store=store))
        for store in (None, str(tmp_path / "s"))
    )
    x, y = DATA.train[torch.tensor([3, 1, 4, 1])]  # one of them twice
    for state in (live, kept):
        state.model.eval()
    first, computed = kept.objective(kept.model, x, y), live.objective(live.model, x, y)
    torch.testing.assert_close(first, computed, rtol=1e-2, atol=1e-3)
    read = make_state(Distill(last_token, str(teachers / "full"), **settings, store=str(tmp_path / "s"), stored=True))
    read.model.eval()
    assert isinstance(read.objective, Distill)
    assert read.objective.net is None
    order = torch.tensor([2, 0, 1])
    assert torch.equal(read.objective(read.model, x[order], y[order]), first[order])
    with pytest.raises(
        ValueError, match=r"lacks a sample of this run in float32, and objective\.stored=true\ngive objective\.stored=false"
    ):
        read.objective(read.model, *DATA.train[torch.tensor([7])])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="lacks a sample of this run in bfloat16"):
        read.objective(read.model, x, y)
    with torch.autocast("cpu", torch.bfloat16):  # what the teacher computes in another precision is another answer
        kept.objective(kept.model, x, y)
        rounded = read_store(read, tmp_path / "s").objective(read.model, x, y)
    assert not torch.equal(rounded.float(), first)
    assert torch.equal(read_store(read, tmp_path / "s").objective(read.model, x, y), first)


def read_store(state: State, folder: Path) -> State:
    """Let a run read a store again; return the run."""
    assert isinstance(state.objective, Distill)
    state.objective.answers = Store(folder, describe_answers(state.objective.digest, DATA, 4), is_complete=True)
    return state


def test_a_damaged_sample_is_computed_again(teachers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped bit is noticed, what a kill cut off is left out, and a store goes on."""
    settings: dict[str, Any] = {"weight": 1.0, "top_k": 4, "store": str(tmp_path / "s")}
    state, (x, y) = make_state(Distill(last_token, str(teachers / "full"), **settings)), DATA.train[torch.arange(6)]
    state.model.eval()
    whole = state.objective(state.model, x, y)
    (file,) = (tmp_path / "s").glob("rows-*.bin")
    content = bytearray(file.read_bytes())
    content[30] ^= 1
    file.write_bytes(content[:-5])
    again = make_state(Distill(last_token, str(teachers / "full"), **settings))
    again.model.eval()
    assert torch.equal(again.objective(again.model, x, y), whole)
    assert "damaged and left out" in caplog.text
    assert len([*(tmp_path / "s").glob("rows-*.bin")]) == 2


def test_a_store_of_something_else_is_refused(teachers: Path, tmp_path: Path) -> None:
    facts = describe_answers("a" * 64, DATA, 4)
    Store(tmp_path / "s", facts, is_complete=False)
    for change in ({"teacher": "b" * 64}, {"data": "c"}, {"top_k": 2}, {"version": 1}):
        with pytest.raises(ValueError, match=f"its {next(iter(change))} is "):
            Store(tmp_path / "s", facts | change, is_complete=False)
    for name, content in (("store.json", "{"), ("notes.txt", "mine")):
        (tmp_path / name.partition(".")[0]).mkdir()
        (tmp_path / name.partition(".")[0] / name).write_text(content)
        with pytest.raises(ValueError, match=r"it has no store\.json that can be read\ngive an empty folder"):
            Store(tmp_path / name.partition(".")[0], facts, is_complete=False)


def read_config(run: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run / "config.yaml").read_text()))


def test_a_run_goes_on_to_the_bit_with_its_teacher_elsewhere(teachers: Path) -> None:
    """Stopped at a checkpoint and resumed; the same teacher at another path, and not another one, nor none."""
    taught = [*SMALL, *STEPS, "model=bitnet", "model.dropout=0.1", "objective=distill"]
    teacher = f"objective.teacher={teachers / 'full'}"
    train(teachers, *taught, teacher, f"hydra.run.dir={teachers / 'whole'}", "name=a")
    train(teachers, *taught, teacher, f"hydra.run.dir={teachers / 'part'}", "name=a", "trainer.steps=4", "schedule=constant")
    shutil.copytree(teachers / "full", teachers / "moved")
    digest = read_config(teachers / "part")["objective"]["digest"]
    manifest = next((teachers / "full" / "checkpoints").glob("*/manifest.json"))
    assert digest == json.loads(manifest.read_text())["files"]["model.safetensors"]["sha256"]
    again = [*taught, "name=a", f"resume={teachers / 'part'}"]
    for other, words in (("objective.teacher=" + str(teachers / "ternary"), "ternary"), ("~objective", "none here")):
        words_typed = [word for word in again if other != "~objective" or word != "objective=distill"]
        done = train(teachers, *words_typed, *([other] if other != "~objective" else []), fails=True)
        assert done.returncode == 2
        assert "the teacher is " in done.stderr
        assert words in done.stderr
    train(teachers, *again, f"objective.teacher={teachers / 'moved'}")
    lines = [
        [{k: v for k, v in line.items() if "val" not in k} for line in read_metrics(teachers / name)]
        for name in ("part", "whole")
    ]
    assert lines[0] == lines[1]
    assert all(line["train/teacher_kl"] > 0 for line in lines[0])
    weights = [json.loads((teachers / name / "summary.json").read_text())["weights_sha256"] for name in ("whole", "part")]
    assert weights[0] == weights[1]


def test_a_dense_checkpoint_is_trained_on_with_ternary_weights(teachers: Path) -> None:
    """The tensors of both have the same names, so its weights fit: quantization-aware training, in one line."""
    words = [*SMALL, *STEPS, "model=bitnet", "model.linear.warmup=2", "lr=1e-12", "optim.weight_decay=0"]
    run = teachers / "qat"
    train(teachers, *words, f"resume={teachers / 'full'}", "resume.weights_only=true", f"hydra.run.dir={run}")
    dense, ternary = (load_run(str(path)).model.state_dict() for path in (teachers / "full", run))
    assert {*dense} == {*ternary}
    assert all(torch.allclose(dense[name], ternary[name]) for name in dense)


def test_a_step_that_is_computed_again_counts_once(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After memory ran out behind the first micro-batch, and where the guard looks at a step once more."""
    plain = fit(Distill(last_token, str(teachers / "full")), steps=1).progress.metrics
    state = make_state(Distill(last_token, str(teachers / "full")), steps=1)
    trainer = Trainer(steps=1, batch_size=8, eval_every=1, log_every=1, device="cpu")
    objective, calls = state.objective, list[int]()

    def fail_once(losses: torch.Tensor, y: torch.Tensor) -> None:
        calls.append(len(y))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("research.training.trainer.check_losses", fail_once)
    trainer.fit(state)
    assert calls[:3] == [8, 4, 4]
    # Dropout differs between micro-batches: the sums of a step that counted twice would be those of 16 samples.
    assert state.progress.metrics["train/teacher_kl"] == pytest.approx(plain["train/teacher_kl"], rel=0.2)
    assert isinstance(objective, Distill)
    objective(state.model, *DATA.train[torch.arange(3)])
    objective.drop_step()
    objective.count_step()
    assert objective.collect_metrics() == {}
    objective(state.model, *DATA.train[torch.arange(3)])
    objective.step_sums[0] = torch.nan  # of an update that is left out
    objective.count_step()
    assert objective.collect_metrics() == {}


@pytest.mark.slow
def test_two_processes_go_on_within_a_log_point(teachers: Path, tmp_path: Path) -> None:
    """A checkpoint holds the sums of all processes, not of the first alone."""
    words = [*SMALL, "eval_every=6", "trainer.log_every=3", "callbacks.checkpoint.every=4", "steps=6", "trainer=ddp"]
    words += ["model=bitnet", "objective=distill", f"objective.teacher={teachers / 'full'}"]
    (run := tmp_path / "run").mkdir()
    whole = list[dict[str, Any]]()
    for where in (f"hydra.run.dir={run}", f"resume={run}"):
        for done in run_ranks([str(ROOT / "train.py"), *words, where], tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"}):
            assert done.returncode == 0, done.stdout + done.stderr
        whole.append(read_metrics(run)[-1])
        shutil.rmtree(run / "checkpoints" / "step-00000006")  # as if it was killed between a checkpoint and its log point
        (run / "summary.json").unlink()
    assert whole[0]["step"] == whole[1]["step"] == 6
    assert whole[0]["train/teacher_kl"] == whole[1]["train/teacher_kl"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_learn_as_one(teachers: Path, tmp_path: Path, how: str) -> None:
    """Both terms of each step, over the samples of both processes."""
    words = [*SMALL, *STEPS, "model=transformer", "objective=distill", f"objective.teacher={teachers / 'ternary'}"]
    words += ["objective.hidden=1"] if how == "ddp" else []
    train(tmp_path, *words, f"hydra.run.dir={tmp_path / 'one'}")
    argv = [str(ROOT / "train.py"), *words, f"trainer={how}", f"hydra.run.dir={tmp_path / 'two'}"]
    for done in run_ranks(argv, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"}):
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for key in ("train/loss", "train/teacher_kl", *["train/teacher_hidden"] * (how == "ddp")):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-4), key
