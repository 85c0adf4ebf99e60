"""Faults of a run folder between a kill and the next start: files damaged, moved, linked or copied, and other settings."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.results import Row
from benchmarks.faults.runs import JSONL, Workspace, classify_run, find_line, run_undisturbed
from research.contracts import contract
from research.run_dir import list_checkpoints

OVERRIDES = ["trainer.steps=400", "eval_every=100", "callbacks.checkpoint.every=100", JSONL]
Change = Callable[[Path], object]  # of a run folder, or of one of its files


class Source(NamedTuple):
    """A run that was ended on its way: its folder, its newest step that was saved, and the result it should come to."""

    run: Path
    saved: int
    expected: tuple[str, list[dict[str, Any]]]

    @contract
    def copy(self, folder: Path) -> tuple[Workspace, Path]:
        """Return a place for a command, with a copy of the run."""
        run = shutil.copytree(self.run, folder / "out" / "faults" / self.run.name)
        return Workspace(folder, OVERRIDES), run


@cache
def make_source(signum: signal.Signals) -> Source:
    """Run until the signal ends it: kill -9 leaves steps after the newest checkpoint, SIGTERM a summary.json."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    workspace = Workspace(Path(folder), OVERRIDES)
    process = workspace.start()
    workspace.wait_for_steps(250)
    process.send_signal(signum)
    process.communicate()
    run = workspace.get_run()
    return Source(run, max(list_checkpoints(run)), run_undisturbed(OVERRIDES))


@contract
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@contract
def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Flip a bit of a digit in the middle: it becomes another digit."""
    content = bytearray(path.read_bytes())
    index = next(index for index in range(len(content) // 2, len(content)) if chr(content[index]).isdecimal())
    content[index] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Change] = {"cut": cut, "empty": empty, "deleted": Path.unlink, "digit changed": flip}
RECORDS = (  # a file, what ends the run before it is damaged, and which damage need not be named
    ("metrics.jsonl", signal.SIGKILL, ()),
    ("config.yaml", signal.SIGKILL, ()),
    ("env.json", signal.SIGKILL, ()),
    ("overrides.txt", signal.SIGKILL, ()),
    ("summary.json", signal.SIGTERM, ("deleted",)),  # a run that was killed has none
)


def get_newest(run: Path) -> Path:
    return next(iter(list_checkpoints(run).values()))


def name_later(run: Path, prefix: str) -> Path:
    """Return where a checkpoint, or a draft of one, will be written."""
    return run / "checkpoints" / f"{prefix}{max(list_checkpoints(run)) + 100:08d}"


def link_away(path: Path, away: Path) -> None:
    """Move a folder elsewhere, and leave a link to it."""
    shutil.move(path, away)
    path.symlink_to(away)


def copy_by_links(run: Path) -> None:
    """As cp -al does, out of where runs are looked for."""
    shutil.copytree(run, run.parents[2] / "copy", copy_function=os.link)


MOVES: dict[str, Change] = {
    "newest checkpoint behind a link": lambda run: link_away(get_newest(run), run.parents[2] / "away"),
    "all checkpoints behind a link": lambda run: link_away(run / "checkpoints", run.parents[2] / "away"),
    "a file called as a later step": lambda run: name_later(run, "step-").write_text("a note"),
    "a link to nowhere called as a later step": lambda run: name_later(run, "step-").symlink_to("gone"),
    "a draft left behind": lambda run: shutil.copytree(get_newest(run), name_later(run, ".draft-") / "deep"),
    "a draft that is a file": lambda run: name_later(run, ".draft-").write_text("a note"),
    "run folder renamed": lambda run: run.rename(run.with_name("renamed")),
    "run folder copied": copy_by_links,
}


@contract
def damage_record(name: str, signum: signal.Signals, unnamed: tuple[str, ...]) -> Row:
    """Damage a file of the run folder in each way: the same command goes on to the same end, and names it."""
    row, source = Row(f"{name} damaged"), make_source(signum)
    for kind, change in DAMAGE.items():
        with tempfile.TemporaryDirectory() as folder:
            workspace, run = source.copy(Path(folder))
            change(run / name)
            outcome, output = classify_run(workspace, row, source.saved, source.expected, "resume=auto")
            if outcome == "survived" and kind not in unnamed and name not in output:
                outcome, row.remark = "wrong", f"{kind}: the damage is not named"
            row.count(outcome)
    return row


@contract
def move_things() -> Row:
    """Move, link and copy what belongs to a run, or put something in its way: the same command goes on, to the same end."""
    row, source = Row("moved and linked things"), make_source(signal.SIGKILL)
    for kind, change in MOVES.items():
        with tempfile.TemporaryDirectory() as folder:
            workspace, run = source.copy(Path(folder))
            change(run)
            outcome, _ = classify_run(workspace, row, source.saved, source.expected, "resume=auto")
            if (copy := Path(folder, "copy")).exists() and not is_same(copy, source.run):
                outcome = "wrong"
            row.count(outcome)
            row.remark = row.remark if outcome == "survived" else f"{kind}: {row.remark}"
    return row


@contract
def is_same(copy: Path, run: Path) -> bool:
    """Return whether two folders have the same files with the same content."""
    files = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (copy, run)]
    return files[0] == files[1]


@contract
def copy_checkpoint_out() -> Row:
    """Go on from a checkpoint that was copied elsewhere: to the same weights, and nothing beside the copy is touched."""
    row, source = Row("checkpoint copied out"), make_source(signal.SIGKILL)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "archive", "best")
        copy = shutil.copytree(get_newest(source.run), archive / get_newest(source.run).name)
        (archive.parent / "summary.json").write_text("mine")
        before = shutil.copytree(archive.parent, Path(folder, "before"))
        workspace = Workspace(Path(folder), OVERRIDES)
        code, output = workspace.finish(f"resume={copy}")
        right = not code and workspace.read_result()[0] == source.expected[0] and is_same(before, archive.parent)
        row.remark = "" if right else find_line(output, Path(folder), "rror")
        row.count("survived" if right else "error" if code else "wrong")
    return row


@contract
def resume_other_settings() -> Row:
    """Ask for a run of other settings by resume=auto: it gets a folder of its own, and is refused in that of this one."""
    row, source = Row("resume=auto with other settings"), make_source(signal.SIGKILL)
    with tempfile.TemporaryDirectory() as folder:
        for number, change in enumerate(("lr=3e-3", "seed=1", "batch_size=8")):
            workspace, run = source.copy(Path(folder, str(number)))
            code, output = workspace.finish("resume=auto", change, f"hydra.run.dir={run}")
            refused = code == 2 and "holds a run of other settings" in output
            row.remark = find_line(output, run, "holds a run")
            row.count("survived" if refused and is_same(run, source.run) else "wrong")
            code, _ = workspace.finish("resume=auto", change)
            untouched = is_same(run, source.run)
            shutil.rmtree(run)
            right = not code and untouched and workspace.read_result() == run_undisturbed([*OVERRIDES, change])
            row.count("survived" if right else "wrong")
    return row
