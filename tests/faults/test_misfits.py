"""Weights that are not those of the model are refused by name, and never loaded in part (row 26): full, averages, shards."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting import fit
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from research.training import checkpoint, sharding
from research.training.checkpoint import Snapshot
from research.training.ema import Average
from research.training.manifest import MANIFEST_FILE, Manifest, hash_file, read_manifest
from research.training.shard_files import METADATA_FILE

Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


class Tied(nn.Module):
    """Two names of one weight, and a buffer."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(dim))


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.full(shape, 7.0)})


CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "one is missing": (drop("first.bias"), "first.bias is in the model alone"),
    "a buffer is missing": (drop("scale"), "scale is in the model alone"),
    "one too many": (put("third.weight", 3), "third.weight is in the checkpoint alone"),
    "longer": (put("first.bias", 4), r"first.bias is \(3,\) in the model, \(4,\) in the checkpoint"),
    "one that would be broadcast": (put("first.bias", 1), r"first.bias is \(3,\) in the model, \(1,\) in the checkpoint"),
    "other dimensions": (put("first.weight", 9), r"first.weight is \(3, 3\) in the model, \(9,\) in the checkpoint"),
}


def assert_as_it_was(model: nn.Module, before: Tensors) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("case", CHANGES)
def test_other_tensors_are_refused_and_none_is_loaded(case: str) -> None:
    change, words = CHANGES[case]
    model, tensors = Tied(), {name: tensor + 1 for name, tensor in Tied().state_dict().items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(tensors)
    with pytest.raises(RuntimeError, match=words):
        sharding.load_full(model, tensors)
    assert_as_it_was(model, before)


def test_one_name_of_a_tied_weight_is_enough() -> None:
    for name in ("first.weight", "second.weight"):
        tensors = {key: tensor for key, tensor in Tied().state_dict().items() if key.endswith((name, "bias", "scale"))}
        sharding.load_full(model := Tied(), tensors)
        assert torch.equal(model.second.weight, tensors[name])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as all processes of a sharded run write it together."""
    state = sharding.get_sharded_state(model := Tied(), average=Average(model, 0.9))
    (tmp_path / "run").mkdir()
    return checkpoint.commit(tmp_path / "run" / "checkpoints", Snapshot(Manifest(step=1, identity={}), {}, {}, state))


def edit_entries(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "shards" / METADATA_FILE
    content = json.loads(file.read_text())
    change(content["entries"])
    file.write_text(json.dumps(content))


def move_chunk(key: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda entries: entries[key]["chunks"][0].update(values)


def copy_entry(source: str, name: str) -> Callable[[dict[str, Any]], object]:
    return lambda entries: entries.update({name: entries[source]})


SHARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "one is missing": (lambda entries: entries.pop("model.first.bias"), "tensor first.bias is in the model alone"),
    "one too many": (copy_entry("model.first.bias", "model.third"), "tensor third is in the checkpoint alone"),
    "another shape": (copy_entry("model.first.weight", "model.first.bias"), r"first.bias is \(3,\) in the model, \(3, 3\)"),
    "an average is missing": (lambda entries: entries.pop("average.first.bias"), "average of first.bias is in the model alone"),
    "an average too many": (copy_entry("average.first.bias", "average.third"), "average of third is in the checkpoint alone"),
    "no part of it": (lambda entries: entries["model.scale"].update(chunks=[]), "parts of model.scale do not make up"),
    "half of it": (move_chunk("model.scale", size=[2]), "parts of model.scale do not make up"),
    "beyond its end": (move_chunk("model.scale", begin=[1]), "parts of model.scale do not make up"),
    "before its begin": (move_chunk("model.scale", begin=[-1]), "parts of model.scale do not make up"),
    "twice the same": (lambda entries: entries["model.scale"]["chunks"].append(entries["model.scale"]["chunks"][0]), "make up"),
    "beyond the file": (move_chunk("model.scale", offset=1 << 30), "Error: "),
    "half a tensor in the file": (move_chunk("model.scale", length=200), "Error: "),
    "a smaller tensor in the file": (lambda entries: entries["model.first.weight"].update(chunks=[  # that of the bias
        entries["model.first.bias"]["chunks"][0] | {"begin": [0, 0], "size": [3, 3]}]), "Error: "),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARDS)
def test_shards_of_other_tensors_are_refused_and_none_is_loaded(folder: Path, case: str) -> None:
    change, words = SHARDS[case]
    edit_entries(folder, change)
    model = Tied()
    average = Average(model, 0.9)
    before = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in (model.state_dict(), average.averages)]
    listed = [f"shards/{path.name}" for path in (folder / "shards").iterdir()]
    with pytest.raises((RuntimeError, ValueError), match=words):
        sharding.load_shards(model, folder / "shards", listed, average=average)
    assert_as_it_was(model, before[0])
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in average.averages.items())


def test_a_failure_of_torch_s_checkpoint_is_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own is none, so a sweep would end with the trial; and a full disk was no OSError."""
    assert not issubclass(CheckpointException, Exception)

    def fail(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystemWriter.write_data", fail)
    with pytest.raises(OSError, match="No space left on device"):
        sharding.save_shards(sharding.get_sharded_state(Tied()), tmp_path / "shards")


def test_averages_of_another_shape_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    fit(tmp_path, steps=2, ema=0.9)
    newest = tmp_path / "checkpoints" / "step-00000002"
    tensors = load_file(newest / "average.safetensors")
    name = next(iter(tensors))
    (newest / "average.safetensors").write_bytes(save(tensors | {name: tensors[name][:1].contiguous()}))
    manifest = read_manifest(newest)
    files = manifest.files | {"average.safetensors": hash_file(newest / "average.safetensors")}
    (newest / MANIFEST_FILE).write_text(replace(manifest, files=files).to_json())
    with pytest.raises(ValueError, match=rf"do not belong together: RuntimeError: the average of {name} is "):
        fit(tmp_path, steps=4, ema=0.9, resume=newest)
