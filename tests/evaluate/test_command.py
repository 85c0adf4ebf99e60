"""The command: what training computed, other data, several runs, packed and exported forms."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ROOT, TINY, make_environment, train

from research.data.tokenizers import BPE
from research.evaluate.compare import build_task_data
from research.evaluate.plan import plan_tasks
from research.evaluate.refs import find_models
from research.export.__main__ import main as export
from research.load import load_run
from research.preflight.evaluation import FOLDER

Evaluate = Callable[..., tuple[int, str, str]]
Judge = Callable[..., list[dict[str, Any]]]
TEXT = f"data.path={ROOT / 'README.md'}"


def read_values(run: dict[str, Any]) -> dict[str, float]:
    return {name: entry["value"] for name, entry in run["metrics"].items()}


def read_last(folder: Path) -> dict[str, float]:
    """Return what training's last evaluation gave, test/ of its end included."""
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith(("val/", "test/"))}


def test_a_run_has_the_bits_of_its_own_training(sweep: Path, judge: Judge) -> None:
    expected = read_last(sweep / "1")
    for split in ("val", "test"):
        (run,) = judge(sweep / "1", "--split", split)
        assert read_values(run) == {name: value for name, value in expected.items() if name.startswith(split)}
        assert (run["form"], run["checkpoint"], run["step"], run["seed"]) == ("run", "step-00000008", 8, 1)
        assert run["data"]["part"] == "document"
        assert all(entry["low"] < entry["value"] < entry["high"] for entry in run["metrics"].values())


def test_a_checkpoint_and_a_sweep_are_named_by_their_folders(sweep: Path, judge: Judge, evaluate: Evaluate) -> None:
    (checkpoint,) = (sweep / "0" / "checkpoints").glob("step-*")
    alone = judge(checkpoint)
    runs = judge(sweep)
    assert [run["run"] for run in runs] == ["0", "1"]
    assert read_values(alone[0]) == read_values(runs[0])
    code, out, err = evaluate(*sorted(sweep.iterdir()))  # as a shell matches sweep/*
    assert (code, out.splitlines()[2].split()[:2]) == (0, ["metric", "run"])
    assert "no runs, and left out" in err
    assert out.startswith("val: ")


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        (["data=regression", "model=mlp"], []),
        pytest.param(
            ["data=labelled_text", "model=bitnet", "model.heads=2", "data.seq_len=16", "tokenizer=bytes"],
            ["precision=bf16"],
            marks=pytest.mark.slow,
        ),
        (["data=pairs", "model=bitnet", "model.heads=2", "data.num_dates=60"], ["precision=fp32", "trainer.grad_accum=2"]),
        (["data=modular", "model=decoder", "model.heads=2", "data.p=11"], ["trainer.overfit=20"]),
    ],
    ids=lambda words: " ".join(words[:1]),
)
def test_each_kind_of_data_has_the_bits_of_training(
    settings: list[str], overrides: list[str], tmp_path: Path, judge: Judge
) -> None:
    own = ["model.dim=16", "trainer.steps=2", "trainer.eval_every=2", "tracker=jsonl", "trainer.device=cpu", *overrides]
    train(tmp_path, *settings, *own)
    (folder,) = (tmp_path / "out").glob("*/2*")
    (run,) = judge(folder)
    assert read_values(run) == read_last(folder)
    directed = [name for name in run["metrics"] if name not in ("val/confidence", "val/calibration_null")]
    assert all(run["metrics"][name]["stderr"] is not None for name in directed)


def test_differences_are_paired_and_narrower(sweep: Path, judge: Judge) -> None:
    first, other = judge(sweep / "0", sweep / "1")
    assert first["differences"] == {}
    for name, entry in other["differences"].items():
        assert entry["value"] == other["metrics"][name]["value"] - first["metrics"][name]["value"]
        assert entry["paired"]
    loss = other["differences"]["val/loss"]
    assert loss["stderr"] < 0.8 * other["metrics"]["val/loss"]["stderr"]
    same = judge(sweep / "0", sweep / "0")[1]
    assert {entry["value"] for entry in same["differences"].values()} == {0.0}
    assert {entry["stderr"] for entry in same["differences"].values()} == {0.0}


