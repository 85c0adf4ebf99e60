"""The tokenizer of a run in the form that clients read: the pretrained model's own files, or the run's in transformers' form.

Prompts are cut as texts were in training. What changes texts, as a normalizer, was left out there, and is here.
"""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from research.contracts import contract
from research.data.spelling import CONFIG_FILE, OLDER_FILES, SPACE_BEFORE, SPECIAL_FILE, leave_out_changes, read_special
from research.data.tokenizers import FILE, Folder, Library, write_tokenizer
from research.load import TrainedRun
from research.models.hub_folder import COMPANIONS
from research.run_dir import MODEL_FOLDER, expand_path, read_json, replace_text, write_json

HUB_TARGET = "research.models.hub.Hub"


@contract
def find_own_tokenizer(run: TrainedRun) -> Path | None:
    """Return the folder of the pretrained model's own tokenizer, where that is what a hub run was trained with.

    The run itself keeps the part that decides tokens. Chat template and special tokens are in the original.
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


@contract
def write_for_transformers(run: TrainedRun, folder: Path, max_seq_len: int) -> list[str]:
    """Write the tokenizer of a run on text, with a token that pads, on the left: generated text follows the prompt.

    Return a warning where the model's own tokenizer changed texts that training did not.
    """
    assert run.tokenizer
    own = find_own_tokenizer(run)
    if not own:
        write_tokenizer(run.tokenizer, folder, max_seq_len)
        return []
    for name in COMPANIONS[1:]:
        if (own / name).is_file():
            shutil.copyfile(own / name, folder / name)
    kept = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_seq_len} | read_json(own / CONFIG_FILE)
    changes = write_as_trained(own / FILE, folder)
    if kept.pop("add_prefix_space", False) and SPACE_BEFORE not in changes:
        changes.append(SPACE_BEFORE)
    if changes:  # a class of its own would put them in again, as would older files
        kept.pop("added_tokens_decoder", None)
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    library = run.tokenizer.to_library()
    special = {"eos_token": library.id_to_token(run.tokenizer.end), "pad_token": library.id_to_token(choose_pad(run, own))}
    write_json(folder / CONFIG_FILE, kept | special | {"padding_side": "left"})
    if others := read_json(own / SPECIAL_FILE):
        write_json(folder / SPECIAL_FILE, others | special)
    left_out = f"training left out {', '.join(changes)}; so does the one here, to cut prompts alike"
    return [f"of the model's own tokenizer {left_out}"] if changes else []


@contract
def choose_pad(run: TrainedRun, own: Path) -> int:
    """Return the token that pads: that of the model's own tokenizer, else of the model, else the end of a document."""
    assert run.tokenizer
    library = run.tokenizer.to_library()
    numbers = map(library.token_to_id, read_special(own, library, "pad"))
    return next((number for number in numbers if number is not None), run.tokenizer.end)


@contract
def find_changes(run: TrainedRun, folder: Path) -> list[str]:
    """Return a warning where transformers changes texts that training did not, by a class of its own, as Qwen 2 has one."""
    from transformers import AutoTokenizer

    tokenizer, accent_apart = AutoTokenizer.from_pretrained(folder, local_files_only=True), "e\u0301"
    assert run.tokenizer
    if tokenizer.encode(accent_apart, add_special_tokens=False) == run.tokenizer.encode([accent_apart.encode()])[0].tolist():
        return []
    changes = "which changes some texts before it cuts them, as a letter with its accent apart; training did not"
    return [f"transformers reads the tokenizer by {type(tokenizer).__name__}, {changes}"]


def write_as_trained(file: Path, folder: Path) -> list[str]:
    """Write a tokenizer.json without what training left out of it, but special tokens around a text; return the names of that.

    Write nothing where nothing was left out.
    """
    original = json.loads(file.read_text(encoding="utf-8"))
    special = [token for token in original.get("added_tokens", ()) if token["special"]]  # they stand in chats, not in texts
    ordinary = [token for token in original.get("added_tokens", ()) if not token["special"]]
    settings, changes = leave_out_changes(original | {"added_tokens": ordinary})
    if changes:
        for name in OLDER_FILES:
            (folder / name).unlink(missing_ok=True)
        added = sorted([*special, *settings["added_tokens"]], key=lambda token: int(token["id"]))
        settings |= {"added_tokens": added, "post_processor": original.get("post_processor")}
        replace_text(folder / FILE, json.dumps(settings))
    return changes


@contract
def encode_as_exported(run: TrainedRun, text: str) -> list[int]:
    """Return the tokens of a text by the exported tokenizer in transformers, special ones included."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        write_for_transformers(run, Path(folder), 1)
        return list(AutoTokenizer.from_pretrained(folder, local_files_only=True).encode(text))
