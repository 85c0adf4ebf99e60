"""Row 15: linked, moved and copied things never wedge a run, never split it, never put two runs into one record."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fitting import fit, make_state, read_metrics
from mlflow.tracking import MlflowClient
from program import ROOT, TINY, create_empty_store, start_run, train, wait_for_run
from torch import nn

from research.composition.overrides import to_literal
from research.files.locks import lock
from research.preflight.check import find_mistakes
from research.run_dir import RunConfig, check_links, list_checkpoints, replace_file
from research.tracking.jsonl import FINISHED
from research.tracking.mlflow import MLflow
from research.tracking.mlflow_store import read_run_id, upload_report
from research.tracking.storage import FileLock
from research.training import checkpoint
from research.training.checkpoint import hash_weights
from research.training.state import Callback, State

LAST = 12
SETTINGS: dict[str, Any] = {"log_every": 2, "eval_every": 4, "every": 2, "keep_last": 2}


def link_away(root: Path) -> None:
    """The newest checkpoint lies on another disk."""
    away = root.parents[1] / "away"
    shutil.move(root / "step-00000006", away)
    (root / "step-00000006").symlink_to(away)


def link_to_nowhere(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).symlink_to(root / "gone")


def write_file(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text("a note")


def move_root(root: Path) -> None:
    """All checkpoints lie on another disk."""
    shutil.move(root, root.parents[1] / "away")
    root.symlink_to(root.parents[1] / "away")


def leave_draft_link(root: Path) -> None:
    (root.parents[1] / "precious").mkdir()
    (root.parents[1] / "precious" / "file").write_text("precious")
    (root / ".draft-00000008").symlink_to(root.parents[1] / "precious")


def leave_draft(root: Path) -> None:
    shutil.copytree(root / "step-00000006", root / ".draft-00000008" / "deep" / "deeper")


def replace_by_file(root: Path) -> None:
    """A kill came while step 6 was replaced, and then something wrote a file in its place."""
    (root / "step-00000006").rename(root / ".old-step-00000006")
    (root / "step-00000006").write_text("a note")


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "a checkpoint that is a link": link_away,
    "all checkpoints behind a link": move_root,
    "a file of an older step": write_file("step-00000003"),
    "a file of a later step": write_file("step-00000008"),
    "a link to nowhere": link_to_nowhere("step-00000008"),
    "an old link to nowhere": link_to_nowhere("step-00000003"),
    "a file among the old": write_file(".old-step-00000008"),
    "a file in place of one that was replaced": replace_by_file,
    "a draft": leave_draft,
    "a draft that is a file": write_file(".draft-00000008"),
    "a draft that is a link": leave_draft_link,
    "a draft that leads nowhere": link_to_nowhere(".draft-00000008"),
    "a copy by hand": lambda root: shutil.copytree(root / "step-00000006", root / "step-00000006-good"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of six steps, and the digest of the weights with which it ends where it goes on in another folder."""
    root = tmp_path_factory.mktemp("undisturbed")
    fit(root / "run", steps=6, **SETTINGS)
    source = Path(shutil.copytree(root / "run" / "checkpoints" / "step-00000006", root / "source" / "step-00000006"))
    return root / "run", hash_weights(fit(root / "same", resume=source, steps=LAST, **SETTINGS).model)


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_lies_among_the_checkpoints_stops_nothing(undisturbed: tuple[Path, str], tmp_path: Path, kind: str) -> None:
    """The run goes on, to the same bits; its checkpoints are rotated; what lies behind a link stays."""
    first, digest = undisturbed
    run = Path(shutil.copytree(first, tmp_path / "run"))
    IN_THE_WAY[kind](run / "checkpoints")
    before = {path: path.read_bytes() for name in ("away", "precious") for path in (tmp_path / name).rglob("model.*")}
    end = fit(run, resume=run, steps=LAST, **SETTINGS)
    if kind != "all checkpoints behind a link":
        assert all(path.read_bytes() == content for path, content in before.items())
    if kind == "a draft that is a link":
        assert (tmp_path / "precious" / "file").read_text() == "precious"
    assert len(list_checkpoints(run)) in (2, 3)
    newest, snapshot = checkpoint.load_newest(run)
    assert (newest.name, snapshot.step) == (f"step-{LAST:08d}", LAST)
    assert [line["step"] for line in read_metrics(run)] == list(range(2, LAST + 1, 2))
    assert not list((run / "checkpoints").glob(".*"))
    assert hash_weights(end.model) == digest


@pytest.mark.parametrize("kind", ["file", "link"])
def test_where_no_checkpoint_can_be_saved_the_run_does_not_begin(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    root = tmp_path / "run" / "checkpoints"
    root.write_text("a note") if kind == "file" else root.symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="checkpoints is no folder"):
        fit(tmp_path / "run", steps=LAST, **SETTINGS)
    assert read_metrics(tmp_path / "run") == []


