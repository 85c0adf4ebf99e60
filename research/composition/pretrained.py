"""The model and the tokenizer of what a run starts from: of a pretrained folder, or of another run."""

import copy
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from research.composition.compose import MISSING, ComposedConfig, is_interpolated, iter_targets
from research.composition.overrides import quote_word, to_literal, to_override
from research.composition.recorded import CHANGEABLE_KEYS, Difference, load_config
from research.contracts import contract
from research.options.conf import chooses_node
from research.options.finetuning import FULL, SIDE, get_target, is_beside, is_frozen, merge_finetuning
from research.options.targets import check_target
from research.rules import PRESET_GROUPS, Conflict
from research.run_dir import MODEL_FOLDER, TOKENIZER_FOLDER, expand_path, to_run_folder

HUB = "research.models.hub.Hub"
BYTES, FOLDER = "research.data.tokenizers.Bytes", "research.data.tokenizers.Folder"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")  # any of them is one
Node = dict[str, Any]


class Completion(NamedTuple):
    """What takes the place of settings of a configuration."""

    settings: Node  # dotted key -> value or node
    notes: tuple[str, ...] = ()  # for people
    conflict: Conflict | None = None  # what was typed and does not go with it


@contract
def complete_model(config: ComposedConfig, run: Path | None, typed: Collection[str], choices: Mapping[str, Any]) -> Completion:
    """Return the model and the tokenizer of what a run starts from: of the run that its base is, or of the folder of its model.

    Return nothing where it starts from nothing. Raise ValueError for a run without a model that may be built.
    """
    settings, folder = Node(), config.get_resolved("model.folder")[0]
    if run:
        base = config.get_resolved("finetune.base")[0]
        settings["model"], conflict = merge_typed(config, read_model(run, base), typed, choices, base)
        if conflict:
            return Completion({}, conflict=conflict)
        what, own = f"finetune.base={base}", read_run_tokenizer(run)
    elif config.get("model._target_") == HUB and is_path(folder) and os.path.isdir(expand_path(folder)):  # else said elsewhere
        path = expand_path(folder).absolute()
        has_own = any((path / name).is_file() for name in TOKENIZER_FILES)
        what, own = f"model.folder={folder}", {"_target_": FOLDER, "path": str(path)} if has_own else None
    else:
        is_new = config.get("model._target_") == HUB and folder is None and config.get("resume.path") is None
        name = config.get_resolved("model.model_type")[0]
        note = f"note: model.folder is null: a new {name} with random weights; a pretrained model is model.folder=FOLDER"
        return Completion({}, (note,) * is_new)
    if not isinstance(config.get("data.tokenizer"), dict):
        return Completion(settings)
    chosen = is_chosen("tokenizer", "data.tokenizer", typed, choices)
    completed = choose_tokenizer(config, Completion(settings), own, what, chosen)
    return completed._replace(notes=(*completed.notes, *(compare_lengths(config, run, what) if run else ())))


def compare_lengths(config: ComposedConfig, run: Path, what: str) -> tuple[str, ...]:
    """Return the note of texts of another length than those of the base, for people."""
    ours = config.get_resolved("data.seq_len")[0]
    theirs = ComposedConfig(load_config(run)[0]).get_resolved("data.seq_len")[0]
    if type(theirs) is not int or type(ours) is not int or ours == theirs:
        return ()
    return (f"note: data.seq_len={ours} here, and {theirs} in {what}: data.seq_len={theirs} trains on texts of its length",)


def choose_tokenizer(config: ComposedConfig, so_far: Completion, own: Node | None, what: str, chosen: bool) -> Completion:
    """Return a completion with the base's own tokenizer, which takes the place of the default alone."""
    if own is None:
        name = str(config.get("data.tokenizer._target_")).rpartition(".")[2]
        return so_far._replace(notes=(f"note: {what} has no tokenizer: the data keep their own, {name}",))
    typed: Node = config.get("data.tokenizer")
    if chosen and typed.get("_target_") == FOLDER and typed.get("path") in ("???", None):  # as for another end
        own = typed | own
    elif chosen and is_same(typed, own):
        own = typed
    elif chosen:
        name = str(typed.get("_target_")).rpartition(".")[2]
        message = f"data.tokenizer is {name}, and {what} knows the tokens of its own alone: {own.get('path', 'bytes')}"
        path = "path" in own and quote_word(f"data.tokenizer.path={to_literal(own['path'])}")
        fix = f"leave it out, or give tokenizer={f'folder {path}' if path else 'bytes'}"
        return so_far._replace(conflict=Conflict(("tokenizer",), message, fix))
    note = f"note: the text is tokenized by {own['path']}, the tokenizer of {what}" if own["_target_"] == FOLDER else ""
    settings = so_far.settings | {"data.tokenizer": own}
    return so_far._replace(settings=settings, notes=(note,) if note else ())


@contract
def is_path(value: Any) -> TypeGuard[str]:
    """Return whether a setting names something: neither missing nor a reference that is looked up later."""
    return isinstance(value, str) and value not in ("", "???") and not is_interpolated(value)


