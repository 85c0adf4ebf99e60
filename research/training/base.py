"""The weights that a run is fine-tuned from: their digest, and whether a run may begin at them. Torch is not imported."""

import copy
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from research.files.weights import list_weight_files
from research.rules import Conflict
from research.run_dir import expand_path, is_locked, to_run_folder
from research.training.manifest import DamagedError, check_file, hash_file, is_checkpoint, rank_checkpoints, read_manifest

FROZEN_KINDS = ("side", "inside", "gains")  # of fine-tuning, whose checkpoints leave out the base's weights
INSIDE_KINDS = ("inside", "gains")  # and which are of ternary layers alone
# Of layers that have taken in gains, as research.nn.lowrank makes them.
GAIN_SETTINGS = {"scale_method": "absmax", "weight_bits": 1.58, "granularity": "channel"}
NO_BASE_FIX = "give finetune.base=FOLDER, a run or a checkpoint, or model=hub model.folder=FOLDER"


def get_kind(config: Mapping[str, Any]) -> str:
    """Return how a run is fine-tuned, as inside; an empty text where it is not."""
    return str((config.get("finetune") or {}).get("_target_") or "").rpartition(".")[2]


def get_digest(config: Mapping[str, Any]) -> str:
    """Return the recorded digest of the base of a run; an empty text where it has none."""
    return str((config.get("finetune") or {}).get("digest") or "")


def hash_checkpoint(folder: Path) -> str:
    """Return a digest of a checkpoint's weights: the sha256 of its file of them, or of several with their names.

    A checkpoint that holds adapters alone names its own base, which counts too. Raise DamagedError where it cannot be read.
    """
    manifest = read_manifest(folder)
    digests = {name: str(entry["sha256"]) for name, entry in manifest.files.items() if not name.endswith(".pt")}
    base = manifest.identity.get("base")
    return combine_digests(digests | ({"base": base} if base else {}))


@cache  # a command reads gigabytes once
def hash_folder(folder: str) -> str:
    """Return a digest of a pretrained folder's weights and of the config.json that says what they compute.

    Raise ValueError where it has none.
    """
    path = expand_path(folder)
    try:
        files = list_weight_files(path)
        digests = {file.name: str(hash_file(file)["sha256"]) for file in [path / "config.json", *files]}
    except OSError as error:
        raise ValueError(f"model.folder={folder}: {error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"model.folder={folder} cannot be read: {error}\ngive a folder that save_pretrained wrote") from error
    if not files:
        raise ValueError(f"model.folder={folder} has no weights to begin at\ngive a folder that save_pretrained wrote")
    return combine_digests(digests)


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the only digest, or the sha256 of several with their names."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()).hexdigest()


def hash_run(run: Path, base: str) -> str:
    """Return the digest of a checkpoint's weights, or of a run's newest one. Raise ValueError where there is none."""
    damage = []
    for folder in [run] if is_checkpoint(run) else [folder for _, folder in rank_checkpoints(to_run_folder(run))]:
        try:
            for name, entry in read_manifest(folder).files.items():
                check_file(folder / name, entry)
            return hash_checkpoint(folder)
        except DamagedError as error:
            damage.append(f"{folder.name}: {error}")
    reasons = "; ".join(damage) or "it holds no checkpoints/step-*"
    raise ValueError(f"finetune.base={base} has no usable checkpoint ({reasons})\ngive another run")


def find_base(config: Mapping[str, Any], run: Path | None) -> tuple[dict[str, Any], Conflict | None]:
    """Return the settings to record of what a configuration is fine-tuned from, or its conflict. `run` is `finetune.base`."""
    node, model = dict(config["finetune"]), config.get("model") or {}
    kind, base = get_kind(config), str(node.get("base"))
    folder = model.get("folder") if model.get("load_weights", True) else None
    conflict = _find_conflict(kind, base, run, config)
    if conflict or not (run or folder):
        fix = "" if conflict else NO_BASE_FIX
        return {}, conflict or Conflict(("finetune.base",), f"finetune={kind} needs a base to begin at", fix)
    try:
        digest = hash_run(run, base) if run else hash_folder(str(folder))
    except ValueError as error:
        message, _, fix = str(error).partition("\n")
        return {}, Conflict(("finetune.base",) if run else ("model.folder",), message, fix)
    if (other := node.get("digest")) not in (None, digest):
        message = f"finetune.digest={other} is not that of {base if run else folder}, which is {digest}"
        return {}, Conflict(("finetune.digest",), message, "leave it out, or give the base that has it")
    return {"finetune.digest": digest} | ({"finetune.base": str(run)} if run else {}), None


def _find_conflict(kind: str, base: str, run: Path | None, config: Mapping[str, Any]) -> Conflict | None:
    """Return the conflict of fine-tuning with the state of its base, with its layers, or with sharded weights."""
    trainer, resume = config.get("trainer") or {}, str((config.get("resume") or {}).get("path") or "")
    linear = str(((config.get("model") or {}).get("linear") or {}).get("_target_"))
    if kind in FROZEN_KINDS and trainer.get("parallel") == "fsdp":
        message = f"finetune={kind} keeps its base whole in each process, trainer.parallel=fsdp shards weights"
        return Conflict(("finetune", "trainer.parallel"), message, "give trainer=ddp, or finetune=full")
    if kind in INSIDE_KINDS and linear == "torch.nn.Linear":
        message = f"finetune={kind} is of ternary layers, and those of the base are in full precision"
        return Conflict(("finetune",), message, "give finetune=side or finetune=full, or a base with ternary layers")
    if run is None:
        return None
    folder = to_run_folder(run)
    if resume and resume != "auto" and to_run_folder(expand_path(resume).resolve()) == folder:
        is_new = (config.get("resume") or {}).get("weights_only")
        fix = "leave resume out: it begins at the base's weights" if is_new else "give the base that the run began at"
        return Conflict(("finetune.base", "resume.path"), f"finetune.base={base} is the very run of resume", fix)
    if is_locked(folder) and not is_checkpoint(run):
        fix = "wait for its end, or give one of its checkpoints/step-*"
        return Conflict(("finetune.base",), f"finetune.base={base} is in training: its weights change", fix)
    return None


def merge_finetuning(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the plain model that a fine-tuned one computes, as research.nn.lowrank merges it.

    One that is fine-tuned beside its layers has none: it stays as it is.
    """
    kind = get_kind(config)
    if kind not in ("full", *INSIDE_KINDS):
        return config
    merged = copy.deepcopy(config) | {"finetune": None}
    if kind == "gains" and isinstance(linear := merged["model"].get("linear"), dict):
        groups = {"granularity": linear["granularity"]} if isinstance(linear.get("granularity"), int) else {}
        linear |= GAIN_SETTINGS | groups
    return merged
