"""What a folder of transformers must hold to be trained on: rules that read its small files, told before torch is imported."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.contracts import contract
from research.files.stage import EXPORT_FILE
from research.files.weights import WEIGHT_FILES, list_weight_files
from research.run_dir import expand_path, read_text

ADAPTER_FILE, CONFIG_FILE = "adapter_config.json", "config.json"
COMPANIONS = (  # files of a folder beside the model that are not its weights
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
SAVED = "give a local folder that save_pretrained wrote"
AGAIN = "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")  # names of one field


def read_hub_config(folder: str, load_weights: bool = True) -> dict[str, Any]:
    """Return the config.json of a pretrained folder. Raise ValueError where it is none that can be trained on."""
    path = expand_path(folder)
    if not os.path.isfile(path / CONFIG_FILE):
        raise ValueError(f"model.folder={folder} has no {CONFIG_FILE}: {describe_other_folder(path)}")
    if os.path.exists(path / ADAPTER_FILE):
        raise ValueError(f"model.folder={folder}: {describe_adapter(path)}")
    try:
        config = json.loads(read_text(path / CONFIG_FILE))
    except ValueError as error:
        raise ValueError(f"model.folder={folder} cannot be read: its {CONFIG_FILE}: {error}\n{SAVED}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"model.folder={folder} cannot be read: its {CONFIG_FILE} has no model_type\n{SAVED}")
    check_quantization(folder, config)
    if load_weights:
        check_weight_files(folder, path)
    return config


def describe_other_folder(path: Path) -> str:
    """Return what a path holds in place of a pretrained model, and what to give for it."""
    if not os.path.exists(path):
        return SAVED
    if path.is_file():
        is_gguf = path.suffix == ".gguf"
        return f"it is a file of GGUF, which runs and is not trained\n{UNPACKED}" if is_gguf else f"it is a file\n{SAVED}"
    if (path / ADAPTER_FILE).exists():
        return describe_adapter(path)
    names = sorted(item.name for item in path.iterdir())
    if any(name.endswith(".gguf") for name in names):
        return f"it holds GGUF, which runs and is not trained\n{UNPACKED}"
    if "config.yaml" in names or "manifest.json" in names:
        return f"it is a run of this program\ngo on with it by resume={path}, or train from it by finetune.base={path}"
    if EXPORT_FILE in names:
        return "it is an export, which only runs\ngive finetune.base=RUN with the run that it is of, or one by --format hf"
    if "model_index.json" in names:
        return "it holds a pipeline of images, and no language model"
    if inner := next((file.parent for file in sorted(path.glob("**/config.json"))[:1]), None):  # as those of a hub's cache
        if (run := inner.parent / "config.yaml").exists():
            return f"it holds runs of this program\ntrain from one by finetune.base={run.parent}"
        return f"a folder in it has one\ngive model.folder={inner}"
    return f"{SAVED}; it holds {', '.join(names[:5]) or 'nothing'}"


UNPACKED = "give the folder from which it was made, in 32 or 16 bits"


def describe_adapter(path: Path) -> str:
    """Return what to do with a folder of peft's, which holds a part of a model."""
    try:
        base = json.loads(read_text(path / ADAPTER_FILE)).get("base_model_name_or_path") or "BASE"
    except (ValueError, OSError, AttributeError):
        base = "BASE"
    merge = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{base}'), '{path}')"
    return f"it is an adapter of {base}, not a model\nmerge them with peft: {merge}.merge_and_unload().save_pretrained(OTHER)"


def check_quantization(folder: str, config: dict[str, Any]) -> None:
    """Raise ValueError for weights that were quantized, but for the ternary ones of BitNet."""
    if not (settings := config.get("quantization_config")):
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != "bitnet":
        raise ValueError(f"model.folder={folder}: its weights are quantized by {method}, which does not train\n{UNPACKED}")
    if settings.get("use_rms_norm"):
        message = "its ternary layers have norms of their own (use_rms_norm), which BitLinear has not"
        raise ValueError(f"model.folder={folder}: {message}\ngive a folder without them")


def check_weight_files(folder: str, path: Path) -> None:
    """Raise ValueError where a folder has no weights, or lacks some of the files that its index names."""
    try:
        files = list_weight_files(path)
    except ValueError as error:
        raise ValueError(f"model.folder={folder} cannot be read: {error}\n{SAVED}") from None
    if not files:
        fix = "give model.load_weights=false for new weights, or copy them there"
        raise ValueError(f"model.folder={folder} has no weights: {WEIGHT_FILES[0]} is not there\n{fix}")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"model.folder={folder} lacks {', '.join(missing[:3])} of its {len(files)} files\ncopy them there")


@contract
def read_length(config: Mapping[str, Any]) -> int | None:
    """Return how many positions a model has, from its config.json; None where it does not say."""
    return next((size for name in LENGTHS if type(size := config.get(name)) is int), None)


@contract
def check_seq_len(folder: str, config: dict[str, Any], seq_len: int) -> None:
    """Raise ValueError for data whose texts are longer than a model has positions."""
    length = read_length(config)
    if length is not None and length < seq_len:
        message = f"model.folder={folder} has {length} positions, the data has {seq_len} tokens a text"
        raise ValueError(f"{message}\ngive data.seq_len={length} or fewer, or another model")
