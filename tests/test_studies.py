"""The studies: tables and figures come from the results that are kept, budgets are equal, and one runs from nothing."""

import csv
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from research.preflight.command import mistakes

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import arms  # noqa: E402
import study  # noqa: E402

SCRIPTS = sorted([*EXPERIMENTS.glob("*/study.py"), *EXPERIMENTS.glob("*/figure.py")])
STUDIES = [path.parent.name for path in SCRIPTS if path.name == "study.py"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_tables_and_figures_come_from_the_results(script: Path, tmp_path: Path) -> None:
    """In a copy, from results.csv alone: the README's tables word for word, the figures pixel for pixel."""
    for name in ("research", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    copy = tmp_path / "experiments" / script.parent.name
    (copy / "figure.png").unlink()
    words = ["--figure"] if script.name == "study.py" else []
    command = [sys.executable, str(copy / script.name), *words]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    readme = (script.parent / "README.md").read_text()
    tables = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert tables, "it tells a table"
    assert [line for line in tables if line not in readme] == []
    assert (copy / "README.md").read_text() == readme, "what stands between the marks is what the results give"
    assert (imread(copy / "figure.png") == imread(script.parent / "figure.png")).all()


@pytest.mark.parametrize("name", STUDIES)
def test_every_number_of_the_table_has_its_command(name: str) -> None:
    """The README names the commands, and results.csv has the sizes that it tells of."""
    readme = (EXPERIMENTS / name / "README.md").read_text()
    assert f"python experiments/{name}/study.py" in readme
    with (EXPERIMENTS / name / "results.csv").open() as file:
        sizes = {row["size"] for row in csv.DictReader(file)}
    assert sizes == set(re.findall(r"<!-- (quick|full) -->", readme))
    for word in ("Question", "Command", "Budget", "Hardware", "Verdict"):
        assert f"**{word}" in readme, word


def test_each_study_is_made_by_make_and_told_in_the_log() -> None:
    rule = re.search(r"\nstudies: setup\n(.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert rule
    log = (EXPERIMENTS / "README.md").read_text()
    for name in STUDIES:
        assert name in rule[1]
        assert f"[{name}]({name}/README.md)" in log


@pytest.mark.parametrize("size", ["quick", "full"])
def test_budgets_are_equal(size: str) -> None:
    """Every optimizer has as many trials and steps, and the same ranges of lr and decay but for two."""
    for task in arms.TASKS:
        for kind in ("dense", "ternary"):
            made = [arms.arm(task, size, kind, optim, 5) for optim in arms.OPTIMS]
            assert {arm.trials for arm in made} == {5}
            assert len({arm.fixed[: len(arms.TASKS[task][size])] for arm in made}) == 1
            assert len({arm.space[0] for arm in made}) == 2, "Muon's is its own"
            assert len({arm.space[1] for arm in made}) == 2, "OrthoGrad's is its own"


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_study_is_asked_for_rightly(name: str) -> None:
    """The overrides of every arm, in both sizes, pass the preflight."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / name / "study.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    for size in ("quick", "full"):
        made = module.arms(size)
        assert len({(arm.name, arm.task) for arm in made}) == len(made), "each has a folder of its own"
        for arm in made:
            words = [*arm.fixed, *arm.space, f"seed={arm.search_seeds}", "tracker=jsonl"]
            assert mistakes(words, True) == [], words


positive = st.lists(st.floats(1.0, 1e4), min_size=1, max_size=6)


@settings(max_examples=20, deadline=None)
@given(positive, positive, st.floats(0.1, 10.0))
def test_ratios(slow: list[float], fast: list[float], factor: float) -> None:
    """Of geometric means; within its interval; times a factor where one side is; one over it the other way round."""
    middle, low, high = study.ratio(slow, fast, draws=200)
    mean = math.prod(slow) ** (1 / len(slow)) / math.prod(fast) ** (1 / len(fast))
    assert middle == pytest.approx(mean)
    assert low <= high
    assert min(slow) / max(fast) * (1 - 1e-9) <= low
    assert high <= max(slow) / min(fast) * (1 + 1e-9)
    assert study.ratio([factor * value for value in slow], fast, draws=200)[0] == pytest.approx(factor * middle)
    same = study.ratio(slow, [factor * value for value in slow], paired=True, draws=200)
    assert same == pytest.approx((1 / factor,) * 3), "pairs that all have one ratio leave no doubt"


def row(**facts: Any) -> study.Row:
    return dict.fromkeys(study.COLUMNS, "") | {key: str(value) for key, value in facts.items()}


def test_scores() -> None:
    end = {"status": "FINISHED", "judged": "val_95", "asked": 1000}
    early, late = (row(val_95=at, acc=1, **end) for at in (300, 900))
    near, far = (row(acc=acc, **end) for acc in (0.9, 0.1))
    broken = row(acc=0.1, steps=50, **end | {"status": "FAILED"})
    assert study.score(early) < study.score(late) < study.score(near) < study.score(far) < study.score(broken) == math.inf
    assert [study.value(each) for each in (late, near, far)] == [900, 1000, 1000], "no steps are invented"
    assert list(map(study.told, (late, far, broken))) == ["900", "not in 1,000", "diverged at 50"]
    text, digits = ({"status": "FINISHED", "judged": judged} for judged in ("bpb", "acc"))
    assert study.score(row(bpb=2.0, acc=0.6, **text)) < study.score(row(bpb=2.1, acc=0.7, **text))
    assert 0 < study.score(row(acc=1.0, **digits)) < study.score(row(acc=0.98, **digits)) < study.score(row(acc=0.97, **digits))


def test_what_was_not_reached_is_a_bound() -> None:
    end = {"status": "FINISHED", "judged": "val_95", "asked": 1000, "acc": 0.5}
    fast, slow = ([row(val_95=at, seed=seed, **end) for seed, at in enumerate(steps)] for steps in ((100, 200), (300, 600)))
    never = [row(seed=seed, **end) for seed in range(2)]
    assert study.compared(slow, fast) == "3 (3 to 3)", "paired by seed"
    assert study.compared(never, fast) == "more than 7.07"
    assert study.compared(fast, never) == "less than 0.141"
    assert study.compared(never, never) == study.compared([slow[0], never[0]], never) == "-"


def test_a_study_from_nothing(tmp_path: Path) -> None:
    """Two arms, one of them tuned: what was best is run with other seeds, results.csv keeps the rows of the other size."""
    tiny = ("data=modular", "data.p=7", "model=decoder", "model.dim=16", "model.depth=1", "callbacks=grokking", "steps=4")
    small = (*tiny, "eval_every=2", "trainer.device=cpu", "hydra.sweeper.workers=1")
    made = [
        study.Arm("plain", "modular", (*small, "optim=adamw")),
        study.Arm("tuned", "modular", (*small, "optim=grokfast"), ("lr=tag(log,interval(1e-3,1e-2))",), trials=2),
    ]
    (tmp_path / "README.md").write_text("before\n<!-- quick -->\n<!-- end -->\nafter\n")
    (tmp_path / "results.csv").write_text(f"{','.join(study.COLUMNS)}\nfull,modular,old{',' * (len(study.COLUMNS) - 3)}\n")
    one = study.Study(tmp_path, lambda size: made, {"quick": 2}, lambda rows, size: f"{len(rows)} rows", lambda rows: Figure())
    one.run("quick", tmp_path / "outputs", 2, [])
    one.collect("quick", tmp_path / "outputs")
    one.publish()
    rows = study.read(tmp_path)
    assert [(r["arm"], r["phase"], r["seed"]) for r in rows] == [
        ("old", "", ""), ("plain", "seeds", "1"), ("plain", "seeds", "2"),
        ("tuned", "search", "0"), ("tuned", "search", "0"), ("tuned", "seeds", "1"), ("tuned", "seeds", "2"),
    ]  # fmt: skip
    search = [r for r in rows if r["phase"] == "search"]
    best = min(search, key=study.score)["settings"]
    assert {r["settings"] for r in study.of(rows, "tuned")} == {best}
    assert study.searched(rows, "tuned") == 2
    assert "6 rows" in (tmp_path / "README.md").read_text()
    folder = next((tmp_path / "outputs").rglob("plain_modular_seeds/0"))
    summary = json.loads((folder / "summary.json").read_text())
    assert (rows[1]["status"], rows[1]["asked"]) == ("FINISHED", "4")
    assert (rows[1]["steps"], float(rows[1]["acc"])) == ("4", pytest.approx(summary["best"]["val/acc"], rel=1e-5))
    assert (tmp_path / "figure.png").exists()
