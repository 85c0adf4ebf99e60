"""The studies: tables and figures come from the stored results, budgets are equal, and one runs from nothing."""

import csv
import importlib
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from program import ROOT, run

from experiments import arms, base, results, study
from research.preflight.check import find_mistakes

EXPERIMENTS = ROOT / "experiments"
STUDIES = sorted(path.parent.name for path in EXPERIMENTS.glob("*/study.py"))
SWEEPS = {  # studies without tuned arms
    "BitnetGap": "bitnet_gap",
    "Distill": "distill",
    "Finetune": "finetune",
    "Grokking": "grokking",
    "PbtDigits": "pbt_digits",
    "Tasks": "tasks",
    "Tokens": "tokens",
}
TUNED = [name for name in STUDIES if name not in SWEEPS.values()]


@pytest.mark.parametrize("name", STUDIES)
def test_tables_and_figures_come_from_the_results(name: str, tmp_path: Path) -> None:
    """In a copy, from results.csv alone: the tables of the README word for word, the figures pixel for pixel."""
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    original, copy = EXPERIMENTS / name, tmp_path / "experiments" / name
    (copy / "figure.png").unlink()
    done = run(["-m", f"experiments.{name}.study", "--figure"], tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stderr
    readme = (original / "README.md").read_text()
    tables = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert tables, "it prints a table"
    assert [line for line in tables if line not in readme] == []
    assert (copy / "README.md").read_text() == readme, "the tables between the marks are those of the results"
    assert (imread(copy / "figure.png") == imread(original / "figure.png")).all()


def test_a_readme_names_the_command() -> None:
    for name in STUDIES:
        assert f"python -m experiments.{name}.study" in (EXPERIMENTS / name / "README.md").read_text(), name


@pytest.mark.parametrize("name", TUNED)
def test_a_readme_has_its_parts(name: str) -> None:
    """results.csv has the sizes whose tables are in the README."""
    readme = (EXPERIMENTS / name / "README.md").read_text()
    with (EXPERIMENTS / name / "results.csv").open() as file:
        sizes = {row["size"] for row in csv.DictReader(file)}
    assert sizes == set(re.findall(r"<!-- (quick|full) -->", readme))
    for word in ("Question", "Command", "Budget", "Hardware", "Verdict"):
        assert f"**{word}" in readme, word


def test_each_study_is_made_by_make_and_listed_in_the_log() -> None:
    rule = re.search(r"\nstudies: setup ## [^\n]*\n(.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert rule
    log = (EXPERIMENTS / "README.md").read_text()
    for name in STUDIES:
        assert name in rule[1]
        assert f"[{name}]({name}/README.md)" in log


def load_module(name: str) -> Any:
    return importlib.import_module(f"experiments.{name}.study")


def split_overrides(arm: study.Arm) -> dict[str, str]:
    return dict(word.split("=", 1) for word in (*arm.fixed, *arm.space))


@pytest.mark.parametrize("size", ["quick", "full"])
@pytest.mark.parametrize("name", ["bitnet_x_grokfast", "fastest", "grokfast_modular", "optimizers"])
def test_budgets_are_equal(name: str, size: str) -> None:
    """Compared arms have the same trials, seeds and steps, and the same ranges of lr and weight decay.

    Exceptions are Muon's rates, and the weight decay of optimizers designed to work without it.
    """
    compared: dict[tuple[str, str], list[study.Arm]] = {}
    for arm in load_module(name).list_arms(size):
        if arm.space:
            compared.setdefault((arm.task, split_overrides(arm).get("model", "")), []).append(arm)
    for same in compared.values():
        assert len(same) > 1
        assert same[0].trials > 0
        assert len({(arm.trials, arm.search_seeds, arm.search, arm.seeds, split_overrides(arm)["steps"]) for arm in same}) == 1
        assert {split_overrides(arm)["lr"] for arm in same if split_overrides(arm)["optim"] != "muon"} == {
            arms.RATE[0].split("=", 1)[1]
        }
        small = [
            arm
            for arm in same
            if split_overrides(arm)["optim"] == "orthograd" or split_overrides(arm).get("loss") == "stablemax"
        ]
        assert {split_overrides(arm)["optim.weight_decay"] for arm in same if arm not in small} == {
            arms.RATE[1].split("=", 1)[1]
        }


@pytest.mark.parametrize("name", TUNED)
def test_every_run_of_a_study_has_valid_overrides(name: str) -> None:
    """The overrides of every arm, in both sizes, pass the preflight."""
    for size in ("quick", "full"):
        listed = load_module(name).list_arms(size)
        assert len({(arm.name, arm.task) for arm in listed}) == len(listed), "two arms share a folder"
        for arm in listed:
            overrides = [*arm.fixed, *arm.search, *arm.space, f"seed={arm.search_seeds}", "tracker=jsonl"]
            assert find_mistakes(overrides, True) == [], overrides


@pytest.mark.parametrize("kind", SWEEPS)
def test_every_sweep_of_a_study_has_valid_overrides(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The overrides of all sweeps of the studies without tuned arms pass the preflight."""
    sweeps: dict[str, list[str]] = {}
    monkeypatch.setattr(base.BaseStudy, "sweep", lambda self, name, overrides, root: sweeps.update({name: overrides}))
    one = getattr(module := load_module(SWEEPS[kind]), kind)()
    if kind == "Finetune":  # what its first sweep makes, and a text that it would fetch
        shutil.copytree(ROOT / "tests/fixtures/v1/text_run", tmp_path / one.name / "base" / "0")
        for seed in range(1, one.seeds):
            (tmp_path / one.name / "base" / str(seed)).symlink_to(tmp_path / one.name / "base" / "0")
        monkeypatch.setattr(module, "get_plays", lambda folder: [f"data.path={ROOT / 'docs'}"])
    for size in one.sizes:
        one.run(size, tmp_path, 1, ["trainer.device=cpu"])
    # The seeds of a search change no key: one search of each kind is enough.
    checked = {name.removesuffix("_0"): overrides for name, overrides in sweeps.items() if not name.endswith(tuple("1234"))}
    assert checked
    for overrides in checked.values():
        assert find_mistakes([*overrides, "tracker=jsonl"], True) == [], overrides


positive = st.lists(st.floats(1.0, 1e4), min_size=1, max_size=6)


@settings(max_examples=20, deadline=None)
@given(positive, positive, st.floats(0.1, 10.0))
def test_ratios(slow: list[float], fast: list[float], factor: float) -> None:
    """A ratio is of geometric means, lies within its interval, and scales with one side."""
    middle, low, high = results.compute_ratio(slow, fast, draws=200)
    mean = math.prod(slow) ** (1 / len(slow)) / math.prod(fast) ** (1 / len(fast))
    assert middle == pytest.approx(mean)
    assert low <= high
    assert min(slow) / max(fast) * (1 - 1e-9) <= low
    assert high <= max(slow) / min(fast) * (1 + 1e-9)
    assert results.compute_ratio([factor * value for value in slow], fast, draws=200)[0] == pytest.approx(factor * middle)
    same = results.compute_ratio(slow, [factor * value for value in slow], paired=True, draws=200)
    assert same == pytest.approx((1 / factor,) * 3), "pairs that all have one ratio leave no doubt"


def make_row(**facts: Any) -> results.Row:
    return dict.fromkeys(results.COLUMNS, "") | {key: str(value) for key, value in facts.items()}


def test_scores() -> None:
    end = {"status": "FINISHED", "judged": "val_95", "asked": 1000, "steps": 1000}
    early, late = (make_row(val_95=at, acc=1, **end) for at in (300, 900))
    near, far = (make_row(acc=acc, **end) for acc in (0.9, 0.1))
    broken = make_row(acc=0.1, **end | {"status": "FAILED", "steps": 50})
    assert sorted([broken, far, late, near, early], key=results.score) == [early, late, near, far, broken]
    assert results.score(broken) == math.inf
    assert [results.get_value(row) for row in (late, near, far, broken)] == [900, 1000, 1000, 1000], "no steps are invented"
    assert list(map(results.format_value, (late, far, broken))) == ["900", "not in 1,000", "diverged at 50"]
    text, digits = ({"status": "FINISHED", "judged": column} for column in ("bpb", "acc"))
    assert results.score(make_row(bpb=2.0, acc=0.6, **text)) < results.score(make_row(bpb=2.1, acc=0.7, **text))
    shares = [results.score(make_row(acc=acc, **digits)) for acc in (1.0, 0.98, 0.97)]
    assert 0 < shares[0] < shares[1] < shares[2]
    assert [results.get_value(make_row(judged=column, status="FAILED")) for column in ("acc", "bpb")] == [1.0, 8.0], (
        "the worst there is"
    )


def test_an_accuracy_that_was_not_reached_gives_a_bound() -> None:
    end = {"status": "FINISHED", "judged": "val_95", "asked": 1000, "acc": 0.5}
    fast, slow = (
        [make_row(val_95=at, seed=seed, **end) for seed, at in enumerate(steps)] for steps in ((100, 200), (300, 600))
    )
    never = [make_row(seed=seed, **end) for seed in range(2)]
    assert results.compare(slow, fast) == "3 (3 to 3)", "paired by seed"
    assert results.compare(never, fast) == "more than 7.07 (from 5)"
    assert results.compare(fast, never) == "less than 0.141 (to 0.2)"
    assert results.compare(never, never) == results.compare([slow[0], never[0]], never) == "-"


@pytest.mark.slow  # ten runs
def test_a_study_from_nothing(tmp_path: Path) -> None:
    """Two arms, one of them tuned: the best setting runs with other seeds; results.csv keeps the rows of the other size."""
    tiny = ("data=modular", "data.p=7", "model=decoder", "model.dim=16", "model.depth=1", "callbacks=grokking", "steps=4")
    small = (*tiny, "eval_every=2", "trainer.device=cpu")
    both = [
        study.Arm("plain", "modular", ("steps=8", *small, "optim=adamw")),
        study.Arm(
            "tuned",
            "modular",
            (*small, "optim=grokfast"),
            ("lr=tag(log,interval(1e-3,1e-2))",),
            2,
            search=study.FIRST_HIT,
            control=("optim.lamb=0",),
        ),
    ]
    (tmp_path / "README.md").write_text("before\n<!-- full -->\n<!-- end -->\n<!-- quick -->\n<!-- end -->\nafter\n")
    (tmp_path / "results.csv").write_text(f"{','.join(results.COLUMNS)}\nfull,modular,old{',' * (len(results.COLUMNS) - 3)}\n")
    one = study.Study(tmp_path, lambda size: both, {"quick": 2}, lambda rows, size: f"{len(rows)} rows", lambda rows: Figure())
    one.run("quick", tmp_path / "outputs", 2, [])
    one.collect("quick", tmp_path / "outputs")
    one.publish()
    rows = results.read(tmp_path)
    assert [(r["arm"], r["phase"], r["seed"]) for r in rows] == [
        ("old", "", ""), ("plain", "seeds", "1"), ("plain", "seeds", "2"),
        ("tuned", "search", "0"), ("tuned", "search", "0"), ("tuned", "seeds", "1"), ("tuned", "seeds", "2"),
        ("tuned", "control", "1"), ("tuned", "control", "2"),
    ]  # fmt: skip
    search = [r for r in rows if r["phase"] == "search"]
    best = min(search, key=results.score)["settings"]
    for phase in ("seeds", "control"):
        assert {r["settings"] for r in results.select_rows(rows, "tuned", phase=phase)} == {best}
    assert results.count_trials(rows, "tuned") == 2
    overrides = [
        (tmp_path / "outputs" / tmp_path.name / f"tuned_modular_{phase}/0/overrides.txt").read_text()
        for phase in both[1].phases
    ]
    assert ["callbacks.grokking.hold=1" in text for text in overrides] == [True, False, False]
    assert ["optim.lamb=0" in text.splitlines() for text in overrides] == [False, False, True]
    assert "8 rows" in (tmp_path / "README.md").read_text()
    folder = next((tmp_path / "outputs").rglob("plain_modular_seeds/0"))
    summary = json.loads((folder / "summary.json").read_text())
    assert (rows[1]["status"], rows[1]["asked"]) == ("FINISHED", "4")
    assert rows[1]["steps"] == "4"
    assert float(rows[1]["acc"]) == pytest.approx(summary["best"]["val/acc"], rel=1e-5)
    assert (tmp_path / "figure.png").exists()
    with pytest.raises(SystemExit, match="is for something else"):
        one.sweep("plain_modular_seeds", [base.NO_PLOTS, *small, "optim=adamw", "lr=0.1", "seed=1,2"], tmp_path / "outputs")
    other = study.Arm("plain", "modular", (*small, "optim=sgd"))
    with pytest.raises(SystemExit, match="plain_modular_seeds/0 is of another study, without optim=sgd"):
        one.read_rows(tmp_path / "outputs", "quick", other)


@pytest.mark.parametrize(
    ("status", "callbacks", "monitor", "expected"),
    [
        ("FAILED", "{grokking: {end: 0.95}}", "val/acc", ["val_95"]),
        ("FAILED", "{grokking: {end: 0.99}}", "val/acc", ["val_99"]),
        ("FAILED", "{}", "val/bpb", ["bpb"]),
        ("FINISHED", "{}", "val/acc", ["acc"]),
        ("STOPPED", "{}", "val/acc", []),
    ],
)
def test_failed_and_interrupted_runs(status: str, callbacks: str, monitor: str, expected: list[str], tmp_path: Path) -> None:
    """A run that diverged before its first evaluation is a result; an interrupted one is not."""
    one = study.Study(tmp_path / "demo", lambda size: [], {}, lambda rows, size: "", lambda rows: Figure())
    (folder := tmp_path / "demo" / "a_task_seeds" / "0").mkdir(parents=True)
    (folder / "overrides.txt").write_text("data=modular\nlr=0.123456\nseed=1\n")
    (folder / "config.yaml").write_text(f"steps: 9\nmonitor: {monitor}\ncallbacks: {callbacks}\n")
    (folder / "summary.json").write_text(json.dumps({"status": status, "steps": 4, "best": {"val/acc": 0.5}}))
    rows = one.read_rows(tmp_path, "quick", study.Arm("a", "task", ("data=modular",)))
    assert [r["judged"] for r in rows] == expected
    assert [(r["settings"], r["steps"], r["asked"], results.is_bound(r)) for r in rows] == [
        ("lr=0.1235", "4", "9", status == "FAILED") for _ in expected
    ]


@pytest.mark.parametrize(
    ("arm", "requested", "phase"),
    [
        (study.Arm("a", "task", ()), 2, "seeds"),
        (study.Arm("a", "task", (), ("lr=1,2", "steps=3,4,5"), search_seeds="0,1"), 12, "search"),
        (study.Arm("a", "task", (), ("lr=interval(1,2)",), trials=3), 3, "search"),
    ],
)
def test_collecting_missing_runs_keeps_the_results(arm: study.Arm, requested: int, phase: str, tmp_path: Path) -> None:
    """Both where no run exists and where some are missing."""
    stored = f"{','.join(results.COLUMNS)}\nquick,modular,old{',' * (len(results.COLUMNS) - 3)}\n"
    (tmp_path / "results.csv").write_text(stored)
    one = study.Study(tmp_path, lambda size: [arm], {"quick": 2}, lambda rows, size: "", lambda rows: Figure())
    for count in range(2):
        message = f"has {count} of at least {requested} runs of a, task, {phase}: without --collect"
        with pytest.raises(SystemExit, match=message):
            one.collect("quick", tmp_path / "outputs")
        assert (tmp_path / "results.csv").read_text() == stored
        (folder := tmp_path / "outputs" / tmp_path.name / f"a_task_{phase}" / "0").mkdir(parents=True, exist_ok=True)
        (folder / "overrides.txt").write_text("seed=1\n")
        (folder / "config.yaml").write_text("steps: 9\nmonitor: val/acc\ncallbacks: {}\n")
        (folder / "summary.json").write_text('{"status": "FINISHED"}')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps=5"], "steps=5: the study sets steps itself"),
        (["seed=5"], "seed=5: the study sets seed itself"),
        (["++trainer.steps=5"], "++trainer.steps=5: the study sets steps itself"),
        (["callbacks.grokking.hold=5"], "callbacks.grokking.hold=5: the study sets callbacks.grokking.hold itself"),
        (["--collect", "tracker=mlflow"], "tracker=mlflow: --figure and --collect do no runs"),
        (["--at-once=0"], "--at-once=0: give 1 or more"),
    ],
)
def test_arguments_that_a_study_refuses(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [study.Arm("a", "task", ("steps=9",), ("lr=1,2",), search=study.FIRST_HIT)]
    one = study.Study(tmp_path, lambda size: listed, {}, lambda rows, size: "", lambda rows: Figure())
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    with pytest.raises(SystemExit):
        one.main()
    assert message in capsys.readouterr().err


def test_a_search_without_an_end_is_reported(tmp_path: Path) -> None:
    one = study.Study(tmp_path / "demo", lambda size: [], {}, lambda rows, size: "", lambda rows: Figure())
    with pytest.raises(SystemExit, match="a, task: no setting of the search came to an end"):
        one.find_best(tmp_path, study.Arm("a", "task", (), ("lr=1,2",)))


def test_full_is_refused_where_there_is_one_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "--full"])
    with pytest.raises(SystemExit):
        load_module("grokking").Grokking().main()
    assert "--full: grokking has one size only" in capsys.readouterr().err
