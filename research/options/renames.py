"""Old names of config keys and targets, with the new ones: the table by which older config.yaml files are read.

Names changed in 0.2. The preflight answers an old name that is typed with the new one. Old names in other files stand with
their readers: SUMMARY_V1 in run_dir.py, PROGRESS_V1 in training/snapshot.py, StudySpec.
"""

import copy
from typing import Any

from research.contracts import contract

TARGETS = {  # old -> new
    "research.trainer.Trainer": "research.training.trainer.Trainer",
    "research.optim.plain.plain": "research.optim.param_groups.from_base",
    "research.jsonl.Tracker": "research.tracking.jsonl.Tracker",
    "research.jsonl.Jsonl": "research.tracking.jsonl.Jsonl",
    "research.tracking.MLflow": "research.tracking.mlflow.MLflow",
    "research.callbacks.pruning.Pruning": "research.sweep.pruning.Pruning",
}
PARAMETERS: dict[str, dict[str, str]] = {  # new target -> old parameter -> new parameter
    "research.training.trainer.Trainer": {
        "judge_train": "eval_train",
        "on_nonfinite": "guard.policy",
        "max_skips": "guard.max_skips",
        "max_rollbacks": "guard.max_rollbacks",
    },
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
PLAIN_LOSS = {"label_smoothing": 0.0, "z_loss": 0.0, "class_weights": None}
ADDED: dict[str, dict[str, Any]] = {  # target -> settings that older versions had not, with what they did
    **{f"research.losses.{name}": PLAIN_LOSS for name in ("next_token", "last_token", "classification")},
    "research.data.text.text": {
        "tokenizer": {"_target_": "research.data.tokenizers.Bytes"},
        "format": "auto",
        "field": "text",
        "encoding": "utf-8",
        "defects": "refuse",
        "test_fraction": 0.0,
        "weights": None,
    },
    "research.callbacks.early_stop.EarlyStop": {"patience": None},
    "research.models.transformer.Transformer": {"document_mask": False},
    "research.models.hub.Hub": {"load_weights": True, "keep_blocks": []},
}
NODES = {  # config key -> the target that conf/ has there, whose old parameters one may still type
    "trainer": "research.training.trainer.Trainer",
    "model": "research.models.transformer.Transformer",
    "model.linear": "research.nn.bitlinear.BitLinear",
    "data": "research.data.text.text",
}


@contract
def find_new_key(key: str, target: Any) -> str | None:
    """Return the current name of a config key whose node has this target; None where it never had another.

    The key may be one of an option that was not chosen, or be typed by its last part alone.
    """
    parent, _, old = key.rpartition(".")
    for node, candidate in ((parent, str(target)), *NODES.items()):
        new = PARAMETERS.get(TARGETS.get(candidate, candidate), {}).get(old)
        if new and parent in ("", node):
            return f"{node}.{new}"
    return None


@contract
def describe_rename(old: str, new: str) -> str:
    """Return the message of a key or target that is typed by its old name."""
    return f"'{old}' is called '{new}' since 0.2"


@contract
def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a resolved configuration of any earlier version with the current names."""
    upgraded: dict[str, Any] = copy.deepcopy(config)
    nodes = [upgraded]
    while nodes:
        node = nodes.pop()
        if isinstance(target := node.get("_target_"), str):
            node["_target_"] = TARGETS.get(target, target)
            for old, new in PARAMETERS.get(node["_target_"], {}).items():
                if old in node:
                    parent, _, last = new.rpartition(".")
                    holder = node.setdefault(parent, {}) if parent else node
                    holder[last] = node.pop(old)
            for name, value in ADDED.get(node["_target_"], {}).items():
                node.setdefault(name, copy.deepcopy(value))
        if node.get("_target_") == "research.models.hub.Hub" and node.get("linear", ...) is None:  # hub_full before conf/linear
            node["linear"] = {"_target_": "torch.nn.Linear", "_partial_": True}
        if node.get("_target_") == "research.data.text.text" and (node.get("path"), node.get("pattern")) == (None, "*.py"):
            node["pattern"] = None  # the standard library's files are Python's
        nodes += [value for value in node.values() if isinstance(value, dict)]
    return upgraded
