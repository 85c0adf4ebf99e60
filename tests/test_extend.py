"""docs/extend.md: its files are written into a folder outside the clone, and each line runs there with those of its section."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from program import ROOT, train
from safetensors.torch import load_file

PAGE = (ROOT / "docs" / "extend.md").read_text()


def read_files(text: str) -> dict[str, str]:
    return dict(re.findall(r"^`(\S+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE))


FILES = read_files(PAGE)
SECTIONS = [
    (re.findall(r"^    python train\.py (.*)", section, re.MULTILINE), read_files(section)) for section in PAGE.split("\n## ")
]
LINES = {line: files for lines, files in SECTIONS for line in lines}  # each with the files of its section
SMALL = ["steps=4", "eval_every=2", "batch_size=16", "trainer.log_every=1", "trainer.device=cpu", "tracker=jsonl"]
KINDS = ("loss", "metrics", "data", "model", "optim", "schedule", "callbacks", "finetune", "objective")


def run(folder: Path, files: dict[str, str], *words: str) -> list[dict[str, Any]]:
    """Run the program in a folder of these files; return the lines of metrics.jsonl."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    train(folder, "--config-dir", "conf", *words, *SMALL)
    metrics = max(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    summary = json.loads((metrics.parent / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("FINISHED", 4)
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def find_option(kind: str) -> str:
    """Return the option that the page adds to a group."""
    (name,) = (Path(name).stem for name in FILES if name.startswith(f"conf/{kind}/"))
    return f"{kind}={name}"


def test_each_kind_has_two_files_and_a_line() -> None:
    for kind in KINDS:
        name = find_option(kind).partition("=")[2]
        assert f"{name}.py" in FILES
        assert not (ROOT / f"{name}.py").exists()
        assert any(find_option(kind) in line for line in LINES), kind


def test_each_line_needs_its_own_files_alone() -> None:
    for line, files in LINES.items():
        for group, option in (word.split("=") for word in line.split() if "." not in word.partition("=")[0]):
            path = f"conf/{group}/{option}.yaml"
            assert path in files or (ROOT / path).exists(), f"{line}: {path}"


def test_all_of_them_run_together(tmp_path: Path) -> None:
    """The data set, which names a loss of its own, stands before the loss."""
    kinds = [kind for kind in KINDS if kind not in ("data", "finetune")]  # a base brings its own model
    lines = run(tmp_path, FILES, *map(find_option, ["data", *kinds]))
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates == pytest.approx([3e-4 * step / 100 for step in (1, 2, 3, 4)], rel=1e-6)
    norms = [line["weights/norm"] for line in lines if "weights/norm" in line]
    assert len(norms) == 2
    assert all(norm > 1 for norm in norms)
    assert all(0 < line["val/margin"] < 10 for line in lines if "val/loss" in line)
    assert all(0 < line["val/loss"] < 0.5 for line in lines if "val/loss" in line), "focal: a quarter of ln 2 at the start"


@pytest.mark.slow
def test_a_kind_of_fine_tuning_keeps_what_learns_alone(tmp_path: Path) -> None:
    (lines, files), *_ = [(lines, files) for lines, files in SECTIONS if any("finetune=" in line for line in lines)]
    for line in lines:
        run(tmp_path, files, *shlex.split(line))
    base, tuned = (
        load_file(max(path.rglob("model.safetensors"))) for path in (tmp_path / "outputs" / "base", tmp_path / "out")
    )
    assert {*tuned} == {name for name in base if name.endswith("bias")} != set()
    assert all((tuned[name] != base[name]).any() for name in tuned)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if "finetune.base" not in line])
def test_each_line_runs(line: str, tmp_path: Path) -> None:
    run(tmp_path, LINES[line], *shlex.split(line))


@pytest.mark.slow
def test_the_spirals_are_learnt(tmp_path: Path) -> None:
    """The page shows a data set and a model that work: a ternary network tells the spirals apart."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    train(tmp_path, "--config-dir", "conf", "data=spirals", "model=bitmlp", "tracker=jsonl", "trainer.device=cpu")
    (summary,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("summary.json"))
    assert summary["best"]["val/acc"] > 0.9
