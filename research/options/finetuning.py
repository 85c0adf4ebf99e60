"""What a configuration says about fine-tuning: how a base is fine-tuned, which one, and what the two merge into."""

import copy
from collections.abc import Mapping
from typing import Any

from research.contracts import contract

FULL, SIDE, INSIDE, GAINS = (f"research.finetune.{name}.{name}" for name in ("full", "side", "inside", "gains"))
INSIDE_TARGETS = (INSIDE, GAINS)  # what learns is inside ternary layers, and merges into them to the bit


@contract
def get_target(config: Mapping[str, Any]) -> str:
    """Return the `_target_` by which a run is fine-tuned; an empty text where it is not."""
    return str((config.get("finetune") or {}).get("_target_") or "")


@contract
def get_kind(config: Mapping[str, Any]) -> str:
    """Return how a run is fine-tuned, as inside; an empty text where it is not."""
    return get_target(config).rpartition(".")[2]


@contract
def format_choice(config: Mapping[str, Any]) -> str:
    """Return the overrides that choose how a run is fine-tuned, and its base."""
    base = (config.get("finetune") or {}).get("base")
    return f"finetune={get_kind(config)}" + (f" finetune.base={base}" if base else "")


@contract
def get_digest(config: Mapping[str, Any]) -> str:
    """Return the recorded digest of the base of a run; an empty text where it has none."""
    return str((config.get("finetune") or {}).get("digest") or "")


@contract
def is_frozen(config: Mapping[str, Any]) -> bool:
    """Return whether the weights of a base stay as they are: checkpoints leave them out, and are read with the base."""
    return get_target(config) not in ("", FULL)


@contract
def is_inside(config: Mapping[str, Any]) -> bool:
    """Return whether what learns is inside ternary layers, which the base then needs to have."""
    return get_target(config) in INSIDE_TARGETS


@contract
def is_beside(config: Mapping[str, Any]) -> bool:
    """Return whether what learns may be beside the layers: such a model is no plain one, nor is that of a kind of one's own."""
    return is_frozen(config) and not is_inside(config)


@contract
def check_plain(config: Mapping[str, Any], what: str) -> None:
    """Raise ValueError for a run whose model has adapters beside its layers, which `what` would lose."""
    if not is_beside(config):
        return
    how, fix = f"by {get_target(config)}", "use it as it is, or train with finetune=inside"
    if get_target(config) == SIDE:
        how = "beside its layers (finetune=side)"
        fix = "use it as it is; one in full precision merges, python -m research.merge; or train with finetune=inside"
    raise ValueError(f"RUN was fine-tuned {how}, and {what} holds plain models; {fix}")


@contract
def get_gain_settings(granularity: object) -> dict[str, Any]:
    """Return the settings by which a quantizer gives back ternary codes times any scale, to the bit.

    There is a scale an output, or a group of inputs where the granularity is its size.
    """
    size = granularity if isinstance(granularity, int) else "channel"
    return {"scale_method": "absmax", "weight_bits": 1.58, "granularity": size}


@contract
def merge_finetuning(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the plain model that a fine-tuned one computes, as research.nn.lowrank merges it.

    One that is fine-tuned beside its layers, or in a way of one's own, has none: it stays as it is.
    """
    if not get_target(config) or is_beside(config):
        return config
    merged = copy.deepcopy(config) | {"finetune": None}
    if get_target(config) == GAINS and isinstance(linear := merged["model"].get("linear"), dict):
        linear |= get_gain_settings(linear.get("granularity"))
    return merged