OLD = ROOT / "tests" / "fixtures" / "v1"
COMMAND = ["model=bitmlp", "data=digits", "optim=adamw", "batch_size=16", "model.dim=16", "model.depth=1", "steps=40"]
LINKS = [
    ".lock",
    "train.log",
    "metrics.jsonl",
    "git.diff",
    "summary.json",
    "env.json",
    "plots/curves.png",
    "plots",
    "gone",
    "leak.txt",
]


@pytest.mark.parametrize("name", LINKS)
def test_a_run_writes_through_no_link_of_its_folder(tmp_path: Path, name: str) -> None:
    """A folder that somebody else has made may lead to any file of the user's."""
    run, precious = Path(shutil.copytree(OLD / "digits", tmp_path / "run")), tmp_path / "precious"
    shutil.rmtree(run / "plots", ignore_errors=True)
    link = run / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    precious.mkdir() if name == "plots" else precious.write_text("precious")
    link.symlink_to(tmp_path / "nowhere" if name == "gone" else precious)
    (mistake,) = find_mistakes([f"resume.path={to_literal(str(run))}", *COMMAND], multirun=False)
    assert f"{link} is a link: what is written there would go elsewhere" in mistake
    with pytest.raises(ValueError, match=f"{link} is a link"):
        check_links(run)
    assert name == "plots" or precious.read_text() == "precious"


def test_folders_on_another_disk_are_no_such_links(tmp_path: Path) -> None:
    for name in ("checkpoints", "0"):
        (tmp_path / "away" / name).mkdir(parents=True)
        (tmp_path / name).symlink_to(tmp_path / "away" / name)
    check_links(tmp_path)


def test_a_lock_and_a_picture_keep_what_a_link_leads_to(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / ".lock"
    precious.write_text("precious")
    link.symlink_to(precious)
    for holder in (lock(tmp_path), FileLock(link)):
        with pytest.raises(OSError, match=r"\.lock"), holder:
            pass
    with replace_file(link) as draft:
        draft.write_text("new")
    assert (precious.read_text(), link.read_text(), link.is_symlink()) == ("precious", "new", False)


class Move(Callback):
    """Do something to the run folder at a step."""

    def __init__(self, action: Callable[[Path], object], step: int = 5) -> None:
        self.action, self.step = action, step

    def on_step(self, state: State) -> None:
        if state.progress.step == self.step and state.info.folder:
            self.action(state.info.folder)


def replace_by_another(run: Path) -> None:
    run.rename(run.with_name("moved"))
    (run / "checkpoints").mkdir(parents=True)


MOVES: dict[str, Callable[[Path], object]] = {
    "renamed": lambda run: run.rename(run.with_name("moved")),
    "deleted": shutil.rmtree,
    "replaced": replace_by_another,
    "a file": lambda run: (run.rename(run.with_name("moved")), run.write_text("a note")),
    "renamed in a save": lambda run: (run.rename(run.with_name("moved")), (run / "draft").write_text("half")),
}


@pytest.mark.parametrize("kind", MOVES)
def test_a_folder_that_is_moved_ends_the_run_and_is_not_made_again(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=f"{run} was moved, replaced or deleted while the run wrote to it"):
        fit(run, Move(MOVES[kind]), steps=LAST, health=True, **SETTINGS)
    assert [path for path in run.rglob("*") if path.is_file()] == [], "nothing is written there"
    assert run.is_dir() == (kind == "replaced")
    if kind != "deleted":
        moved = tmp_path / "moved"
        assert list(list_checkpoints(moved)) == [4, 2], "what was saved is whole, where it is now"
        fit(moved, resume=moved, steps=LAST, **SETTINGS)
        assert [line["step"] for line in read_metrics(moved)] == list(range(2, LAST + 1, 2))


@pytest.mark.parametrize("kind", MOVES)
def test_a_folder_that_is_moved_before_anything_is_written_there(tmp_path: Path, kind: str) -> None:
    """Before the first log point, evaluation and checkpoint."""
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=f"{run} was moved, replaced or deleted"):
        fit(run, Move(MOVES[kind], step=1), steps=LAST, log_every=100, eval_every=100)
    assert [path for path in run.rglob("*") if path.is_file()] == []


def test_a_folder_that_is_gone_before_the_first_step(tmp_path: Path) -> None:
    """The program's run has made its own; that of a run without a configuration comes with its first checkpoint."""
    make_state(nn.Linear(2, 2), folder=tmp_path / "gone").require_folder()
    with pytest.raises(FileNotFoundError, match="gone was moved, replaced or deleted"):
        make_state(nn.Linear(2, 2), folder=tmp_path / "gone", config={"name": "x"}).require_folder()


def test_a_copy_made_by_links_shares_no_file(tmp_path: Path) -> None:
    """cp -al: the copy's metrics are the same file, until one of the two goes on."""
    fit(tmp_path / "run", steps=6, **SETTINGS)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=os.link)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    fit(tmp_path / "copy", resume=tmp_path / "copy", steps=LAST, **SETTINGS)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert checkpoint.load_newest(tmp_path / "run")[1].step == 6


