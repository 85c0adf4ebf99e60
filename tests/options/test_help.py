"""--help: complete, in columns, with examples that work; and how fast answers come."""

import os
import resource
import statistics
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from program import ROOT

from research.options.conf import CONF, list_groups
from research.options.help import HELP_WIDTH, build_help_text, describe
from research.preflight.check import find_mistakes


def test_the_help_names_everything() -> None:
    text = build_help_text()
    for group, options in list_groups().items():
        assert group in text
        for option in options:
            assert option in text
    for key in ("lr", "seed", "name", "monitor", "out", "steps", "batch_size", "eval_every", "precision", "target"):
        assert f"\n  {key}: " in text


def test_columns_are_apart_and_sentences_complete() -> None:
    text = build_help_text()
    rows = text.partition("groups")[2].partition("keys (")[0].splitlines()[1:]
    assert max(map(len, rows)) <= HELP_WIDTH
    group, options = next(iter(list_groups().items()))
    column = rows[0].index(describe(group, options[0])[:20])
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in filter(None, rows))
    for file in CONF.glob("*/*.yaml"):  # in words, since lines are wrapped
        assert describe(file.parent.name, file.stem) in " ".join(text.split()), file
    assert describe("optim", "momentum").endswith("optim=grokfast")  # from the comment's second line


def test_the_default_of_each_group_is_marked() -> None:
    """That of a group which config.yaml leaves open too: model=bitnet names linear=bitnet."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choices = compose("config", return_hydra_config=True).hydra.runtime.choices
    group, marked = "", {}
    for row in build_help_text().partition("groups")[2].partition("keys (")[0].splitlines()[1:]:
        group = row[2:13].strip() or group
        if row[13:14] == "*":
            marked[group] = row[14:].split()[0]
    assert marked == {group: choices[group] for group, options in list_groups().items() if choices[group] in options}
    assert marked["linear"] == "bitnet"


def test_the_help_imports_nothing_heavy() -> None:
    code = "import atexit, runpy, sys; sys.argv = ['train.py', '--help']\n"
    code += "atexit.register(lambda: print([name for name in ('torch', 'hydra', 'optuna', 'mlflow') if name in sys.modules]))\n"
    code += "runpy.run_path('train.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    *text, imported = done.stdout.splitlines()
    assert (done.returncode, imported) == (0, "[]")
    assert "\n".join(text) == build_help_text()


def test_the_examples_of_the_help_are_right() -> None:
    examples = [line.split()[2:] for line in build_help_text().splitlines() if line.startswith("  python train.py")]
    assert len(examples) == 6
    for words in examples:
        assert find_mistakes([word for word in words if word != "-m"], "-m" in words) == [], words


@pytest.mark.parametrize(("argument", "bound"), [("--help", 0.5), ("trainer.step=5", 2.5)])
def test_an_answer_comes_fast(argument: str, bound: float) -> None:
    """In units of `import hydra`, once ours is compiled as Hydra is: CPU time, as others share the machine."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def measure_seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    measure_seconds("train.py", argument)  # the first start compiles
    ratios = [measure_seconds("train.py", argument) / measure_seconds("-c", "import hydra") for _ in range(5)]
    assert statistics.median(ratios) <= bound, ratios
