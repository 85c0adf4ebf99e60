"""What config keys and targets were called before: run folders of earlier versions are read through this one table.

Since 0.2: a key that a user types by its old name is refused with its new one; a run folder that holds it is understood.
"""

import copy
from typing import Any

TARGETS = {  # old -> new
    "research.optim.param_groups.plain": "research.optim.param_groups.from_base",
}
PARAMETERS: dict[str, dict[str, str]] = {  # target -> old -> new
    "research.training.trainer.Trainer": {"judge_train": "eval_train"},
    "research.nn.bitlinear.BitLinear": {
        "scale": "scale_method",
        "per": "granularity",
        "activation_per": "activation_granularity",
        "back_end": "backend",
    },
    "research.models.transformer.Transformer": {"hidden": "ffn_dim", "act": "activation", "tied": "tie_embeddings"},
    "research.models.decoder.Decoder": {"hidden": "ffn_dim"},
    "research.data.text.text": {"glob": "pattern", "length": "seq_len"},
}
SHAPES = {"vocab": "vocab_size", "length": "seq_len", "features": "num_features", "classes": "num_classes"}  # summary.json


def get_new_name(target: Any, parameter: str) -> str | None:
    """Return what a parameter of a target is called now; None where it never had another name."""
    return PARAMETERS.get(str(target), {}).get(parameter)


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration of any earlier version in today's words. The argument is left as it is."""
    upgraded: dict[str, Any] = copy.deepcopy(config)
    nodes = [upgraded]
    while nodes:
        node = nodes.pop()
        if isinstance(target := node.get("_target_"), str):
            node["_target_"] = TARGETS.get(target, target)
            for old, new in PARAMETERS.get(node["_target_"], {}).items():
                if old in node:
                    node[new] = node.pop(old)
        if node.get("_target_") == "research.models.hub.Hub" and node.get("linear", ...) is None:  # hub_full before conf/linear
            node["linear"] = {"_target_": "torch.nn.Linear", "_partial_": True}
        nodes += [value for value in node.values() if isinstance(value, dict)]
    return upgraded


def upgrade_shape(shape: dict[str, int]) -> dict[str, int]:
    """Return the shape that summary.json holds, its fields as they are called now."""
    return {SHAPES.get(name, name): size for name, size in shape.items()}