def test_training_samples_are_no_pair_of_validation_samples(sweep: Path) -> None:
    """Of trainer.overfit=N the first N training samples are judged, as in training."""
    (task,) = plan_tasks(find_models([str(sweep / "0")]), [], None, [])
    plain, again, overfit = (build_task_data(task, "val", count, 4) for count in (0, 0, 16))
    assert len(plain.split) == len(overfit.split)
    assert plain.key == again.key != overfit.key


def test_bits_per_byte_are_compared_on_the_same_text_alone(sweep: Path, judge: Judge) -> None:
    """However it is cut into tokens; but the first N samples of other lengths are other texts, as is another split."""
    (task,) = plan_tasks(find_models([str(sweep / "0")]), [], None, [])
    cut = task._replace(data=task.data | {"seq_len": 16})
    whole, other = build_task_data(task, "val", 0, None), build_task_data(cut, "val", 0, None)
    assert whole.key != other.key
    assert whole.is_same_text(other)
    different = [(cut, "val", 0, 4), (cut, "val", 8, None), (cut, "test", 0, None)]
    different.append((cut._replace(data=cut.data | {"val_bytes": 2048}), "val", 0, None))
    assert not any(whole.is_same_text(build_task_data(*arguments)) for arguments in different)


def test_an_export_of_one_of_two_runs_of_a_name_is_refused(sweep: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    """Trials are called 0, 1, ...: by its name an export could be judged on the data of another sweep."""
    shutil.copytree(sweep / "0", tmp_path / "0")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text(json.dumps({"format": "hf", "run": "0", "model": {}}), encoding="utf-8")
    code, _, err = evaluate(sweep / "0", tmp_path / "0", tmp_path / "export")
    assert code == 2
    assert "2 of the runs are called 0, its name; judge it beside its own run alone" in err


def test_other_text_is_read_whole_with_the_tokens_of_the_run(sweep: Path, judge: Judge) -> None:
    (run,) = judge(sweep / "0", "data=text", TEXT, "metrics=language")
    size = len((ROOT / "README.md").read_bytes())
    assert size - 2 * 32 < run["data"]["bytes"] <= size  # two parts, each but for its last window
    assert (run["data"]["split"], run["data"]["own"]) == ("all", False)
    model, text = load_run(str(sweep / "0")).model, (ROOT / "README.md").read_bytes()
    windows = torch.tensor(list(text)).unfold(0, 33, 32)
    losses = torch.nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    assert read_values(run)["all/loss"] == pytest.approx(losses.item(), rel=2e-3)  # its windows begin elsewhere
    assert read_values(run)["all/perplexity"] == pytest.approx(2.718281828459045 ** read_values(run)["all/loss"], rel=1e-5)
    (val,) = judge(sweep / "0", TEXT, "--split", "val", "--samples", "5")  # without data= all else is the run's
    assert val["data"]["samples"] == 5


def test_packed_is_what_was_trained_within_the_bound_of_exports(sweep: Path, judge: Judge) -> None:
    plain, packed = judge(sweep / "0"), judge(sweep / "0", "--packed")
    assert packed[0]["form"] == "packed"
    difference = read_values(packed[0])["val/loss"] - read_values(plain[0])["val/loss"]
    assert 0 < abs(difference) < 5e-3  # docs/exports.md: embeddings in int8


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("onnx", "torch")]  # tracing takes half a minute


@pytest.mark.parametrize("kind", ["hf", "safetensors", *SLOW])
def test_an_export_is_judged_by_its_client(kind: str, sweep: Path, tmp_path: Path, judge: Judge, evaluate: Evaluate) -> None:
    assert export([str(sweep / "0"), "--format", kind, "--output", str(tmp_path / kind), "--tokens", "512"]) == 0
    evaluate("--help")  # takes what the export has printed
    run, exported = judge(sweep / "0", tmp_path / kind, "--samples", "16")
    assert exported["form"] == f"export {kind}"
    assert exported["differences"]["val/loss"]["paired"]
    assert abs(exported["differences"]["val/loss"]["value"]) < 1e-3
    assert read_values(exported)["val/acc"] == pytest.approx(read_values(run)["val/acc"], abs=0.01)
    (alone,) = judge(tmp_path / kind, "data=text", TEXT, "--samples", "8")  # it brings its own tokens
    assert read_values(alone) == pytest.approx(
        read_values(judge(sweep / "0", "data=text", TEXT, "--samples", "8")[0]), rel=1e-2
    )
    file = next(path for path in (tmp_path / kind).iterdir() if path.name.startswith("model."))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    code, _, err = evaluate(sweep / "0", tmp_path / kind)
    assert (code, "is not what was exported and checked" in err) == (2, True)
    code, _, err = evaluate(tmp_path / kind)
    assert (code, "name the run that it is of before it" in err) == (2, True)
    assert json.loads((tmp_path / kind / "export.json").read_text())["data"]


