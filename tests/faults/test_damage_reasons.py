"""Row 26: the right reason: what is damaged behind right digests, and a file system without locks."""

import errno
import fcntl
import io
import json
import logging
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting import fit
from safetensors.torch import save

from research import run_dir
from research.files import locks
from research.preflight.check import check_overrides
from research.tracking import storage
from research.tracking.storage import FileLock
from research.training import checkpoint
from research.training.checkpoint import STATE_FILE
from research.training.manifest import MANIFEST_FILE, DamagedError, Manifest

WEIGHTS = "model.safetensors"
SETTINGS: dict[str, Any] = {"steps": 4, "every": 2, "log_every": 2, "eval_every": 2, "keep_last": 2}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 2 and 4."""
    fit(tmp_path / "run", **SETTINGS)
    assert list(run_dir.list_checkpoints(tmp_path / "run")) == [4, 2]
    return tmp_path / "run"


def to_pt(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Put a file into a checkpoint whose manifest has the right size and digest of it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    manifest.pop("sha256", None)
    digest = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"sha256": digest}))


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        write_manifest(folder, json.loads((folder / MANIFEST_FILE).read_text()) | changes)

    return edit


def make_safetensors(header: bytes, size: int | None = None) -> Callable[[Path], None]:
    content = (len(header) if size is None else size).to_bytes(8, "little") + header
    return lambda folder: replace_file(folder, WEIGHTS, content)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {  # all of it with right digests; and the file that is named
    "deep manifest": (lambda folder: (folder / MANIFEST_FILE).write_text("[" * 100_000), MANIFEST_FILE),
    "deep object": (lambda folder: (folder / MANIFEST_FILE).write_text('{"step":' * 100_000), MANIFEST_FILE),
    "a list": (lambda folder: (folder / MANIFEST_FILE).write_text("[1]"), MANIFEST_FILE),
    "bytes": (lambda folder: (folder / MANIFEST_FILE).write_bytes(b"\xff\xfe"), MANIFEST_FILE),
    "no step": (edit_manifest(step="two"), MANIFEST_FILE),
    "no identity": (edit_manifest(identity=[]), MANIFEST_FILE),
    "files are a list": (edit_manifest(files=[WEIGHTS]), MANIFEST_FILE),
    "a file without digest": (edit_manifest(files={WEIGHTS: {"size": 3}}), WEIGHTS),
    "no files": (edit_manifest(files={}), MANIFEST_FILE),
    "an unknown key": (edit_manifest(colour="blue"), MANIFEST_FILE),
    "a later version": (edit_manifest(version=99), MANIFEST_FILE),
    "a version that is a word": (edit_manifest(version="x"), MANIFEST_FILE),
    "header is no JSON": (make_safetensors(b"nonsense"), WEIGHTS),
    "header is deep": (make_safetensors(b'{"a":' * 5000), WEIGHTS),
    "header is longer than the file": (make_safetensors(b"{}", 1 << 40), WEIGHTS),
    "header of another type": (make_safetensors(b'{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}    '), WEIGHTS),
    "offsets beyond the end": (make_safetensors(b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'), WEIGHTS),
    "no header at all": (lambda folder: replace_file(folder, WEIGHTS, b""), WEIGHTS),
    "state is empty": (lambda folder: replace_file(folder, STATE_FILE, b""), STATE_FILE),
    "state is half a zip": (lambda folder: replace_file(folder, STATE_FILE, to_pt({})[:200]), STATE_FILE),
    "state is no pickle": (lambda folder: replace_file(folder, STATE_FILE, b"\x80\x02nonsense"), STATE_FILE),
    "state is a list": (lambda folder: replace_file(folder, STATE_FILE, to_pt([1])), STATE_FILE),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_damage_though_its_digests_are_right(tmp_path: Path, kind: str) -> None:
    """In place of the older checkpoint, the newest of which is broken: each reason is named, and nothing else is raised."""
    (tmp_path / "run").mkdir()
    for step in (2, 4):
        state, weights = {"memory": torch.ones(3)}, {"model": {"w": torch.ones(3)}}
        manifest = Manifest(step, {"model": "m"})
        checkpoint.commit(tmp_path / "run" / "checkpoints", checkpoint.Snapshot(manifest, weights, state))
    run, (damage, name) = tmp_path / "run", BAD[kind]
    newest, older = run_dir.list_checkpoints(run).values()
    damage(older)
    with pytest.raises(DamagedError, match=name):
        checkpoint.read(older)
    (newest / WEIGHTS).write_bytes(b"")
    with pytest.raises(ValueError, match=f"no usable checkpoint.*{newest.name}: {WEIGHTS} has 0 bytes.*{older.name}: {name}"):
        checkpoint.load_newest(run)


MISFITS: dict[str, Callable[[Path], None]] = {
    "weights of another model": lambda folder: replace_file(folder, WEIGHTS, save({"w": torch.ones(3)})),
    "no progress": lambda folder: replace_file(folder, STATE_FILE, to_pt({"stateful": {}, "optimizer": {}})),
    "progress is a number": lambda folder: replace_file(folder, STATE_FILE, to_pt({"progress": 3, "stateful": {}})),
    "an optimizer that is a list": lambda folder: replace_file(folder, STATE_FILE, to_pt({"optimizer": [], "stateful": {}})),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_files_that_do_not_belong_together_are_refused(run: Path, kind: str) -> None:
    newest = run / "checkpoints" / "step-00000004"
    MISFITS[kind](newest)
    with pytest.raises(ValueError, match=r"resume=.*step-00000004: its files do not belong together"):
        fit(run, resume=newest, **SETTINGS | {"steps": 8})


NO_LOCKS = ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EIO")


@pytest.mark.parametrize("name", NO_LOCKS)
def test_a_file_system_without_locks_holds_nobody_up(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(file: object, kind: int) -> None:
        raise OSError(getattr(errno, name), "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), locks.lock(tmp_path):
        assert f"{tmp_path / '.lock'} cannot be locked (no locks)" in caplog.text
        assert not locks.is_locked(tmp_path)
    with pytest.raises(OSError, match=r"store.lock cannot be locked \(no locks\): this file system has no locks"):
        FileLock(tmp_path / "store.lock").acquire()


URI = "sqlite:///{root}/x/mlflow.db"
READ_ONLY = {  # what names the store -> what the message begins with
    "nothing": ([], {}, "tracker=mlflow: {root} cannot be written to"),
    "the variable": ([], {"MLFLOW_TRACKING_URI": URI}, f"MLFLOW_TRACKING_URI={URI}: {{root}} cannot be written to"),
    "the setting": ([f"tracker.uri={URI}"], {}, f"tracker.uri={URI}: {{root}} cannot be written to"),
    "a query and a driver": (["tracker.uri='sqlite+pysqlite:///{root}/x%20y.db?timeout=9'"], {}, "{root} cannot be written to"),
    "a home folder": (["tracker.uri='sqlite:///~/x/mlflow.db'"], {"HOME": "{root}"}, "{root} cannot be written to"),
    "another place": (["tracker.uri=sqlite:///{out}/mlflow.db"], {}, ""),
    "a server": ([], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, ""),
    "no store": (["tracker=jsonl"], {}, ""),
}


@pytest.mark.parametrize("case", READ_ONLY)
def test_a_read_only_checkout_blames_what_names_its_store(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch is imported, and nothing is blamed that nobody has set."""
    root, out, (words, variables, expected) = tmp_path / "checkout", tmp_path / "out", READ_ONLY[case]
    root.mkdir()
    out.mkdir()
    monkeypatch.setattr(storage, "DEFAULT_URI", f"sqlite:///{root / 'outputs' / 'mlflow.db'}")
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(root=root))
    mistakes, _ = check_overrides([*(word.format(root=root, out=out) for word in words), f"out={out}"], False)
    assert len(mistakes) == bool(expected)
    fix = "give tracker.uri=sqlite:////FOLDER/mlflow.db elsewhere" + ", or tracker=jsonl" * (not words)  # which takes no uri
    words_once = [mistake.replace("\n  ", ": ", 1) for mistake in mistakes]  # the head, and what is wrong with it
    assert all(expected.format(root=root) in mistake and fix in mistake for mistake in words_once)


def test_a_folder_that_is_held_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locks.lock(tmp_path):
        assert locks.is_locked(tmp_path)
        with pytest.raises(ValueError, match="another run is writing"), locks.lock(tmp_path):
            pass
    assert not locks.is_locked(tmp_path)
    assert not caplog.text
