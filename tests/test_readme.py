"""The README keeps its word: its commands run, its model of two files trains, its tree is there."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, make_environment, train
from torch.distributed.run import get_args_parser

from research.preflight.check import find_mistakes

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")]
TEXTS = {path: path.read_text() for path in PAGES}
README = TEXTS[ROOT / "README.md"]
TRAIN = sorted({line.strip("` '") for text in TEXTS.values() for line in re.findall(r"python train\.py[^`\n|#]*", text)})
TORCHRUN = sorted({line.strip() for text in TEXTS.values() for line in re.findall(r"^ +(torchrun .*)", text, re.MULTILINE)})
DEBUG = ["trainer=debug", "batch_size=4", "model.dim=32", "trainer.device=cpu", "trainer.compile=false"]


def run(command: list[str], cwd: Path, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=make_environment(store), capture_output=True, text=True, timeout=300)


def split_command(command: str) -> tuple[list[str], bool]:
    words = shlex.split(command)[2:]
    return [word for word in words if word != "-m"], "-m" in words


def test_there_are_commands() -> None:
    assert "python train.py model=bitnet optim=grokfast -m lr=1e-3,3e-4" in TRAIN


@pytest.mark.parametrize("command", TRAIN)
def test_every_line_is_right(command: str) -> None:
    words, sweeps = split_command(command)
    if "model=bigram" not in words and not any(word.startswith("resume=") for word in words) and "--help" not in words:
        assert find_mistakes(words, sweeps) == []


@pytest.mark.parametrize("command", TORCHRUN)
def test_every_launch_is_right(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = get_args_parser().parse_args(shlex.split(command)[1:])
    assert given.training_script == "train.py"
    monkeypatch.setenv("WORLD_SIZE", str(int(given.nnodes.split(":")[0]) * int(given.nproc_per_node)))
    words = [word.replace("/shared", str(tmp_path)) for word in given.training_script_args]
    assert find_mistakes(words, False) == []


def test_the_line_of_the_readme_trains(tmp_path: Path) -> None:
    """As written, but for the size."""
    line = "python train.py model=bitnet optim=grokfast -m lr=1e-3,3e-4"
    assert line in README
    train(tmp_path, *line.split()[2:], *DEBUG, "data.p=7")
    ends = [json.loads(path.read_text())["status"] for path in (tmp_path / "out").rglob("summary.json")]
    assert ends == ["FINISHED", "FINISHED"]


def test_a_model_in_two_files(tmp_path: Path) -> None:
    """The two files as the README shows them, put into a copy of the program."""
    for name in ("research", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    files = re.findall(r"`((?:research|conf)/\S+)`:\n\n```\w+\n(.*?)```", README, re.DOTALL)
    assert len(files) == 2
    for name, content in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    (line,) = re.findall(r"`python train\.py (model=bigram[^`]*)`", README)
    done = run([sys.executable, "train.py", *line.split(), "trainer=debug", "tracker=jsonl"], tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.rglob("summary.json"))
    assert summary["status"] == "FINISHED"


def test_the_study_of_the_docs_runs(tmp_path: Path) -> None:
    """Spelled out, with a condition, constraints and two objectives, as a yaml in a copy of the program."""
    for name in ("research", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    (content,) = re.findall(r"```yaml\n(hydra:.*?)```", TEXTS[ROOT / "docs" / "sweeper.md"], re.DOTALL)
    (tmp_path / "conf" / "sweep" / "docs.yaml").write_text(f"# @package _global_\n{content}")
    small = ["data=digits", "model=bitmlp", "steps=6", "eval_every=3", "tracker=none", "trainer.device=cpu"]
    size = ["hydra.sweeper.n_trials=3", "hydra.sweeper.plots=false", "hydra.sweeper.study_name=docs"]
    done = run([sys.executable, "train.py", "sweep=docs", "-m", *small, *size], tmp_path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "digits" / "docs"
    first, *rest = (folder / "trials.csv").read_text().splitlines()
    assert first.startswith("number,state,val/acc,params,params (constraint),optim,lr,optim.lamb")
    assert rest[0].split(",")[5:8] == ["adamw", "0.001", ""]  # the one to begin with; without the filter no lamb
    for n in range(3):
        overrides = (folder / str(n) / "overrides.txt").read_text()
        assert ("optim.lamb=" in overrides) == ("optim=grokfast" in overrides)


def test_every_make_target_and_file_is_there() -> None:
    rules = (ROOT / "Makefile").read_text()
    for text in TEXTS.values():
        for target in re.findall(r"\bmake ([a-z]+)\b(?=[`\s]*(?:#|`|\n|$| ARGS| +#))", text):
            assert re.search(rf"^{target}:", rules, re.MULTILINE), target
        for module in re.findall(r"python -m ((?:benchmarks|experiments)\.[\w.]+)", text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_tree_is_there() -> None:
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL)
    parents: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        for each in name.split(","):
            assert (ROOT / "".join([*parents[:-1], each])).exists() or each == "outputs/", line
        assert len(line.split(maxsplit=1)) == 2, f"{line}: no comment"


def test_every_option_is_named() -> None:
    for group in ("model", "optim", "schedule", "data", "trainer", "callbacks", "tracker"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{path.stem}`" in README, path


def test_pictures_and_links_lead_somewhere() -> None:
    for path, text in TEXTS.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
