"""Old names of config keys and targets, with the new ones: the table by which older config.yaml files are read.

Names changed in 0.2. The preflight answers an old name that is typed with the new one. Old names in other files stand with
their readers: SUMMARY_V1 in run_dir.py, PROGRESS_V1 in training/snapshot.py, StudySpec.
"""

import copy
from typing import Any

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
}
NODES = {  # config key -> the target that conf/ has there, whose old parameters one may still type
    "trainer": "research.training.trainer.Trainer",
    "model": "research.models.transformer.Transformer",
    "model.linear": "research.nn.bitlinear.BitLinear",
    "data": "research.data.text.text",
}


HABITS = {  # what other programs call a setting -> its key here
    **dict.fromkeys(("epoch", "max_epochs", "num_epochs", "n_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("learning_rate", "max_lr", "base_lr", "peak_lr", "eta"), "lr"),
    **dict.fromkeys(("wd", "decay", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("max_steps", "num_steps", "n_steps", "total_steps", "train_steps", "num_train_steps"), "steps"),
    **dict.fromkeys(("iters", "max_iters", "num_iters", "iterations", "num_iterations", "max_iterations"), "steps"),
    **dict.fromkeys(("bs", "batch", "batchsize", "train_batch_size", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(
        ("eval_steps", "eval_interval", "eval_freq", "val_every", "val_interval", "val_check_interval"), "eval_every"
    ),
    **dict.fromkeys(("logging_steps", "log_interval", "log_freq", "log_steps", "log_every_n_steps"), "trainer.log_every"),
    **dict.fromkeys(
        ("save_steps", "save_interval", "save_every", "checkpoint_every", "ckpt_every"), "callbacks.checkpoint.every"
    ),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "gradient_clip_val", "clip_grad", "clip_grad_norm"), "trainer.clip_norm"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches", "accumulation_steps"), "trainer.grad_accum"),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps", "warmup_iters"), "schedule.warmup"),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "hidden_dim", "width"), "model.dim"),
    **dict.fromkeys(("layers", "n_layer", "n_layers", "num_layers", "num_hidden_layers"), "model.depth"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "nhead", "num_attention_heads"), "model.heads"),
    **dict.fromkeys(("n_kv_heads", "num_kv_heads", "num_key_value_heads"), "model.kv_heads"),
    **dict.fromkeys(("d_ff", "intermediate_size", "dim_feedforward", "mlp_dim"), "model.ffn_dim"),
    **dict.fromkeys(("block_size", "context_length", "max_seq_len", "sequence_length", "max_length"), "data.seq_len"),
    **dict.fromkeys(("output_dir", "out_dir", "save_dir", "log_dir", "default_root_dir"), "out"),
    **dict.fromkeys(("resume_from", "resume_from_checkpoint", "ckpt_path", "load_from"), "resume"),
    **dict.fromkeys(("experiment_name", "run_name", "project", "project_name"), "name"),
    **dict.fromkeys(("random_seed", "manual_seed", "rng_seed"), "seed"),
    **dict.fromkeys(("dtype", "amp", "mixed_precision"), "precision"),
    **dict.fromkeys(("optimizer", "optimiser", "opt"), "optim"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule"), "schedule"),
    **dict.fromkeys(("dataset", "task"), "data"),
    **dict.fromkeys(("net", "network", "arch", "architecture"), "model"),
    **dict.fromkeys(("criterion", "loss_fn", "objective"), "loss"),
    **dict.fromkeys(("logger", "tracking"), "tracker"),
    **{"metric": "monitor", "torch_compile": "trainer.compile", "accelerator": "trainer.device", "beta": "optim.base.betas"},
    **{"n_trials": "hydra.sweeper.n_trials", "trials": "hydra.sweeper.n_trials", "n_jobs": "hydra.sweeper.workers"},
}


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


def describe_rename(old: str, new: str) -> str:
    """Return the message of a key or target that is typed by its old name."""
    return f"'{old}' is called '{new}' since 0.2"


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
