"""What is in which file of a sharded checkpoint, read from metadata.json; nothing is unpickled but tensors and plain values.

torch's distributed checkpoint describes its files in a pickle, `.metadata`, and reads numbers by one that may hold anything.
Either would let a foreign checkpoint run code.
"""

import io
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from research.contracts import contract
from research.run_dir import replace_text
from research.training.checkpoint import DTYPES

METADATA_FILE, VERSION = "metadata.json", 1
DTYPE_NAMES = {str(dtype): dtype for dtype in DTYPES}


class Planner(DefaultLoadPlanner):
    """Reads what is no tensor, as a learning rate, by torch's reader of plain values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


class Reader(FileSystemReader):
    """Reads the files of a folder that `listed` names, relative to its parent, by metadata.json."""

    @contract
    def __init__(self, folder: Path, listed: Collection[str]) -> None:
        super().__init__(folder)
        self.folder, self.listed = folder, listed

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the metadata. Raise ValueError where it is not of this form, or names a file that is not listed."""
        if f"{self.folder.name}/{METADATA_FILE}" not in self.listed:
            why = f"{self.folder.parent} has shards of an earlier version, which a pickle describes: it could run code"
            raise ValueError(f"{why}\nconvert it once: python -m research.training.convert_shards {self.folder.parent}")
        try:
            metadata = parse_metadata(json.loads((self.folder / METADATA_FILE).read_text(encoding="utf-8")))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.folder / METADATA_FILE} is damaged: {type(error).__name__}: {error}") from error
        for stored in metadata.storage_data.values():
            if f"{self.folder.name}/{stored.relative_path}" not in self.listed:
                raise ValueError(
                    f"{self.folder / METADATA_FILE} names {stored.relative_path}, which the manifest does not list"
                )
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


@contract
def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write metadata.json: of each entry its type and size, and where each of its chunks lies in which file."""
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in metadata.state_dict_metadata.items():
        entries[name] = {"chunks": []}
        if isinstance(entry, TensorStorageMetadata):
            entries[name] |= {"dtype": str(entry.properties.dtype), "size": [*entry.size]}
    for index, stored in metadata.storage_data.items():
        chunk = {"file": stored.relative_path, "offset": stored.offset, "length": stored.length}
        if index.offset is not None:
            chunks = metadata.state_dict_metadata[index.fqn].chunks  # type: ignore[union-attr]
            sizes = next(item.sizes for item in chunks if item.offsets == index.offset)
            chunk |= {"begin": [*index.offset], "size": [*sizes]}
        entries[index.fqn]["chunks"].append(chunk)
    replace_text(folder / METADATA_FILE, json.dumps({"version": VERSION, "entries": entries}))


def parse_metadata(content: dict[str, Any]) -> Metadata:
    """Return what `write_metadata` has written. Raise KeyError, TypeError or AttributeError for anything else."""
    if content["version"] != VERSION:
        raise TypeError(f"version {content['version']} is not {VERSION}")
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for name, entry in content["entries"].items():
        for chunk in entry["chunks"]:
            index = MetadataIndex(name, chunk["begin"] if "dtype" in entry else None)
            storage[index] = _StorageInfo(chunk["file"], int(chunk["offset"]), int(chunk["length"]))
        if "dtype" not in entry:
            described[name] = BytesStorageMetadata()
            continue
        chunks = [ChunkStorageMetadata(torch.Size(c["begin"]), torch.Size(c["size"])) for c in entry["chunks"]]
        if not covers(chunks, entry["size"]):
            raise TypeError(f"the parts of {name} do not make up its {len(entry['size'])} dimensions {entry['size']}")
        properties = TensorProperties(DTYPE_NAMES[entry["dtype"]])
        described[name] = TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
    return Metadata(described, storage_data=storage)


@contract
def covers(chunks: list[ChunkStorageMetadata], size: list[int]) -> bool:
    """Return whether chunks lie within a tensor, each at a place of its own, and are as large as all of it."""
    chunks = [chunk for chunk in chunks if math.prod(chunk.sizes)]
    for chunk in chunks:
        ends = [begin + length for begin, length in zip(chunk.offsets, chunk.sizes, strict=True)]
        if (
            len(ends) != len(size)
            or min((*chunk.offsets, 0)) < 0
            or any(end > limit for end, limit in zip(ends, size, strict=True))
        ):
            return False
    is_whole = sum(math.prod(chunk.sizes) for chunk in chunks) == math.prod(size)
    return is_whole and len({tuple(chunk.offsets) for chunk in chunks}) == len(chunks)
