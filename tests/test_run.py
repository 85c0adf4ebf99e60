"""The program as a user runs it: real processes, real folders, a real MLflow store read back through its client."""

import json
import re
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from program import ROOT, TINY, make_environment, read_summaries, run, train

from research.preflight.check import find_mistakes
from research.preflight.run_config import build_name


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, tracked."""
    folder = tmp_path_factory.mktemp("store")
    train(folder, *TINY)
    return folder


def test_a_run_leaves_its_folder(store: Path) -> None:
    (folder,) = (store / "out" / "modular").iterdir()
    for name in ("config.yaml", "overrides.txt", "env.json", "train.log", "metrics.jsonl", "summary.json", "plots/curves.png"):
        assert (folder / name).stat().st_size > 0, name
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "FINISHED"
    assert summary["steps"] == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"train/loss", "val/loss", "val/acc", "grad/norm", "lr"} <= lines[-1].keys()
    assert (folder / "overrides.txt").read_text().splitlines()[: len(TINY)] == TINY


def test_epochs_are_passes_over_the_training_data(tmp_path: Path) -> None:
    """50 samples: three passes are 9.4 steps of 16. What is longer goes on, and what is recorded says so."""
    words = ["data.p=11", "batch_size=16", "model.dim=32", "model.heads=2", "trainer.device=cpu", "tracker=none", "target=null"]
    train(tmp_path, *words, "epochs=3")
    train(tmp_path, *words, "epochs=3", "resume=auto")
    train(tmp_path, *words, "steps=null", "epochs=5", "resume=auto")
    train(tmp_path, *words, "epochs=2", "resume=auto")
    longest, shortest = sorted(read_summaries(tmp_path), key=lambda summary: -summary["steps"])
    assert (longest["steps"], shortest["steps"]) == (16, 7)
    first = min((tmp_path / "out" / "modular").glob("*/config.yaml")).read_text()
    assert "epochs: 5\n" in first
    assert "steps: 16\n" in first


@pytest.mark.parametrize("words", [["steps=9"], ["trainer.steps=9"], ["trainer=debug"]])
def test_a_run_is_as_long_as_its_steps_or_its_epochs_say(words: list[str]) -> None:
    (mistake,) = find_mistakes([*words, "epochs=2"], False)
    assert "leave out" in mistake


@pytest.mark.parametrize(
    ("words", "fits"), [("steps=null epochs=2", True), ("steps=null", False), ("trainer.steps=null epochs=2", False)]
)
def test_no_steps_are_given_where_epochs_are(words: str, fits: bool) -> None:
    mistakes = find_mistakes(words.split(), False)
    assert mistakes == [] if fits else "trainer.steps takes a whole number" in mistakes[0]


def test_mlflow_holds_all_of_it(store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("modular")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    (summary,) = read_summaries(store)
    assert run.info.run_id == summary["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.steps"] == "3"
    assert run.data.tags["model"] == "bitnet"
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["data.digest"][:8]
    assert run.data.metrics["best.val_acc"] == pytest.approx(summary["best"]["val/acc"])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/loss")] == [1, 2, 3]
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "summary.json", "plots", "best"} <= names


def test_the_same_command_gives_the_same_bits(tmp_path: Path) -> None:
    for _ in range(2):
        train(tmp_path, *TINY, "tracker=none", "model.dropout=0.1")
    train(tmp_path, *TINY, "tracker=none", "model.dropout=0.1", "seed=1", "name=other")
    digests = [s["weights_sha256"] for s in read_summaries(tmp_path)]
    assert len(digests) == 3
    assert len(set(digests)) == 2


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "bitnet adamw seed=3"),
        ({"model": "bitnet", "seed": "3", "out": "elsewhere", "tracker": "jsonl", "data": "digits"}, "bitnet adamw seed=3"),
        ({"steps": "100", "model.dim": "64", "data": "text"}, "bitnet adamw seed=3 steps=100 model.dim=64 data=text"),
        ({"resume": "RUN", "data.path": f"/{'x' * 99}.txt"}, f"bitnet adamw seed=3 path=/{'x' * 16}…{'x' * 13}.txt #28233eba"),
    ],
)
def test_a_name_says_what_the_command_line_has_set(values: dict[str, str], name: str) -> None:
    cfg = OmegaConf.create({"seed": 3, "name": "digits"})
    assert build_name({"model": "bitnet", "optim": "adamw"}, values, cfg) == name


@pytest.mark.parametrize(
    ("target", "linear", "name"),
    [
        ("hub.Hub", "research.nn.bitlinear.BitLinear", "hub inside adamw seed=3 finetune.rank=2"),
        ("hub.Hub", "torch.nn.Linear", "hub_full inside adamw seed=3 finetune.rank=2"),
        ("transformer.Transformer", "torch.nn.Linear", "transformer inside adamw seed=3 finetune.rank=2"),
        ("transformer.Transformer", "research.nn.bitlinear.BitLinear", "bitnet inside adamw seed=3 finetune.rank=2"),
        ("own.Net", "torch.nn.Linear", "bitnet inside adamw seed=3 finetune.rank=2"),
    ],
)
def test_the_name_of_a_fine_tuned_run_has_the_model_of_its_base(target: str, linear: str, name: str) -> None:
    nodes = {"model": {"_target_": f"research.models.{target}", "linear": {"_target_": linear}}}
    cfg = OmegaConf.create({"seed": 3, "name": "digits", "finetune": {"_target_": "research.finetune.inside.inside"}, **nodes})
    assert build_name({"model": "bitnet", "optim": "adamw"}, {"finetune": "inside", "finetune.rank": "2"}, cfg) == name


def test_a_long_name_keeps_what_tells_runs_apart() -> None:
    """Each setting stays, however long the others are; a digest differs where what is left out does."""
    cfg = OmegaConf.create({"seed": 3, "name": "digits"})
    common = {
        "data": "text",
        "data.path": f"/home/me/{'corpora/' * 20}a.txt",
        "loss.label_smoothing": "0.1",
        "model.depth": "12",
    }
    changes = [
        {},
        {"tokenizer": "bpe"},
        {"steps": "800"},
        {"steps": "900"},
        {"data.path": common["data.path"].replace("e/c", "e/d")},
    ]
    names = [build_name({"model": "bitnet", "optim": "adamw"}, common | change, cfg) for change in changes]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 100
    assert ["steps=800" in name for name in names] == [False, False, True, False, False]
    assert "tokenizer=bpe" in names[1]
    many = build_name({"model": "bitnet", "optim": "adamw"}, {f"model.k{index}": "1" for index in range(60)}, cfg)
    assert re.search(r"seed=3 k0=1 .* \.\.\. #[0-9a-f]{8}$", many)


def test_the_users_line_sweeps(tmp_path: Path) -> None:
    train(tmp_path, "model=bitnet", "optim=grokfast", *TINY, "-m", "lr=1e-3,3e-4")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("modular")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {r.info.run_name for r in children} == {"lr=0.001", "lr=0.0003"}
    assert {r.data.tags["sweep.lr"] for r in children} == {"0.001", "0.0003"}
    assert {r.info.status for r in runs} == {"FINISHED"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no text: 1 empty"),
        (b"caf\xe9\n" * 999, "1 not UTF-8"),
        (b"short", "data.seq_len=256 is too long"),
    ],
)
def test_a_text_that_cannot_be_used_leaves_no_run_behind(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "text.py").write_bytes(content)
    done = train(tmp_path, "data=text", "data.path=text.py", "trainer=debug", "tracker=none", fails=True)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_loss_that_is_not_finite_fails_the_run(tmp_path: Path) -> None:
    check_failure(tmp_path, [*TINY, "tracker=none", "optim=sgd", "lr=1e30", "trainer.clip_norm=null"], "lower lr")


def check_failure(tmp_path: Path, arguments: list[str], words: str) -> None:
    """A few lines, no traceback; the folder tells the same and keeps the traceback."""
    done = train(tmp_path, *arguments, fails=True)
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    (summary,) = read_summaries(tmp_path)
    assert summary["status"] == "FAILED"
    assert words in summary["error"]
    (folder,) = (path.parent for path in (tmp_path / "out").rglob("summary.json"))
    assert "Traceback" in (folder / "train.log").read_text()
    assert (folder / "config.yaml").exists()


@pytest.mark.parametrize("option", ["data=digits model=mlp optim=muon", "trainer.precision=bf16 trainer.grad_accum=4"])
def test_other_choices_train(tmp_path: Path, option: str) -> None:
    tiny = [t for t in TINY if "digits" not in option or t.split(".")[0] not in ("model", "data")]
    train(tmp_path, *option.split(), *tiny, "tracker=jsonl")
    (summary,) = read_summaries(tmp_path)
    assert summary["status"] == "FINISHED"


@pytest.mark.slow  # the compiler itself
def test_a_compiled_model_computes_the_same(tmp_path: Path) -> None:
    """In processes of their own: the compiler cannot look through the tests' type checks."""
    losses = []
    for compiled in ("true", "false"):
        tiny = [*TINY, "tracker=jsonl", "model=transformer", "model.depth=1", f"trainer.compile={compiled}"]
        train(tmp_path, *tiny, f"name=compiled_{compiled}")
        (file,) = (tmp_path / "out" / f"compiled_{compiled}").rglob("metrics.jsonl")
        losses.append([json.loads(line)["train/loss"] for line in file.read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


FLUSHED = """
import runpy, sys
import torch
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("flushed", (torch.full((64,), 1e-39) * 0.5).sum().item())
"""


def test_numbers_too_small_for_speed_are_zero(tmp_path: Path) -> None:
    """Denormal ones take a processor ten times as long; where it has a way to treat them as zero, a run does."""
    (script := tmp_path / "script.py").write_text(FLUSHED)
    argv = [str(script), str(ROOT / "train.py"), *TINY, "tracker=none", f"out={tmp_path / 'out'}"]
    said = run(argv, tmp_path, make_environment(tmp_path)).stdout
    able = torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    assert ("flushed 0.0" in said) == able