def test_the_program_writes_to_no_file_that_a_copy_by_links_shares(tmp_path: Path) -> None:
    """Nor to its train.log and its pictures, which are written in place."""
    train(tmp_path, *TINY, "tracker=jsonl")
    (run,) = (tmp_path / "out" / "modular").iterdir()
    copy = shutil.copytree(run, tmp_path / "copy", copy_function=os.link)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train(tmp_path, *TINY, "tracker=jsonl", "trainer.steps=6", f"resume={copy}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "step 6/6" in (copy / "train.log").read_text()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(create_empty_store(), path)
    return f"sqlite:///{path}"


def track(uri: str, folder: Path, **facts: Any) -> str:
    tracker = MLflow(uri)
    tracker.start(RunConfig("name", "study", folder, {}, [], {}, **facts))
    tracker.finish(FINISHED, {})
    assert not tracker.delivery.error
    assert tracker.run_id
    return tracker.run_id


def test_a_copied_run_folder_has_a_record_of_its_own(uri: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first, client = track(uri, tmp_path / "run"), MlflowClient(uri)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    second = track(uri, tmp_path / "copy", resumed=True)
    assert second != first
    assert [client.get_run(run).data.tags["folder"] for run in (first, second)] == [str(tmp_path / n) for n in ("run", "copy")]
    assert [track(uri, tmp_path / name, resumed=True) for name in ("run", "copy")] == [first, second], (
        "each its own, ever after"
    )
    (tmp_path / "run").rename(tmp_path / "moved")
    assert track(uri, tmp_path / "moved", resumed=True) == first, "a moved one is no copy"
    assert client.get_run(first).data.tags["folder"] == str(tmp_path / "moved")
    (tmp_path / "run").symlink_to(tmp_path / "moved")
    assert track(uri, tmp_path / "run", resumed=True) == first, "nor is the same folder under another name"


def test_the_export_of_a_copy_leaves_the_record_of_the_first_alone(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    first, client = track(uri, tmp_path / "run"), MlflowClient(uri)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "export.json").write_text("{}")
    for name in ("copy", "run"):
        upload_report(tmp_path / name, tmp_path / "export.json", f"export/{name}", None)
    assert f"{tmp_path / 'copy'} is a copy of the folder of run {first}" in capsys.readouterr().err
    assert [item.path for item in client.list_artifacts(first, "export")] == ["export/run"]


def test_what_lies_on_another_machine_is_taken_for_a_copy(uri: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first, client = track(uri, tmp_path / "run"), MlflowClient(uri)
    client.set_tag(first, "host", "elsewhere")
    assert track(uri, tmp_path / "run", resumed=True) == first, "a shared file system: the same folder"
    (tmp_path / "run").rename(tmp_path / "brought")
    assert track(uri, tmp_path / "brought", resumed=True) != first


def test_a_copied_sweep_has_a_record_of_its_own(uri: str, tmp_path: Path) -> None:
    client, parents = MlflowClient(uri), {}
    for name in ("sweep", "copy"):
        if name == "copy":
            shutil.copytree(tmp_path / "sweep", tmp_path / "copy")
            with pytest.raises(ValueError, match="is a copy of the folder of run"):
                read_run_id(client, tmp_path / "copy")
        folder = tmp_path / name / ("0" if name == "sweep" else "1")
        folder.mkdir(parents=True)
        run = client.get_run(track(uri, folder, sweep_folder=tmp_path / name))
        parents[name] = run.data.tags["mlflow.parentRunId"]
        assert read_run_id(client, tmp_path / name) == parents[name]
    assert parents["sweep"] != parents["copy"]


def test_the_program_ends_at_once_where_its_folder_is_renamed(tmp_path: Path) -> None:
    """As a user does it: exit code 1 with one message, nothing split, and the folder goes on from where it is."""
    arguments = [*TINY, "name=moved", "trainer.log_every=1", "trainer.eval_every=10", "callbacks.checkpoint.every=10"]
    process = start_run(tmp_path, *arguments, "trainer.steps=100000")
    run = wait_for_run(tmp_path, "moved", 25)
    run.rename(run.with_name("elsewhere"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{run} was moved, replaced or deleted" in errors
    assert [path.name for path in run.parent.iterdir()] == ["elsewhere"]
    train(tmp_path, *arguments, "trainer.steps=40", f"resume={run.with_name('elsewhere')}")
    assert [path.name for path in run.parent.iterdir()] == ["elsewhere"]


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    """With its tokenizer, which other text would have made another."""
    text, run = tmp_path / "a.txt", tmp_path / "run"
    text.write_text("the weights are packed, the text is read, and the network learns it. " * 300, encoding="utf-8")
    words = [
        "trainer=debug",
        "model.dim=16",
        "model.heads=2",
        "data=text",
        f"data.path={text}",
        "data.seq_len=16",
        "tracker=jsonl",
    ]
    words += ["tokenizer=bpe", "data.tokenizer.vocab_size=280", "batch_size=4", "trainer.device=cpu"]
    train(tmp_path, *words, "trainer.steps=2", f"hydra.run.dir={run}")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "train.log"}
    text.write_text(text.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    assert "data is " in train(tmp_path, *words, "trainer.steps=4", f"resume={run}", fails=True).stderr
    assert {file: file.read_bytes() for file in before} == before