def test_a_folder_of_transformers_has_its_own_tokenizer(sweep: Path, tmp_path: Path, judge: Judge, evaluate: Evaluate) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    bpe = BPE(300)
    bpe.train([(ROOT / "README.md").read_bytes()])
    bpe.save(tmp_path / "llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=bpe.vocab_size, max_position_embeddings=64, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    evaluate("--help")
    (alone,) = judge(tmp_path / "llama", "data=text", TEXT)
    assert alone["form"] == "pretrained"
    assert alone["metrics"]["all/loss"]["value"] == pytest.approx(5.7, abs=0.3)  # ln 300: it has learnt nothing
    assert alone["data"]["targets"] < alone["data"]["bytes"]
    run, beside = judge(sweep / "0", tmp_path / "llama")  # on the run's documents, in its own tokens
    assert list(beside["differences"]) == ["val/bpb"]
    assert not beside["differences"]["val/bpb"]["paired"]
    assert beside["differences"]["val/bpb"]["stderr"] > run["metrics"]["val/bpb"]["stderr"]


@pytest.mark.parametrize(("token", "kept"), [("<eod>", True), ("<other>", False)])
@pytest.mark.parametrize("overrides", [[], ["data=text", TEXT]])
def test_the_end_of_the_run_stands_between_documents_for_others_too(
    overrides: list[str], token: str, kept: bool, sweep: Path, tmp_path: Path
) -> None:
    """Where their tokenizer has that token: else their data would be others, and nothing be paired."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": token}]}), encoding="utf-8")
    run, other = find_models([str(sweep / "0"), str(tmp_path)])
    run.recorded["data"]["tokenizer"] = {"_target_": FOLDER, "path": str(tmp_path), "end": "<eod>"}
    node = plan_tasks([run, other], overrides, None, [])[1].data["tokenizer"]
    assert node == {"_target_": FOLDER, "path": str(tmp_path)} | ({"end": "<eod>"} if kept else {})


def test_the_result_is_written_where_it_is_requested(sweep: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    code, out, err = evaluate(sweep / "0", "--samples", "4", "--output", tmp_path / "a.json")
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["runs"][0]["data"]["samples"] == 4
    assert out.startswith("val: 4 samples")


def test_data_that_have_changed_are_told(sweep: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    shutil.copytree(sweep / "0", tmp_path / "run")
    texts = next(path for path in sweep.parents if (path / "texts").is_dir()) / "texts"
    (more := texts / "more.txt").write_text("changed\n" * 100)
    try:
        code, _, err = evaluate(tmp_path / "run", "--samples", "4")
    finally:
        more.unlink()
    assert (code, "its data have changed since" in err) == (0, True)


def test_an_mlflow_run_gets_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge) -> None:
    train(tmp_path, *TINY, "trainer.steps=1", "trainer.eval_every=1")
    (folder,) = (tmp_path / "out").glob("*/2*")
    for name, value in make_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    run_id = (folder / "mlflow_run_id").read_text().strip()
    (run,) = judge(run_id, "--output", tmp_path / "result.json")
    assert run["path"] == str(folder)
    assert [path.name for path in tmp_path.rglob("evaluate/*.json")] == ["result.json"]


def test_it_is_one_process(sweep: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, out, err = evaluate(sweep / "0")
    assert (code, out, "start it without torchrun" in err) == (2, "", True)


def test_a_closed_pipe_ends_it_in_silence(sweep: Path) -> None:
    command = f"{sys.executable} -m research.evaluate {sweep / '0'} --samples 4 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('research.evaluate', run_name='__main__')\n"
    code += "except SystemExit: pass\nprint(sorted({'torch', 'hydra', 'mlflow'} & sys.modules.keys()), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stderr.strip(), "--split" in done.stdout) == ("[]", True)
