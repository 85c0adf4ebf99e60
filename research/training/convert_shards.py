"""python -m research.training.convert_shards CHECKPOINT: let a sharded checkpoint of an earlier version be read again.

What is in which of its files stands in a pickle. This reads it, and no other command does, with an unpickler that knows torch's
descriptions of tensors and nothing else; then it adds metadata.json to the files that the manifest lists.
"""

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.cli import Parser
from research.contracts import contract
from research.run_dir import expand_path, list_checkpoints, replace_text

MODULE = "torch.distributed.checkpoint"
KNOWN = {
    **dict.fromkeys(
        ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        f"{MODULE}.metadata",
    ),
    **dict.fromkeys(("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"), f"{MODULE}.metadata"),
    "_StorageInfo": f"{MODULE}.filesystem",
    "Size": "torch",
    "_get_layout": "torch.serialization",
}  # name -> its module
PATHS = ("pathlib", "pathlib._local")  # of the folder that it was written to


class Unpickler(pickle.Unpickler):
    """Knows the names of torch's metadata alone."""

    @contract
    def find_class(self, module: str, name: str) -> Any:
        import torch

        if KNOWN.get(name) == module or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        if module in PATHS and name in ("PosixPath", "PurePosixPath", "WindowsPath"):
            return lambda *parts: "/".join(parts)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no description of tensors")


@contract
def convert(folder: Path) -> bool:
    """Write metadata.json and list it in the manifest; return False for a checkpoint that needs none.

    Raise ValueError for one that is damaged, or whose pickle names anything but torch's descriptions.
    """
    from research.training import checkpoint
    from research.training.manifest import MANIFEST_FILE, SHARDS_FOLDER, hash_file
    from research.training.shard_files import METADATA_FILE, write_metadata

    manifest = checkpoint.read(folder).manifest  # checks every file
    old, new = (f"{SHARDS_FOLDER}/{name}" for name in (".metadata", METADATA_FILE))
    if old not in manifest.files or new in manifest.files:
        return False
    try:
        with (folder / old).open("rb") as file:
            write_metadata(folder / SHARDS_FOLDER, Unpickler(file).load())
    except (pickle.UnpicklingError, AttributeError, TypeError, KeyError, EOFError, StopIteration) as error:
        raise ValueError(f"{folder / old} cannot be converted: {error}") from error
    files = manifest.files | {new: hash_file(folder / new)}
    replace_text(folder / MANIFEST_FILE, replace(manifest, files=files).to_json())
    return True


def main() -> int:
    """Run the command line. Exit with 2 where there is no such checkpoint, or it cannot be converted."""
    parser = Parser(prog="python -m research.training.convert_shards", description="Convert sharded checkpoints.")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=expand_path, help="a run folder, or one of its checkpoints/step-*"
    )
    from research.training.manifest import is_checkpoint

    path: Path = parser.parse_args().checkpoint
    folders = [path] if is_checkpoint(path) else [*list_checkpoints(path).values()]
    if not folders or not path.is_dir():
        parser.error(f"{path} is no checkpoint, and holds none: give a run folder, or one of its checkpoints/step-*")
    for folder in folders:
        try:
            print(f"{folder.name:<16} {'converted' if convert(folder) else 'needs no conversion'}")
        except ValueError as error:
            parser.error(f"{folder}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
