"""The tokenizer of a run in the form that clients read: its own files as they came, or the run's in transformers' form."""

import json
import shutil
from pathlib import Path
from typing import Any

from research.data.tokenizers import CONFIG_FILE, FILE, Folder, Library, write_tokenizer
from research.load import TrainedRun
from research.models.hub_folder import COMPANIONS
from research.run_dir import MODEL_FOLDER, expand_path, write_json

HUB_TARGET = "research.models.hub.Hub"


def find_own_tokenizer(run: TrainedRun) -> Path | None:
    """Return the folder of the pretrained model's own tokenizer, where that is what a hub run was trained with.

    The run itself keeps the part that decides tokens. Chat template and special tokens are in what came.
    """
    config: Any = run.config
    if not isinstance(run.tokenizer, Library) or (config.get("model") or {}).get("_target_") != HUB_TARGET:
        return None
    library = run.tokenizer.to_library()
    named = [config.model.get("folder"), (config.data.get("tokenizer") or {}).get("path")]
    for folder in (run.folder / MODEL_FOLDER, *(expand_path(str(name)) for name in named if name)):
        if not (folder / FILE).is_file():
            continue
        try:
            own = Folder(str(folder), library.id_to_token(run.tokenizer.end))
        except ValueError:
            continue
        if own.to_library().to_str() == library.to_str():
            return folder
    return None


def write_for_transformers(run: TrainedRun, folder: Path, max_seq_len: int) -> None:
    """Write the tokenizer of a run on text, with a token that pads, on the left: generated text follows the prompt."""
    assert run.tokenizer
    own = find_own_tokenizer(run)
    if not own:
        write_tokenizer(run.tokenizer, folder, max_seq_len)
        return
    for name in COMPANIONS[1:]:
        if (own / name).is_file():
            shutil.copyfile(own / name, folder / name)
    config = read_json(own / CONFIG_FILE)
    end = config.get("eos_token") or read_json(own / "special_tokens_map.json").get("eos_token")
    end = end or run.tokenizer.to_library().id_to_token(run.tokenizer.end)
    pad = config.get("pad_token") or read_json(own / "special_tokens_map.json").get("pad_token") or end
    kept = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_seq_len} | config
    write_json(folder / CONFIG_FILE, kept | {"eos_token": end, "pad_token": pad, "padding_side": "left"})


def read_json(file: Path) -> dict[str, Any]:
    """Return a file's object; an empty one where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def encode_as_it_came(own: Path, text: str) -> list[int]:
    """Return the tokens of a text in transformers, special ones included."""
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(own, local_files_only=True).encode(text))
