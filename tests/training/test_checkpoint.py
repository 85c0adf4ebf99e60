"""Damage is found, named, and the previous good checkpoint is taken."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from research.training import checkpoint
from research.training.checkpoint import Snapshot
from research.training.manifest import MANIFEST_FILE, DamagedError, Manifest


def save_checkpoint(root: Path, step: int) -> Path:
    torch.manual_seed(step)
    model = nn.Linear(4, 3)
    return checkpoint.commit(
        root / "checkpoints", Snapshot(Manifest(step, {}), {"model": checkpoint.get_weights(model)}, {"memory": torch.randn(9)})
    )


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip_bit,
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-7]),
    "empty": lambda p: p.write_bytes(b""),
    "missing": lambda p: p.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", checkpoint.STATE_FILE, MANIFEST_FILE])
def test_damage_is_detected_and_the_good_one_used(tmp_path: Path, kind: str, name: str) -> None:
    good, bad = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2)
    assert checkpoint.load_newest(tmp_path)[0] == bad
    DAMAGE[kind](bad / name)
    with pytest.raises(DamagedError, match=name):
        checkpoint.read(bad)
    assert checkpoint.load_newest(tmp_path)[0] == good
    DAMAGE[kind](good / name)
    with pytest.raises(ValueError, match=f"no usable checkpoint.*{name}"):
        checkpoint.load_newest(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", checkpoint.STATE_FILE, MANIFEST_FILE])
def test_any_flipped_bit_is_detected(tmp_path: Path, name: str) -> None:
    """Every bit of every byte near both ends, and some in between."""
    path = save_checkpoint(tmp_path, 1) / name
    content = path.read_bytes()
    places = {*range(min(40, len(content))), *range(max(0, len(content) - 40), len(content)), *range(0, len(content), 97)}
    for place in sorted(places):
        for bit in (0, 3, 7):
            broken = bytearray(content)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(DamagedError):
                checkpoint.read(path.parent)
    path.write_bytes(content)
    assert checkpoint.read(path.parent).step == 1


def test_other_programs_read_the_weights(tmp_path: Path) -> None:
    """Of every type, scalars and empty tensors included."""
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 4)}
    folder = checkpoint.commit(tmp_path, Snapshot(Manifest(7, {}), {"model": tensors}, {}))
    loaded = load_file(folder / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_what_a_kill_left_is_cleared_and_what_it_interrupted_comes_back(tmp_path: Path) -> None:
    first, root = save_checkpoint(tmp_path, 1), tmp_path / "checkpoints"
    (root / ".draft-00000002").mkdir()
    (root / ".draft-00000002" / "state.pt").write_bytes(b"half")
    first.rename(root / ".old-step-00000001")
    assert checkpoint.load_newest(tmp_path)[1].step == 1, "one that was about to be replaced is there still"
    checkpoint.clean(root)
    assert [path.name for path in root.iterdir()] == ["step-00000001"]
    assert checkpoint.load_newest(tmp_path)[1].step == 1


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1)
    checkpoint.commit(tmp_path / "checkpoints", Snapshot(Manifest(1, {}), {"model": {}}, {"new": 1}))
    assert checkpoint.read(folder).state == {"new": 1}
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000001"]


def test_a_folder_that_was_moved_before_a_save_does_not_come_back(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "moved", 1)
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    """A real one: a file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        good = save_checkpoint(disk, 1)
        big = Snapshot(Manifest(2, {}), {"model": {"w": torch.zeros(1_000_000)}}, {})
        with pytest.raises(OSError, match="No space left"):
            checkpoint.commit(disk / "checkpoints", big)
        assert checkpoint.load_newest(disk)[0] == good
        assert [path.name for path in good.parent.iterdir()] == [good.name], "nothing half-written stays"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_config_may_have_keys_that_are_numbers(tmp_path: Path) -> None:
    """JSON has none: they are read as texts, in another order."""
    manifest = Manifest(1, {}, config={"labels": {2: "a", 10: "b", "other": None}, "folder": tmp_path})
    folder = checkpoint.commit(tmp_path / "checkpoints", Snapshot(manifest, {"model": {}}, {}))
    assert checkpoint.read(folder).manifest.config["labels"] == {"2": "a", "10": "b", "other": None}


def test_an_interrupted_save_raises_what_interrupted_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C while state.pt is written: torch.save would end with a RuntimeError of its own."""
    write, calls = os.write, []

    def interrupt(descriptor: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupt)
    snapshot = Snapshot(Manifest(1, {}), {"model": {}}, {"memory": [torch.randn(1000) for _ in range(4)]})
    with pytest.raises(KeyboardInterrupt):
        checkpoint.commit(tmp_path / "checkpoints", snapshot)
    assert list((tmp_path / "checkpoints").iterdir()) == [], "nothing half-written stays"


def test_a_copy_shares_no_memory_with_what_it_is_of() -> None:
    tensor = torch.zeros(2)
    value = {"list": [tensor], "tuple": (tensor, 1), "set": {1, 2}, "dict": {"inner": tensor}}
    copy = checkpoint.copy_to_host(value)
    tensor.fill_(1)
    value["set"].add(3)  # type: ignore[attr-defined]
    assert copy["set"] == {1, 2}
    assert copy["tuple"][1] == 1
    assert all(not part.any() for part in (copy["list"][0], copy["tuple"][0], copy["dict"]["inner"]))
