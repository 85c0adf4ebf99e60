"""Row 10: what a later start relies on is on the disk before it is relied upon (power cut).

The image of a mounted file system is copied while a run goes on: the copy holds what a power cut would have left.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from program import TINY, Fork, make_environment, read_summaries, run
from sweep_worker import make_worker
from torch.distributed.checkpoint.metadata import Metadata

from research import run_dir
from research.run_dir import RunConfig, list_checkpoints
from research.sweep.plan import set_folder
from research.tracking.run_folder import begin_run_folder
from research.training.shard_files import METADATA_FILE, write_metadata

ROOT = Path(__file__).resolve().parents[2]
LONG = [*TINY, "trainer.steps=4000", "callbacks.checkpoint.every=5", "trainer.eval_every=1000", "tracker=jsonl"]


def test_all_that_a_start_writes_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contents of each file, and the folder that holds its name; a sweep's folder too."""
    synced: list[Path] = []
    monkeypatch.setattr(run_dir, "sync", synced.append)
    own, sweep, shards = (tmp_path / name for name in ("out/run", "out/sweep", "shards"))
    begin_run_folder(RunConfig("", "", own, {"resume": {"path": None}}, ["lr=1"], {}), "lr: 1\n", {"host": "here"}, "a change")
    shards.mkdir()
    write_metadata(shards, Metadata({}, storage_data={}))
    worker = make_worker(tmp_path, lambda number, folder: 0.0)
    set_folder(worker.plan, {"folder": str(sweep), "study": "s"})
    worker.queue.close()
    files = [own / name for name in ("config.yaml", "overrides.txt", "env.json", "git.diff")]
    for file in (*files, shards / METADATA_FILE):
        assert file.exists()
        assert any(path.parent == file.parent and path.name.startswith(f".{file.name}.") for path in synced), file
    assert {own, shards, own.parent, tmp_path} <= {*synced}
    assert synced[-1] == sweep.parent


@contextmanager
def mount_image(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no image can be mounted here (it takes root and loop devices): {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 image whose journal writes nothing by itself for longer than the test, and where it is mounted."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("mkfs.ext4 is not installed")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mount_image(image, tmp_path / "disk") as folder:
        subprocess.run(["mount", "-o", "remount,commit=300", str(folder)], check=True)
        yield image, folder


@pytest.mark.slow
def test_a_run_goes_on_after_a_power_cut(tmp_path: Path, disk: tuple[Path, Path]) -> None:
    image, folder = disk
    environment = make_environment(tmp_path)
    argv = [str(ROOT / "train.py"), *LONG, f"out={folder / 'out'}"]
    fork = Fork(argv, tmp_path, environment)
    for _ in range(600):
        runs = [path for path in (folder / "out").glob("*/*/") if len(list_checkpoints(path)) > 1]
        if runs:
            break
        time.sleep(0.1)
    shutil.copy(image, tmp_path / "copy.img")
    fork.send_signal(9)
    fork.communicate()
    with mount_image(tmp_path / "copy.img", tmp_path / "after") as after:
        (own,) = (after / "out").glob("*/*/")
        files = {name: (own / name).stat().st_size for name in ("config.yaml", "overrides.txt", "env.json")}
        assert all(files.values()), files
        step = max(list_checkpoints(own))
        (tmp_path / "out").symlink_to(after / "out")
        more = [*LONG, f"trainer.steps={step + 5}", "resume=auto", f"out={after / 'out'}"]
        done = run([str(ROOT / "train.py"), *more], tmp_path, environment)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (after / "out").glob("*/*/")] == [own.name]
        (summary,) = read_summaries(tmp_path)
        assert (summary["status"], summary["steps"]) == ("FINISHED", step + 5)
