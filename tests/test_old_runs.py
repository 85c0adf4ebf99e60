"""Run folders that earlier versions wrote: they resume, generate, export and report as they did then."""

import json
import shutil
from pathlib import Path
from typing import Any

import program
import pytest
from safetensors.numpy import load_file

from research.load import load_run
from research.training.checkpoint import hash_weights

OLD = Path(__file__).parent / "fixtures" / "v1"
EXPECTED = json.loads((OLD / "expected.json").read_text())
SAME = ["steps=40", "eval_every=10", "tracker=jsonl", "model.depth=1"]
# What was on the command line then, in today's words.
OVERRIDES = {
    "modular": "model=bitnet optim=grokfast data.p=7 batch_size=8 target=null model.dim=16 model.heads=2 trainer.log_every=5 "
    "trainer.ema=0.9 seed=1",
    "text_run": "model=bitnet data=text data.path=tests/fixtures/v1/text data.pattern=*.txt data.seq_len=32 data.val_bytes=256 "
    "precision=fp32 batch_size=4 model.dim=32 model.heads=2 model.ffn_dim=64",
    "digits": "model=bitmlp data=digits optim=adamw batch_size=16 model.dim=16",
    "decoder": "model=bitdecoder optim=grokfast_ma optim.window=3 callbacks=grokking data.p=7 batch_size=8 model.dim=16 "
    "model.heads=2",
}


def run_module(tmp_path: Path, *arguments: str) -> str:
    done = program.run(["-m", *arguments], program.ROOT, program.make_environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_old_run_is_resumed_by_its_path(tmp_path: Path, name: str) -> None:
    """To the numbers that the code of then reached; not to its bits, which another processor has otherwise."""
    folder = tmp_path / name  # a run that is resumed goes on in its folder
    shutil.copytree(OLD / name, folder)
    argv = [str(program.ROOT / "train.py"), *OVERRIDES[name].split(), *SAME, f"resume={folder}", f"out={tmp_path / 'out'}"]
    done = program.run(argv, program.ROOT, program.make_environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "FINISHED"
    assert summary["steps"] == 40
    for metric, value in EXPECTED[name]["metrics"].items():
        assert summary["metrics"][metric] == pytest.approx(value, rel=1e-3), metric


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_weights_of_an_old_run_are_loaded_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program.ROOT)  # where its data is: data.path was relative
    run = load_run(str(OLD / name))
    summary: dict[str, Any] = json.loads((OLD / name / "summary.json").read_text())
    if name != "modular":  # there the averages are loaded, and the digest is of the weights
        assert hash_weights(run.model) == summary["weights_sha256"]
    assert sum(p.numel() for p in run.model.parameters()) == summary["params"]
    assert len(run.data.train) > 0


def test_an_old_run_generates(tmp_path: Path) -> None:
    words = ["--prompt", "a run of", "--tokens", "32", "--temperature", "0.8", "--seed", "1"]
    text = run_module(tmp_path, "research.generate", str(OLD / "text_run"), *words)
    assert text.startswith("a run of")
    assert len(text) > len("a run of\n")


def test_an_old_run_is_exported_to_the_bytes_of_then(tmp_path: Path) -> None:
    words = ["--format", "safetensors", "--output", str(tmp_path / "export"), "--tokens", "64"]
    run_module(tmp_path, "research.export", str(OLD / "text_run"), *words)
    now, then = (load_file(folder / "model.safetensors") for folder in (tmp_path / "export", OLD / "export"))
    assert now.keys() == then.keys()
    for name, tensor in then.items():
        if name.endswith("scale"):  # a mean: another processor adds in another order
            assert now[name] == pytest.approx(tensor, rel=1e-6)
        else:
            assert now[name].tobytes() == tensor.tobytes(), name


def test_an_old_sweep_is_reported_again(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    shutil.copytree(OLD / "sweep", sweep)
    run_module(tmp_path, "research.report", str(sweep))
    assert (sweep / "trials.csv").read_text() == (OLD / "sweep" / "trials.csv").read_text()
    assert "0.3649" in (sweep / "results.md").read_text()
