"""The base that a run is fine-tuned from: what is recorded of it, and whether a run may begin there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.composition.overrides import to_argument
from research.contracts import contract
from research.files.locks import is_locked
from research.options.finetuning import get_digest, get_kind, is_frozen, is_inside
from research.rules import Conflict, to_conflict
from research.run_dir import expand_path, to_run_folder
from research.training.digests import find_weights, hash_folder, hash_run
from research.training.manifest import is_checkpoint

NO_BASE_FIX = "give finetune.base=FOLDER, a run or a checkpoint, or model=hub model.folder=FOLDER"


@contract
def complete_base(config: Mapping[str, Any], run: Path | None) -> tuple[dict[str, Any], Conflict | None]:
    """Return the settings to record of what a configuration is fine-tuned from, or its conflict. `run` is `finetune.base`."""
    node, model = dict(config["finetune"]), config.get("model") or {}
    base, folder = (
        str(node.get("base")),
        str(model["folder"]) if model.get("folder") and model.get("load_weights", True) else None,
    )
    if conflict := check_base(config, run, folder):
        return {}, conflict
    try:
        digest = hash_run(run) if run else hash_folder(str(folder))
    except ValueError as error:
        conflict = to_conflict("model.folder", error)
        if run:
            conflict = Conflict(("finetune.base",), f"finetune.base={base}: {conflict.message}", "give another run")
        return {}, conflict
    if (other := node.get("digest")) not in (None, digest):
        message = f"finetune.digest={other} is not that of {base if run else folder}, which is {digest}"
        return {}, Conflict(("finetune.digest",), message, "leave it out, or give the base that has it")
    return {"finetune.digest": digest} | ({"finetune.base": str(run)} if run else {}), None


@contract
def check_base(config: Mapping[str, Any], run: Path | None, folder: str | None) -> Conflict | None:
    """Return the conflict of fine-tuning with its base's layers, with sharded weights, or with the state of its base.

    The base is a run, or else the folder of a model of hub.
    """
    kind, base, resume = get_kind(config), str(config["finetune"].get("base")), config.get("resume") or {}
    model = config.get("model") or {}
    linear = str((model.get("linear") or {}).get("_target_"))
    if is_frozen(config) and (config.get("trainer") or {}).get("parallel") == "fsdp":
        message = f"finetune={kind} keeps its base whole in each process, trainer.parallel=fsdp shards weights"
        return Conflict(("finetune", "trainer.parallel"), message, "give trainer=ddp, or finetune=full")
    if is_inside(config) and linear == "torch.nn.Linear":
        message = f"finetune={kind} is of ternary layers, and those of the base are in full precision"
        return Conflict(("finetune",), message, "give finetune=side or finetune=full, or a base with ternary layers")
    if run is None:
        is_new = model.get("folder") and not folder  # whose weights are not read
        fix = "leave out model.load_weights=false, or give finetune.base=FOLDER" if is_new else NO_BASE_FIX
        return None if folder else Conflict(("finetune.base",), "fine-tuning needs a base to begin at", fix)
    resumed = expand_path(path).resolve() if (path := str(resume.get("path") or "auto")) != "auto" else None
    if resumed and to_run_folder(resumed) == to_run_folder(run):
        is_new = resume.get("weights_only")
        fix = "leave resume out: it begins at the base's weights" if is_new else "give the base that the run began at"
        return Conflict(("finetune.base", "resume.path"), f"finetune.base={base} is the very run of resume", fix)
    if is_locked(to_run_folder(run)) and not is_checkpoint(run):
        fix = "wait for its end, or give one of its checkpoints/step-*"
        return Conflict(("finetune.base",), f"finetune.base={base} is in training: its weights change", fix)
    return None


@contract
def check_same_base(config: Mapping[str, Any], recorded: Mapping[str, Any]) -> Conflict | None:
    """Return the conflict of a run that is resumed with another base than the one whose weights its checkpoints leave out."""
    now, then = get_digest(config), get_digest(recorded)
    if not now or not is_frozen(recorded) or now == then:
        return None
    key = "finetune.base" if config["finetune"].get("base") else "model.folder"
    base = config["finetune"].get("base") or config["model"].get("folder")
    message = f"{base} has weights of digest {now}, the run was fine-tuned from {then}"
    known = (config["finetune"].get("base"), recorded["finetune"].get("base"))
    there = next(filter(None, (find_weights(path, then) for path in known if path)), None) if key == "finetune.base" else None
    fix = to_argument(key, str(there)) if there else f"{key}=FOLDER"
    return Conflict(("resume.path", key), message, f"give the base that has them by {fix}")
