"""Two trained runs that differ by their seed, and the command in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import ROOT, train

from research.evaluate.__main__ import main

SIZES = ["model=bitnet", "model.dim=64", "model.ffn_dim=128", "model.heads=2", "data.seq_len=32", "data.val_bytes=4096"]
SHORT = ["trainer=debug", "trainer.steps=8", "trainer.eval_every=8", "trainer.ema=0.9", "tracker=jsonl", "precision=fp32"]


@pytest.fixture(scope="package")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep of two runs on 60 documents: two blocks, eight steps, averaged weights, a test split."""
    root = tmp_path_factory.mktemp("trained")
    (texts := root / "texts").mkdir()
    sources = sorted((ROOT / "research").rglob("*.py"), key=lambda path: path.stat().st_size)[-60:]
    for number, file in enumerate(sources):
        (texts / f"{number}.txt").write_text(file.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    fractions = ["data.val_fraction=0.3", "data.test_fraction=0.2"]
    (folder := root / "sweep").mkdir()
    (folder / "study.journal").touch()
    (folder / "plots").mkdir()
    for seed in (0, 1):  # as trials of a sweep lie, in two thirds of its time
        train(root, "data=text", f"data.path={texts}", *SIZES, *SHORT, *fractions, "trainer.device=cpu", f"seed={seed}")
        (run,) = (root / "out" / "text").iterdir()
        run.rename(folder / str(seed))
    return folder


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return the command as a function: exit code, stdout, stderr."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(str(ended.code))
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def judge(evaluate: Callable[..., tuple[int, str, str]]) -> Callable[..., list[dict[str, Any]]]:
    """Return the command with --json as a function that returns its runs."""

    def run_command(*arguments: object) -> list[dict[str, Any]]:
        code, out, err = evaluate(*arguments, "--json")
        assert code == 0, err
        content = json.loads(out)
        assert content["version"] == 1
        runs: list[dict[str, Any]] = content["runs"]
        return runs

    return run_command
