"""Row 17: a checkpoint that somebody else wrote is read without unpickling what could run code: attacks would make MARK."""

import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ROOT
from torch import nn

from research.load import load_run
from research.training import checkpoint, convert_shards, sharding, snapshot
from research.training.checkpoint import Snapshot
from research.training.manifest import Manifest, hash_file
from research.training.shard_files import METADATA_FILE

OLD = ROOT / "tests" / "fixtures" / "v1"


class Attack:
    """Whoever unpickles this makes a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (os.path.abspath("MARK"), "w")


@pytest.fixture(autouse=True)
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start in a folder in which no mark is at the end."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
    assert not [*tmp_path.rglob("MARK")]


def test_this_attack_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Attack())).close()
    (tmp_path / "MARK").unlink()


def train_one_step() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as all processes of a sharded run write it together."""
    manifest = Manifest(step=1, identity={})
    (tmp_path / "run").mkdir()
    return checkpoint.commit(
        tmp_path / "run" / "checkpoints", Snapshot(manifest, {}, {}, sharding.get_sharded_state(*train_one_step()))
    )


def change(folder: Path, files: dict[str, bytes], drop: str = "") -> None:
    """Change files of the shards as an attacker would: sizes and digests in the manifest are right."""
    manifest = checkpoint.read(folder).manifest
    for name, content in files.items():
        (folder / "shards" / name).write_bytes(content)
    if drop:
        (folder / "shards" / drop).unlink()
    listed = {f"shards/{path.name}": hash_file(path) for path in (folder / "shards").iterdir()}
    rest = {name: entry for name, entry in manifest.files.items() if "/" not in name}
    (folder / "manifest.json").write_text(replace(manifest, files=rest | listed).to_json())


def load(folder: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    listed = checkpoint.read(folder).manifest.files
    sharding.load_shards(model, folder / "shards", listed, optimizer)
    return model, optimizer


def assert_same(loaded: tuple[nn.Module, torch.optim.Optimizer]) -> None:
    model, optimizer = train_one_step()
    assert all(torch.equal(a, b) for a, b in zip(loaded[0].parameters(), model.parameters(), strict=True))
    for mine, other in zip(loaded[1].state.values(), optimizer.state.values(), strict=True):
        assert {key: value.tolist() for key, value in mine.items()} == {key: value.tolist() for key, value in other.items()}
    assert loaded[1].param_groups[0]["lr"] == 0.5


def test_shards_are_read_as_they_were_written(folder: Path) -> None:
    assert_same(load(folder))


def test_a_pickle_that_the_manifest_lists_is_not_opened(folder: Path) -> None:
    change(folder, {".metadata": pickle.dumps(Attack()), "other.pkl": pickle.dumps(Attack())})
    assert_same(load(folder))


@pytest.mark.parametrize("content", [pickle.dumps(Attack()), b""], ids=["attack", "empty"])
def test_shards_that_only_a_pickle_describes_are_refused_with_the_converter(folder: Path, content: bytes) -> None:
    change(folder, {".metadata": content}, drop=METADATA_FILE)
    with pytest.raises(ValueError, match=r"python -m research\.training\.convert_shards .*step-00000001"):
        load(folder)
    with pytest.raises(ValueError, match="cannot be converted"):
        convert_shards.convert(folder)
    assert not (folder / "shards" / METADATA_FILE).exists()


def test_shards_of_an_earlier_version_are_converted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, {}, drop=METADATA_FILE)
    monkeypatch.setattr("sys.argv", ["convert_shards", str(folder.parents[1])])
    assert convert_shards.main() == 0
    assert_same(load(folder))
    assert not convert_shards.convert(folder), "it needs none any more"


def test_a_shards_folder_that_no_manifest_lists_is_not_read(tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD / "digits", tmp_path / "digits"))
    before = load_run(str(run)).model.state_dict()
    (step,) = (run / "checkpoints").glob("step-*")
    (step / "shards").mkdir()
    (step / "shards" / ".metadata").write_bytes(pickle.dumps(Attack()))
    (step / "shards" / METADATA_FILE).write_text("{}")
    (step / "optimizer.pt").write_bytes(pickle.dumps(Attack()))
    after = load_run(str(run)).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / "shards" / METADATA_FILE).read_text())
    edit(content)
    change(folder, {METADATA_FILE: json.dumps(content).encode()})


@pytest.mark.parametrize("file", ["../../evil.distcp", "evil.distcp", "/etc/passwd", "../state.pt", 7, None])
def test_a_file_that_is_not_listed_is_not_read(folder: Path, file: Any) -> None:
    rewrite(folder, lambda content: content["entries"]["model.weight"]["chunks"][0].update(file=file))
    (folder.parents[1] / "evil.distcp").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="which the manifest does not list"):
        load(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("entries"),
        lambda content: content.update(version=2),
        lambda content: content.update(entries=[]),
        lambda content: content["entries"].update({"model.weight": {"dtype": "os.system", "size": [1], "chunks": []}}),
        lambda content: content["entries"]["model.weight"].pop("chunks"),
        lambda content: content["entries"]["model.weight"]["chunks"][0].update(begin="x"),
    ],
)
def test_damaged_descriptions_are_named(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    rewrite(folder, edit)
    with pytest.raises(ValueError, match=r"metadata\.json"):
        load(folder)


def test_a_number_among_the_shards_is_no_pickle_of_anything(folder: Path) -> None:
    """What is no tensor, as a learning rate, lies in the shards as a file of torch.save."""
    with io.BytesIO() as file:
        torch.save(Attack(), file)
        content = file.getvalue()

    def edit(description: dict[str, Any]) -> None:
        name = next(name for name in description["entries"] if name.endswith("lr"))
        description["entries"][name]["chunks"] = [{"file": "evil.distcp", "offset": 0, "length": len(content)}]

    change(folder, {"evil.distcp": content})
    rewrite(folder, edit)
    with pytest.raises(BaseException, match=r"(?s)Weights only load failed"):
        load(folder)


def test_state_pt_is_no_pickle_of_anything(folder: Path) -> None:
    torch.save({"progress": Attack()}, folder / "state.pt")
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    files = manifest.files | {"state.pt": hash_file(folder / "state.pt")}
    (folder / "manifest.json").write_text(replace(manifest, files=files).to_json())
    with pytest.raises(ValueError, match=r"no usable checkpoint .*state\.pt holds what cannot be loaded"):
        snapshot.load_newest(folder)


@pytest.mark.parametrize("name", ["../config.yaml", "/etc/hostname", "a/b", "shards/../../x", "shards//etc/hostname", ""])
def test_a_manifest_lists_files_of_its_checkpoint_alone(folder: Path, name: str) -> None:
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        replace(manifest, files=manifest.files | {name: {"bytes": 0, "sha256": ""}}).to_json()
    )
    with pytest.raises(ValueError, match="which is no file of a checkpoint"):
        snapshot.load_newest(folder)
