"""Which files of a pretrained folder hold its weights, as transformers chooses them. Imports no heavy library."""

from pathlib import Path

from research.contracts import contract
from research.run_dir import parse_json, read_text

INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FILES = ("model.safetensors", INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")  # the first counts


@contract
def list_weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder, of which some may be missing; none where it names none.

    Raise ValueError where the index of several files cannot be read.
    """
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None or first.suffix != ".json":
        return [first] if first else []
    try:
        names = {Path(str(name)).name for name in parse_json(read_text(first))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {first.name}: {error!r}") from None
    return [folder / name for name in sorted(names)]