@contract
def is_chosen(group: str, key: str, typed: Collection[str], choices: Mapping[str, Any]) -> bool:
    """Return whether somebody has chosen a node: on the command line, or in a preset."""
    is_preset = any(chooses_node(name, str(choices.get(name)), group, key) for name in PRESET_GROUPS)
    return is_preset or any(name == group or f"{name}.".startswith(f"{key}.") for name in typed)


@contract
def is_same(typed: Node, own: Node) -> bool:
    """Return whether two nodes are of one tokenizer: of bytes, or of folders with the same file."""
    if typed.get("_target_") != own["_target_"] or own["_target_"] != FOLDER:
        return bool(typed.get("_target_") == own["_target_"])
    paths = [os.path.realpath(expand_path(str(node.get("path")))) for node in (typed, own)]
    files = [os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path for path in paths]
    if files[0] == files[1]:
        return True
    return all(map(os.path.isfile, files)) and Path(files[0]).read_bytes() == Path(files[1]).read_bytes()


def read_model(run: Path, base: str) -> Node:
    """Return the model node that a run has recorded. Raise ValueError where there is none, or one that may not be built."""
    config = load_config(run)[0]
    if is_beside(config):
        how, fix = f"by {get_target(config)}", "give the base that it began at"
        if get_target(config) == SIDE:
            how, fix = "beside its layers", f"{fix}; in full precision python -m research.merge makes it a plain run"
        raise ValueError(f"finetune.base={base}: it was fine-tuned {how}: it is no plain model\n{fix}")
    node = (merged := merge_finetuning(config)).get("model")
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ValueError(f"finetune.base={base}: its config.yaml has no model\ngive a run folder or one of its checkpoints")
    for key, target in iter_targets("model", node):
        if conflict := check_target(key, target, is_foreign=True):
            raise ValueError(f"finetune.base={base}: {conflict}")
    if "${" in str(node):
        raise ValueError(f"finetune.base={base}: its config.yaml holds a reference\ngive a run folder that this program wrote")
    if isinstance(linear := node.get("linear"), dict) and "warmup" in linear:
        linear["warmup"] = 0  # it is over
    own: Node = use_own_files(merged, run)
    return own


@contract
def use_own_files(config: Mapping[str, Any], run: Path) -> Any:
    """Return the model node of a run; one of a hub model is built by the config.json that the run keeps of it.

    Its weights are those of a checkpoint or of another run, so the folder that it was trained from may be gone. It may not
    where it is the base itself, whose weights no checkpoint holds.
    """
    node, own = config.get("model"), to_run_folder(run) / MODEL_FOLDER
    is_base = is_frozen(config) and not config["finetune"].get("base")
    if is_base or not isinstance(node, dict) or node.get("_target_") != HUB or not (own / "config.json").is_file():
        return node
    return node | {"folder": str(own), "load_weights": False}


def read_run_tokenizer(run: Path) -> Node | None:
    """Return the node of a run's tokenizer; None where its data are no text."""
    folder = to_run_folder(run) / TOKENIZER_FOLDER
    if (folder / "tokenizer.json").is_file():
        return {"_target_": FOLDER, "path": str(folder.absolute())}
    return {"_target_": BYTES} if folder.is_dir() else None


def merge_typed(
    config: ComposedConfig, node: Node, typed: Collection[str], choices: Mapping[str, Any], base: str
) -> tuple[Node, Conflict | None]:
    """Return the base's node with what may be typed, and the conflict of what was typed and differs.

    What computes the same in another way may differ. With finetune=full so may the linear layers: what was trained in full
    precision is then trained on with ternary weights.
    """
    merged, keys = ComposedConfig({"model": copy.deepcopy(node)}), [key for key in typed if key.startswith("model.")]
    is_full = config.get("finetune._target_") == FULL
    has_linear = "model" in typed or is_chosen("linear", "linear", typed, choices)
    keys += ["model._target_"] * ("model" in typed) + ["model.linear._target_"] * has_linear
    linear = config.get("model.linear")
    if is_full and has_linear and isinstance(linear, dict) and linear["_target_"] != merged.get("model.linear._target_"):
        merged.set("model.linear", linear)
    differences = list[Difference]()
    for key in dict.fromkeys(keys):
        now, then = config.get_resolved(key)[0], merged.get(key)
        if isinstance(now, dict) or is_interpolated(now) or now == then:
            continue
        if key in CHANGEABLE_KEYS or (is_full and key.startswith("model.linear.") and then is not MISSING):
            merged.set(key, now)
        else:
            differences.append(Difference(key, *("nothing" if v is MISSING else to_override(v) for v in (now, then))))
    if not differences:
        return merged.cfg["model"], None
    message = f"{'; '.join(map(str, differences[:3]))}: finetune.base={base} brings its own model"
    fix = "leave it out, or give another finetune.base"
    return node, Conflict((differences[0].key.removesuffix("._target_"),), message, fix)
