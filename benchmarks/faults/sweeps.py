"""Faults of a sweep: a folder that is held, a full disk, a journal that has changed, trials that would share a folder."""

import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faults.disks import fill_disk, mount_small_disk
from benchmarks.faults.results import Row
from benchmarks.faults.runs import JSONL, Workspace, find_line
from benchmarks.harness import wait_for
from research.contracts import contract
from research.files.locks import lock
from research.run_dir import read_json
from research.tracking.optuna_storage import get_storage

OVERRIDES = ["trainer.steps=300", "eval_every=50", "callbacks.checkpoint.every=20", "callbacks.checkpoint.keep_last=4", JSONL]
SWEEP = ["-m", "lr=1e-3,2e-3,3e-3", "hydra.sweeper.study_name=sweep", "hydra.sweeper.plots=false"]
NEW_UTS = 0x04000000  # of unshare(2): a host name of its own
ELSEWHERE = ["-c", f"import ctypes, os, socket, sys; ctypes.CDLL(None).unshare({NEW_UTS}); socket.sethostname('elsewhere'); "
             "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]  # fmt: skip
Results = dict[int, tuple[str, Any, str]]  # number -> state, values, digest of the weights


@contract
def load_study(folder: Path) -> Any:
    import optuna

    return optuna.load_study(study_name="sweep", storage=get_storage(f"journal://{folder / 'study.journal'}"))


def read_sweep(folder: Path) -> Results:
    """Return what has become of each trial."""
    study = load_study(folder)
    digests = [read_json(folder / str(trial.number) / "summary.json").get("weights_sha256", "") for trial in study.trials]
    return {trial.number: (trial.state.name, trial.values, d) for trial, d in zip(study.trials, digests, strict=True)}


@cache
def run_undisturbed() -> Results:
    """Return the results of a sweep that nothing happens to."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), [*SWEEP, *OVERRIDES])
        code, output = workspace.finish()
        if code:
            raise RuntimeError(output)
        return read_sweep(get_sweep(workspace))


def get_sweep(workspace: Workspace) -> Path:
    return workspace.folder / "out" / "faults" / "sweep"


def count_sweep(row: Row, workspace: Workspace, code: int, output: str, words: str) -> None:
    """Count a sweep that has ended: it should have said `words`, and have the results of one left alone."""
    right = code == 0 and read_sweep(get_sweep(workspace)) == run_undisturbed()
    row.remark = find_line(output, workspace.folder, words if right else "rror")
    row.count("survived" if right and words in output else "error" if code else "wrong")


def hold_folder() -> Row:
    """Let somebody else hold the folder of a trial as the sweep begins: the others run, and it waits."""
    row = Row("held folder in a sweep")
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name), [*SWEEP, *OVERRIDES])
        sweep = get_sweep(workspace)
        with lock(sweep / "0"):
            process = workspace.start()
            wait_for((sweep / "2" / "summary.json").exists)
        output, _ = process.communicate(timeout=120)
        count_sweep(row, workspace, process.returncode, output, "#0 waits for its folder")
    return row


def sleep_through_lease() -> Row:
    """Suspend a sweep until another machine takes its trial for dead: nobody runs it again, and its result counts.

    The other machine is a process with another name of the host.
    """
    row = Row("a pause longer than a lease")
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name), [*SWEEP, *OVERRIDES, "hydra.sweeper.lease=2"])
        sweep = get_sweep(workspace)
        sleeper = workspace.start()
        wait_for(lambda: (log := sweep / "0" / "metrics.jsonl").exists() and log.stat().st_size > 1000)
        sleeper.send_signal(signal.SIGSTOP)
        other = workspace.start(launcher=ELSEWHERE)
        try:
            wait_for(lambda: (sweep / "2" / "summary.json").exists() or other.poll() is not None)
        finally:
            sleeper.send_signal(signal.SIGCONT)
        outputs = [process.communicate(timeout=120)[0] for process in (sleeper, other)]
        if "PermissionError" in outputs[1]:
            row.remark = "not tried: no other name of the host can be given here (it takes root)"
            return row
        again = [trial.number for trial in load_study(sweep).trials if trial.user_attrs.get("tries", 1) > 1]
        code = sleeper.returncode or other.returncode
        count_sweep(row, workspace, code, "".join(outputs), "for #0, which other processes hold")
        if again:
            row.survived, row.wrong, row.remark = 0, 1, f"run again: {again}"
    return row


def fill_disk_of_sweep() -> Row:
    """Fill the disk in the second trial: after room is made, the same command ends the sweep as if nothing had been."""
    row = Row("full disk in a sweep")
    with mount_small_disk(row, 20) as disk:
        if disk is None:
            return row
        workspace = Workspace(disk, [*SWEEP, *OVERRIDES])
        process = workspace.start()
        wait_for((get_sweep(workspace) / "1" / "metrics.jsonl").exists)
        fill_disk(disk)
        output, _ = process.communicate(timeout=120)
        (disk / "filler").unlink()
        said = find_line(output, disk, "once there is room") or find_line(output, disk, "lack room")
        clear = process.returncode == 1 and said and "Traceback" not in output
        code, output = workspace.finish()
        count_sweep(row, workspace, code, output, "")
        if not clear:
            row.survived, row.wrong = 0, 1
        row.remark = said or find_line(output, disk, "rror")
    return row


def change_value(journal: Path) -> None:
    """Let the worst trial have the best value: a digit more."""
    text = journal.read_text()
    values = [float(value) for value in re.findall(r'"values":\[([^]]+)\]', text)]
    journal.write_text(text.replace(f'"values":[{min(values)}', f'"values":[{"9" + str(min(values))[1:]}'))


def cut_line(journal: Path) -> None:
    """Lose the half of the line that has a result."""
    lines = journal.read_text().splitlines(keepends=True)
    index = next(index for index, line in enumerate(lines) if '"values":[0' in line)
    journal.write_text("".join([*lines[:index], lines[index][:20] + "\n", *lines[index + 1 :]]))


def damage_journal() -> Row:
    """Change the journal of a study that has ended: the same command names the line, and has every result."""
    row, changes = Row("a study's journal damaged"), (change_value, cut_line)
    with tempfile.TemporaryDirectory() as name:
        original = Workspace(Path(name, "original"), [*SWEEP, *OVERRIDES])
        original.finish()
        for change in changes:
            workspace = Workspace(Path(name, change.__name__), original.overrides)
            shutil.copytree(get_sweep(original), get_sweep(workspace))
            change(get_sweep(workspace) / "study.journal")
            code, output = workspace.finish()
            count_sweep(row, workspace, code, output, "study.journal, line")
    return row


def share_folder() -> Row:
    """Let the trials of a sweep share a folder: it is refused before anything is written."""
    row = Row("trials that would share a folder")
    for subdir in ("same", "${seed}", "${now:%H}"):
        with tempfile.TemporaryDirectory() as name:
            workspace = Workspace(Path(name), [*SWEEP, *OVERRIDES])
            code, output = workspace.finish(f"hydra.sweep.subdir='{subdir}'")
            row.remark = find_line(output, Path(name), "hydra.sweep.subdir")
            row.count("survived" if code == 2 and row.remark and not Path(name, "out").exists() else "wrong")
    return row


ALL: tuple[Callable[[], Row], ...] = (
    share_folder, damage_journal, hold_folder, sleep_through_lease, fill_disk_of_sweep,
)  # fmt: skip
