"""The pages keep their word: commands are valid, the README's examples run, links lead somewhere, sentences are short."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from program import ROOT, make_environment, train
from torch.distributed.run import get_args_parser

from research.options import renames
from research.preflight.check import find_mistakes

PROSE = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "experiments/README.md"]
PAGES = [*PROSE, *ROOT.glob("experiments/**/*.md"), *ROOT.glob(".github/**/*.md")]
TEXTS = {path: path.read_text() for path in PAGES}
README = TEXTS[ROOT / "README.md"]
EXTEND = ROOT / "docs" / "extend.md"  # its commands name files of its own: tests/test_extend.py
OWN_TEXTS = [text for path, text in TEXTS.items() if path != EXTEND]
TRAIN = sorted(
    {line.strip("` ") for text in OWN_TEXTS for line in re.findall(r"python train\.py(?:'[^'\n]*'|[^`\n|#'])*", text)}
)
TORCHRUN = sorted({line.strip() for text in TEXTS.values() for line in re.findall(r"^ +(torchrun .*)", text, re.MULTILINE)})
DEBUG = ["trainer=debug", "batch_size=4", "model.dim=32", "trainer.device=cpu", "trainer.compile=false"]


def name_page(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(command: list[str], cwd: Path, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=make_environment(store), capture_output=True, text=True, timeout=300)


def copy_program(folder: Path) -> None:
    for name in ("research", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)


def split_command(command: str) -> tuple[list[str], bool]:
    words = shlex.split(command)[2:]
    return [word for word in words if word != "-m"], "-m" in words


def list_sentences(text: str) -> list[str]:
    """Return the sentences of a page: of its paragraphs, list items and table cells, without code and addresses."""
    text = re.sub(r"```.*?```|<!--.*?-->|^    .*?$|^#.*?$|^\|[-|: ]+\|$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"^(\s*[-*] |\s*\d+\. )|(?<!\\)\|", "\n\n", text, flags=re.MULTILINE)
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    return [sentence for block in blocks for sentence in re.split(r"(?<=[.!?])\**\s+", block) if sentence]


@pytest.mark.parametrize("path", PROSE, ids=name_page)
def test_sentences_are_short(path: Path) -> None:
    long = [sentence for sentence in list_sentences(TEXTS[path]) if len(sentence.split()) > 25]
    assert long == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130
    assert median(len(sentence.split()) for sentence in list_sentences(README)) <= 15


@pytest.mark.parametrize("command", TRAIN)
def test_every_train_command_is_valid(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words, sweeps = split_command(command)
    if paths := re.findall(r"\.(?:path|images|masks)=\[?([^ \]]+)", " ".join(words)):  # of the reader's own data
        monkeypatch.chdir(tmp_path)
        for name in ",".join(paths).split(","):
            (tmp_path / name).mkdir(parents=True)
    if folders := re.findall(r"model\.folder=(\S+)", " ".join(words)):  # a pretrained one of the reader's own
        monkeypatch.chdir(tmp_path)
        for name, content in (("config.json", '{"model_type": "llama"}'), ("model.safetensors", ""), ("tokenizer.json", "{}")):
            (tmp_path / folders[0]).mkdir(exist_ok=True)
            (tmp_path / folders[0] / name).write_text(content, encoding="utf-8")
    own = r"model=bigram|tracker=.*\blines\b.*|--help|(resume|objective.teacher|finetune.base)=.*|.*=NAME"
    if not any(re.fullmatch(own, word) for word in words):
        assert find_mistakes(words, sweeps) == []


@pytest.mark.parametrize("command", TORCHRUN)
def test_every_torchrun_command_is_valid(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = get_args_parser().parse_args(shlex.split(command)[1:])
    assert args.training_script == "train.py"
    monkeypatch.setenv("WORLD_SIZE", str(int(args.nnodes.split(":")[0]) * int(args.nproc_per_node)))
    words = [word.replace("/shared", str(tmp_path)) for word in args.training_script_args]
    assert find_mistakes(words, False) == []


@pytest.mark.slow
def test_the_line_of_the_readme_trains(tmp_path: Path) -> None:
    """As the README has it, in a smaller size."""
    line = "python train.py model=bitnet optim=grokfast -m lr=1e-3,3e-4"
    assert line in README
    train(tmp_path, *line.split()[2:], *DEBUG, "data.p=7")
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "out").rglob("summary.json")]
    assert statuses == ["FINISHED", "FINISHED"]


@pytest.mark.slow
def test_a_model_in_two_files(tmp_path: Path) -> None:
    """The two files as the README shows them, put into a copy of the program."""
    copy_program(tmp_path)
    files = re.findall(r"`((?:research|conf)/\S+)`:\n\n```\w+\n(.*?)```", README, re.DOTALL)
    assert len(files) == 2
    for name, content in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    (line,) = re.findall(r"`python train\.py (model=bigram[^`]*)`", README)
    process = run([sys.executable, "train.py", *line.split(), "trainer=debug", "tracker=jsonl"], tmp_path, tmp_path)
    assert process.returncode == 0, process.stderr
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.rglob("summary.json"))
    assert summary["status"] == "FINISHED"


@pytest.mark.slow
def test_the_study_of_the_docs_runs(tmp_path: Path) -> None:
    """The yaml of docs/sweeper.md with a condition, constraints and two objectives, in a copy of the program."""
    copy_program(tmp_path)
    (content,) = re.findall(r"```yaml\n(hydra:.*?)```", TEXTS[ROOT / "docs" / "sweeper.md"], re.DOTALL)
    (tmp_path / "conf" / "sweep" / "docs.yaml").write_text(f"# @package _global_\n{content}")
    small = ["data=digits", "model=bitmlp", "steps=6", "eval_every=3", "tracker=none", "trainer.device=cpu"]
    size = ["hydra.sweeper.n_trials=3", "hydra.sweeper.plots=false", "hydra.sweeper.study_name=docs"]
    process = run([sys.executable, "train.py", "sweep=docs", "-m", *small, *size], tmp_path, tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    folder = tmp_path / "outputs" / "digits" / "docs"
    first, *rest = (folder / "trials.csv").read_text().splitlines()
    assert first.startswith("number,state,val/acc,params,params (constraint),optim,lr,optim.lamb")
    assert rest[0].split(",")[5:8] == ["adamw", "0.001", ""], "the enqueued trial is first, and without the filter has no lamb"
    for n in range(3):
        overrides = (folder / str(n) / "overrides.txt").read_text()
        assert ("optim.lamb=" in overrides) == ("optim=grokfast" in overrides)


def test_every_make_target_and_file_exists() -> None:
    rules = (ROOT / "Makefile").read_text()
    for text in TEXTS.values():
        for target in re.findall(r"\bmake ([a-z][a-z-]*)\b(?=[`\s]*(?:#|`|\n|$| ARGS| +#))", text):
            assert re.search(rf"^{target}:", rules, re.MULTILINE), target
        for module in re.findall(r"python -m ((?:benchmarks|experiments|research)[\w.]*\w)", text.replace("NAME", "*")):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_tree_of_contributing_exists() -> None:
    (tree,) = re.findall(r"## The rooms\n.*?```\n(.*?)```", TEXTS[ROOT / "CONTRIBUTING.md"], re.DOTALL)
    parents: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        assert (ROOT / "".join(parents)).exists() or name == "outputs/", line
        assert len(line.split(maxsplit=1)) == 2, f"{line}: no comment"
    for room in [path.parent for path in (ROOT / "research").glob("*/__init__.py")]:
        assert f" {room.name}/ " in tree, room.name


@pytest.mark.parametrize(
    "group", sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "local")
)
def test_every_option_is_in_the_readme(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}` \| (.*) \|$", README, re.MULTILINE)
    for path in (ROOT / "conf" / group).glob("*.yaml"):
        assert f"`{path.stem}`" in row, path


def test_pictures_and_links_lead_somewhere() -> None:
    for path, text in TEXTS.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_rename_is_in_the_changelog() -> None:
    text = TEXTS[ROOT / "CHANGELOG.md"]
    for names in (renames.TARGETS, *renames.PARAMETERS.values()):
        for old, new in names.items():
            assert re.search(rf"^\|.*\b{re.escape(old)}`.*\|.*\b{re.escape(new)}`", text, re.MULTILINE), old


def test_results_are_those_of_the_studies() -> None:
    """Every number in docs/results.md that refers to a study is in the README of that study."""
    rows = re.findall(r"\| ([^|]*): \[\w+\]\(\.\./(experiments/\w+/README\.md)\)", TEXTS[ROOT / "docs" / "results.md"])
    assert len(rows) >= 8
    for result, page in rows:
        for number in re.findall(r"\d[\d.,]*\d|\d", result):
            assert number in TEXTS[ROOT / page], f"{page}: {number}"


def test_every_benchmark_has_its_numbers() -> None:
    """Each program of `make bench` that can be run without a GPU is in docs/benchmarks.md."""
    rule = re.search(r"^bench: setup-dev ## .*\n\t@for \w+ in ([\w ]+);", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule
    for name in set(rule[1].split()) - {"gpu"}:
        assert f"`python -m benchmarks.{name}" in TEXTS[ROOT / "docs" / "benchmarks.md"], name


def test_a_terminal_is_drawn(tmp_path: Path) -> None:
    """Colours stay, what was overwritten goes, and names that change with each run are replaced."""
    program = "print('\\x1b[36mfirst\\x1b[0m\\rlast', end='\\r\\x1b[2K'); print('2026-11-30_06-51-23-247532', '\\x1b[1mbold')"
    command = ["docs/record_terminal.py", "--output", str(tmp_path / "svg"), "--", "python", "-c", program]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    drawn = re.sub(r"<[^>]*>", "", (tmp_path / "svg").read_text()).replace("&#160;", " ")
    assert "RUN" in drawn
    assert "bold" in drawn
    assert "first" not in drawn.split("python -c")[1].split("print")[-1]
    assert "2026" not in drawn.split("bold")[-1]


def test_the_picture_shows_the_console_of_today() -> None:
    """The rows of the recorded run have the names that the console callback gives them: else run make picture."""
    svg = (ROOT / "docs" / "terminal.svg").read_text().replace("&#160;", " ")
    (style,) = re.findall(r'class="(\S+)"[^>]*>run +</text>', svg)
    labels = [label.strip() for label in re.findall(rf'class="{style}"[^>]*>([^<]*)</text>', svg)]
    source = (ROOT / "research" / "callbacks" / "console.py").read_text()
    assert len(labels) > 8
    for label in labels:
        assert f'"{label.partition(" val/acc")[0]}' in source, f"{label}: run make picture"


SMALL = {
    "filter_cost": "--sizes 0.4 --rounds 2",
    "loop_overhead": "--steps 2 --rounds 2 --restarts 1",
    "sweep_overhead": "--trials 5 --rounds 1 --skewed 0",
    "tracking_overhead": "--steps 50 --pairs 1",
}


BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SMALL else ()) for name in BENCHMARKS])
def test_a_benchmark_runs(tmp_path: Path, name: str) -> None:
    """In its smallest size; where it has none, its help."""
    small = SMALL.get(name, "--help")
    environment = make_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"benchmarks.{name}", *small.split()]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert small == "--help" or "bounds" in json.loads(process.stdout.splitlines()[-1])


def test_the_table_of_faults_is_complete() -> None:
    """Every row of the list has a module, and every module a row."""
    table = re.findall(r"^\| ([\d, ]+) \| .+ \| (.+) \|$", (ROOT / "tests" / "README.md").read_text(), re.MULTILINE)
    rows = [int(number) for numbers, _ in table for number in numbers.split(",")]
    named = {name for _, modules in table for name in re.findall(r"`faults/(\w+\.py)`", modules)}
    assert sorted(rows) == list(range(1, 27))
    assert named == {path.name for path in (ROOT / "tests" / "faults").glob("test_*.py")}
