"""The settings that a resumed run keeps, and the command lines that do what a refused resume= meant."""

import sys
from pathlib import Path
from typing import Any

from research.cli import redact
from research.composition.compose import iter_leaves
from research.composition.finetuning import check_same_base
from research.composition.overrides import format_command, quote_word, to_literal
from research.composition.recorded import (
    CHANGEABLE_KEYS,
    FREE_SETTINGS,
    OUTER_SETTINGS,
    Difference,
    list_differences,
    list_moved,
    load_config,
)
from research.composition.teacher import name_teacher
from research.contracts import contract
from research.options.conf import list_groups
from research.options.finetuning import get_digest, get_kind, get_target, is_beside, is_frozen, is_inside
from research.preflight.requested import RequestedConfig
from research.rules import Conflict
from research.run_dir import MODEL_FOLDER, expand_path, read_json, read_text, to_run_folder
from research.training.digests import find_weights

WEIGHT_NODES = ("model", "finetune")  # what weights belong to
FIXED_NODES = (*WEIGHT_NODES, "data", "optim._target_", "optim.base._target_", "objective.digest")  # the last: the teacher's
TRANSPOSED_TYPES = ("gpt2", "openai-gpt")  # whose layers in full precision are Conv1D


@contract
def resolve_settings(requested: RequestedConfig) -> dict[str, Any]:
    """Return the run's settings by their dotted keys, without Hydra's own."""
    leaves = iter_leaves("", {root: node for root, node in requested.cfg.items() if root != "hydra"})
    return redact({key: requested.get_resolved(key)[0] for key, _ in leaves})  # a run folder holds no passwords


@contract
def find_fixed_conflict(requested: RequestedConfig, path: Path, value: str, is_new: bool) -> Conflict | None:
    """Return the conflict of settings that differ from those of what resume= names, `value`, and may not; None for none."""
    if not (old := load_config(path)[0]):
        return None
    if not is_new and (conflict := check_same_base(requested.cfg, old)):
        return conflict
    linear = [((cfg.get("model") or {}).get("linear") or {}).get("_target_") for cfg in (requested.cfg, old)]
    may_convert = is_new and linear[0] != linear[1]  # as full precision to ternary: the tensors of both are the same
    kind = read_json(to_run_folder(path) / MODEL_FOLDER / "config.json").get("model_type")  # of a model of transformers
    if may_convert and "torch.nn.Linear" in linear and kind in TRANSPOSED_TYPES:
        message = f"{path} is of {kind}, whose layers hold their weights transposed where they are not ternary"
        fix = f"begin at its weights by finetune=full {quote_word(f'finetune.base={to_literal(value)}')}, without resume"
        return Conflict(("resume.path", "linear"), message, fix)
    moved = [key for key in list_moved(old) if requested.get_resolved(key)[0] is not None]
    has_adapters = is_frozen(requested.cfg) or is_frozen(old)
    free = (
        *CHANGEABLE_KEYS,
        *moved,
        *(["model.linear"] if may_convert else []),
        "finetune.digest" if has_adapters else "finetune",
    )
    nodes = tuple(f"{node}." for node in (WEIGHT_NODES if is_new else FIXED_NODES))
    differences = list_differences(resolve_settings(requested), old, (*FREE_SETTINGS, *free))
    fixed = [item for item in differences if f"{item.key}.".startswith(nodes)]
    if not fixed or "finetune.base" in requested.mistakes:  # which brings the model
        return None
    if get_target(requested.cfg) != get_target(old) and has_adapters:  # its other settings follow from that
        fixed = [item for item in fixed if item.key.partition(".")[0] != "finetune"]
        fixed.insert(0, Difference("finetune", *(get_kind(cfg) or "null" for cfg in (requested.cfg, old))))
    fixed.sort(key=lambda item: item.key != "finetune" and not item.key.endswith("_target_"))
    message = "; ".join(map(str, fixed[:3]))
    if fixed[0].key == "objective.digest":
        now, then = name_teacher(requested.get("objective")), name_teacher(old.get("objective"))
        message = f"the teacher is {now} here, was {then} there"
    own = read_own_line(to_run_folder(path))
    if (is_new or own is None) and not is_beside(old):
        return Conflict(
            ("resume.path", *(item.key for item in fixed)), message, begin_there(requested, old, value, may_convert)
        )
    fix = go_on(requested, old, value, own or [], moved)
    if not any(item.key.partition(".")[0] in WEIGHT_NODES for item in fixed):
        fix += "\n  give resume.weights_only=true for a new run from its weights"
    return Conflict(("resume.path", *(item.key for item in fixed)), message, fix)


def read_own_line(run: Path) -> list[str] | None:
    """Return the overrides of a run; None where it keeps none, as what a merge has written."""
    try:
        return read_text(run / "overrides.txt", "replace").splitlines()
    except OSError:
        return None


def begin_there(requested: RequestedConfig, old: dict[str, Any], value: str, may_convert: bool) -> str:
    """Return the line of a new run from the weights of another, whose model comes with them."""
    can_keep = get_target(requested.cfg) and not (is_inside(requested.cfg) and "torch.nn.Linear" in str(old.get("model")))
    left_out = {"resume", "model", *([] if may_convert else ["linear"]), *([] if can_keep else ["finetune"])}
    words = requested.typed_overrides.items()
    kept = [
        line for key, line in words if key.partition(".")[0] not in left_out and key not in ("finetune.base", "finetune.digest")
    ]
    kept += [] if can_keep else ["finetune=full"]
    command = format_command([*dict.fromkeys(kept), f"finetune.base={to_literal(value)}"], argv=sys.argv)
    return f"to begin at its weights: {command}"


def go_on(requested: RequestedConfig, old: dict[str, Any], value: str, own: list[str], moved: list[str]) -> str:
    """Return the line that goes on with a run: its own, with what is typed now about neither its parts nor its folder.

    Where its base and its teacher lie, and what was moved, is as it is typed now, or else where their weights are.
    """
    is_apart = ("resume", *(node.partition(".")[0] for node in FIXED_NODES), *list_groups())
    location_keys = {key for key in OUTER_SETTINGS if old.get(key.partition(".")[0]) or "." not in key} | {*moved}
    words = requested.typed_overrides.items()
    typed = {key: line for key, line in words if key in location_keys or key.partition(".")[0] not in is_apart}
    digests = {"finetune.base": get_digest(old), "objective.teacher": (old.get("objective") or {}).get("digest")}
    for key, digest in digests.items():
        recorded = (old.get(key.partition(".")[0]) or {}).get(key.partition(".")[2])
        paths = [path for path in (requested.get_resolved(key)[0], recorded) if isinstance(path, str)]
        there = next(filter(None, (find_weights(path, digest) for path in paths if digest)), None)
        if digest and paths and not there and not (old.get("objective") or {}).get("stored"):
            return f"give {key}=FOLDER, as it was: {paths[0]} has no weights of digest {digest[:12]} any more"
        if there and there != expand_path(paths[0]):
            typed[key] = f"{key}={to_literal(str(there))}"
    replaced = {*typed, *(("steps", "epochs") if {"steps", "epochs"} & typed.keys() else ())}  # one of the two counts
    kept = [line for line in own if line.partition("=")[0].lstrip("+~") not in replaced]
    command = format_command([*kept, *dict.fromkeys(typed.values()), f"resume={to_literal(value)}"], argv=sys.argv)
    return f"to go on with it: {command}"
