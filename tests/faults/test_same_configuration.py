"""Row 1: a run goes on only from its own past; row 2: which run; row 16: a copy elsewhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from program import TINY, read_summaries, train

from research import rules
from research.composition.overrides import to_override
from research.composition.recorded import FREE_SETTINGS, list_differences, load_config
from research.preflight import resume
from research.preflight.check import check_overrides, find_mistakes
from research.preflight.resume import check_same_run
from research.preflight.run_config import describe_newest_run
from research.run import get_finished_value
from research.run_dir import RunConfig, list_checkpoints, to_run_folder
from research.training.manifest import is_checkpoint

BASE = [*TINY, "trainer.steps=4", "tracker=none"]


def list_runs(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "out").rglob("config.yaml"))


def rename_checkpoint(run: Path, old: int, new: int) -> None:
    (run / "checkpoints" / f"step-{old:08d}").rename(run / "checkpoints" / f"step-{new:08d}")


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    tmp_path = tmp_path_factory.mktemp("own")
    train(tmp_path, *BASE)
    (run,) = list_runs(tmp_path)
    return run


@pytest.mark.parametrize(
    "change", ["lr=1e-4", "seed=1", "batch_size=8", "trainer.eval_every=2", "data.p=13", "model.dropout=0.1"]
)
def test_auto_refuses_a_folder_of_other_settings(own_run: Path, change: str) -> None:
    (mistake,) = find_mistakes([*BASE, "resume=auto", f"hydra.run.dir={own_run}", change], False)
    assert change.partition("=")[0].rpartition(".")[2] in mistake
    assert "out" in mistake
    assert check_overrides([*BASE, "resume.path=auto", f"out={own_run.parents[1]}", change], False) == ([], [])


@pytest.mark.parametrize(
    "change",
    ["trainer.steps=6", "tracker=jsonl", "callbacks.console.every=1", "callbacks.checkpoint.every=2",
     "callbacks.checkpoint.keep_last=3", "callbacks.time_limit.seconds=100"],
)  # fmt: skip
def test_what_may_differ(own_run: Path, change: str) -> None:
    folder = f"hydra.run.dir={to_override(str(own_run))}"
    assert check_overrides([*BASE, "resume.path=auto", f"out={own_run.parents[1]}", change], False) == ([], [folder])


def test_a_trial_refuses_a_folder_of_other_settings(own_run: Path) -> None:
    before = (own_run / "summary.json").read_bytes()
    rules.enforce(check_same_run(own_run, read_config(own_run)))
    with pytest.raises(ValueError, match=r"lr is 0\.5 here"):
        rules.enforce(check_same_run(own_run, read_config(own_run) | {"lr": 0.5}))
    with pytest.raises(ValueError, match=r"give each trial a folder of its own, by hydra\.sweep\.subdir"):
        rules.enforce(check_same_run(own_run, read_config(own_run) | {"lr": 0.5}, is_trial=True))
    assert (own_run / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "is_finished"),
    [({"out": "x", "tracker": {}}, True), ({"name": "x"}, True), ({"callbacks.console": {"every": 1.0}}, True),
     ({"callbacks.console": None}, True), ({"steps": 6}, False), ({"callbacks.time_limit": {"seconds": 9}}, False),
     ({"lr": 0.5}, False)],
)  # fmt: skip
def test_who_watches_makes_a_finished_run_no_other_one(own_run: Path, changes: dict[str, Any], is_finished: bool) -> None:
    """As resume=auto takes it for its own, it is not trained again; a longer or a slower one would be."""
    config = read_config(own_run)
    config["callbacks"] = dict(config["callbacks"])
    for key, value in changes.items():
        node, _, name = key.rpartition(".")
        (config[node] if node else config)[name] = value
    run_config = RunConfig("", "", own_run, config, [], {}, resumed=True)
    assert (get_finished_value(run_config) is not None) == is_finished


def read_config(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = load_config(run)[0]
    return config


def test_differences_are_those_of_all_settings_but_the_free_ones() -> None:
    here = {
        "lr": 1e-3,
        "out": "a",
        "trainer": {"steps": 1, "seed": 0},
        "callbacks": {"console": {"every": 1}, "curve": {}},
        "extra": [1, 2],
    }
    there = {"lr": 1e-3, "out": "b", "trainer": {"steps": 2, "seed": 0}, "callbacks": {"curve": {}}, "extra": (1, 2)}
    assert list_differences(here, there) == []
    (difference,) = list_differences(here, there | {"trainer": {"steps": 2, "seed": 1}})
    assert (difference, str(difference)) == (("trainer.seed", "0", "1"), "trainer.seed is 0 here, was 1 there")
    assert list_differences(here, {k: v for k, v in there.items() if k != "extra"}) == [("extra", "[1, 2]", "nothing")]
    assert {"out", "name", "tracker", "trainer.steps"} <= set(FREE_SETTINGS)


def test_auto_takes_the_run_that_is_furthest(tmp_path: Path) -> None:
    train(tmp_path, *BASE, "trainer.steps=6")
    (far,) = list_runs(tmp_path)
    train(tmp_path, *BASE, "trainer.steps=2")  # newer, and not as far
    done = train(tmp_path, *BASE, "trainer.steps=8", "resume=auto")
    assert len(list_runs(tmp_path)) == 2, done.stdout
    assert max(list_checkpoints(far)) == 8


def test_a_folder_is_as_far_as_its_manifest_says(tmp_path: Path) -> None:
    train(tmp_path, *BASE, "trainer.steps=6", "callbacks.checkpoint.every=2")
    (far,) = list_runs(tmp_path)
    train(tmp_path, *BASE, "trainer.steps=4", "callbacks.checkpoint.every=2")
    (near,) = set(list_runs(tmp_path)) - {far}
    rename_checkpoint(near, 4, 900)
    done = train(tmp_path, *BASE, "trainer.steps=8", "resume=auto")
    assert max(list_checkpoints(far)) == 8
    assert 8 not in list_checkpoints(near)
    done = train(tmp_path, *BASE, "trainer.steps=8", f"resume={near}")
    assert "step-00000900 holds step 4" in done.stdout
    assert read_summary_of(near)["steps"] == 8


def test_a_damaged_checkpoint_does_not_make_a_run_the_furthest(tmp_path: Path) -> None:
    train(tmp_path, *BASE, "trainer.steps=6")
    (far,) = list_runs(tmp_path)
    for checkpoint in list_checkpoints(far).values():
        (checkpoint / "state.pt").write_bytes(b"damaged")
    train(tmp_path, *BASE, "trainer.steps=4")
    (near,) = set(list_runs(tmp_path)) - {far}
    train(tmp_path, *BASE, "trainer.steps=8", "resume=auto")
    assert max(list_checkpoints(near)) == 8


def read_summary_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_a_copied_checkpoint_writes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    train(tmp_path, *BASE)
    (run,) = list_runs(tmp_path)
    (newest, *_) = list_checkpoints(run).values()
    copy = tmp_path / "archive" / "best" / newest.name
    shutil.copytree(newest, copy)
    (tmp_path / "archive" / "summary.json").write_text("mine")
    train(tmp_path, *BASE, "trainer.steps=6", f"resume={copy}")
    assert sorted(path.name for path in (tmp_path / "archive").rglob("*") if path.is_dir()) == ["best", newest.name]
    assert (tmp_path / "archive" / "summary.json").read_text() == "mine"
    assert sorted(summary["steps"] for summary in read_summaries(tmp_path)) == [4, 6]


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("r/checkpoints/step-00000008", "r"),
        ("r/checkpoints", "r"),
        ("r", "r"),
        ("a/b/step-00000008", "a/b/step-00000008"),
        ("r/checkpoints/step-00000008-good", "r/checkpoints/step-00000008-good"),
        ("r/checkpoints/.old-step-00000008", "r"),
        ("step-ladder", "step-ladder"),
        ("step-8", "step-8"),
    ],
)
def test_only_a_checkpoint_among_a_runs_checkpoints_has_a_run(path: str, run: str) -> None:
    assert to_run_folder(Path(path)) == Path(run)
    assert is_checkpoint(Path(path)) == (path.startswith("r/checkpoints/") and run == "r"), "by its name alone"


def find_folder(command: list[str]) -> list[str]:
    """Return the run folder that the preflight gives a command; none where it gets a new one."""
    mistakes, overrides = check_overrides(command, False)
    assert not mistakes
    return [line.removeprefix("hydra.run.dir=") for line in overrides if line.startswith("hydra.run.dir=")]


@pytest.mark.parametrize(
    ("files", "is_run"),
    [({}, False), ({"config.yaml": "mine: 1", "summary.json": "{}"}, False), ({"config.yaml": None}, True),
     ({"config.yaml": "damaged: [", "metrics.jsonl": ""}, True), ({"metrics.jsonl": ""}, True)],
)  # fmt: skip
def test_what_holds_other_things_is_no_run(own_run: Path, tmp_path: Path, files: dict[str, str | None], is_run: bool) -> None:
    """A checkpoint that was copied to X/checkpoints/step-* begins a new run, which leaves what X holds alone."""
    (newest, *_) = list_checkpoints(own_run).values()
    copy = shutil.copytree(newest, tmp_path / "X" / "checkpoints" / newest.name)
    for name, content in files.items():
        (tmp_path / "X" / name).write_text((own_run / name).read_text() if content is None else content)
    command = [*BASE, "trainer.steps=6", f"resume.path={to_override(str(copy))}"]
    assert find_folder(command) == ([to_override(str(tmp_path / "X"))] if is_run else [])
    if not is_run:
        assert find_mistakes([*command, f"hydra.run.dir={to_override(str(tmp_path / 'X'))}"], False)


def test_a_fresh_start_names_the_settings_that_differ(own_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(own_run, tmp_path / "run"))
    there = read_config(run)
    assert describe_newest_run(tmp_path / "new", there) == ""
    text = describe_newest_run(tmp_path / "new", there | {"schedule": {**there["schedule"], "end": 4}})
    assert text == f"{run} has other settings: schedule.end is 4 here, was nothing there"
    assert describe_newest_run(run, there | {"lr": 9}) == "", "itself"


def test_a_finished_run_that_lost_its_checkpoints_is_not_begun_again(own_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(own_run, tmp_path / own_run.parent.name / "run"))
    shutil.rmtree(run / "checkpoints")
    command, there = [*BASE, "resume.path=auto", f"out={to_override(str(tmp_path))}"], [to_override(str(run))]
    assert find_folder(command) == there, "it is told to be finished already"
    for change in ("trainer.steps=6", "callbacks.checkpoint.keep_last=2"):
        assert find_folder([*command, change]) == [], "a new folder"
        (mistake,) = find_mistakes([*command, change, f"hydra.run.dir={there[0]}"], False)
        assert change.partition("=")[0] in mistake, "and nothing is overwritten where that folder is given"
    (run / "checkpoints").write_text("a note")
    assert find_folder([*command, "trainer.steps=6"]) == []
    (run / "summary.json").unlink()
    assert find_folder([*command, "trainer.steps=6"]) == there, "one that was killed begins again"


@pytest.mark.parametrize("name", ["step-ladder", "step-8"])
def test_a_run_may_be_called_like_a_checkpoint(own_run: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(own_run, tmp_path / name))
    by_path, folder = f"resume.path={to_override(str(run))}", f"hydra.run.dir={to_override(str(run))}"
    assert check_overrides([*BASE, by_path, "trainer.steps=6"], False) == ([], [folder])


def test_whole_checkpoints_are_read_once_a_command(own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs the furthest intact one is chosen twice: to be judged, and to be gone on with."""
    checked: list[Path] = []

    def is_intact(folder: Path) -> bool:
        checked.append(folder)
        return True

    monkeypatch.setattr(resume, "is_intact", is_intact)
    for name in ("one", "two"):
        shutil.copytree(own_run, tmp_path / "modular" / name)
    command = [*BASE, "resume.path=auto", f"out={tmp_path}", "trainer.steps=6"]
    for count in (1, 2):
        assert check_overrides(command, False)[1]
        assert len(checked) == count, "and again by the next command: a folder may have changed"


@pytest.mark.parametrize(
    ("subdir", "missing"),
    [("same", "lr, seed"), ("${seed}", "lr"), ("${now:%H}-${lr}", "seed"), ("${name}_${optim.lr}", "seed")],
)
def test_a_sweep_whose_trials_would_share_a_folder_is_refused(subdir: str, missing: str) -> None:
    (mistake,) = find_mistakes([*BASE, "lr=1e-3,1e-4", "seed=0,1", f"hydra.sweep.subdir='{subdir}'"], True)
    assert "hydra.sweep.subdir" in mistake
    assert missing in mistake


@pytest.mark.parametrize(
    "subdir", ["${hydra.job.num}", "${lr}_${trainer.seed}", "${hydra.job.override_dirname}", "t${hydra:job.num}"]
)
def test_a_sweep_whose_trials_have_folders_of_their_own_is_not(subdir: str) -> None:
    assert find_mistakes([*BASE, "lr=1e-3,1e-4", "seed=0,1", f"hydra.sweep.subdir='{subdir}'"], True) == []
