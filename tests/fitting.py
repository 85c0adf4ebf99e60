"""One small run for tests of training: a transformer on modular arithmetic, without Hydra."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from research.callbacks.checkpoint import Checkpoint
from research.callbacks.gradients import GradientHealth
from research.callbacks.ternary import Ternary
from research.data.modular import modular
from research.data.spec import Dataset
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.optim import grokfast
from research.optim.schedules import constant, cosine
from research.run_dir import RunConfig
from research.tracking.jsonl import Jsonl
from research.training.state import Callback, State
from research.training.trainer import Trainer

DATA = modular(p=11)  # 50 samples: an epoch is 6.25 steps of 8
EPOCH, STEPS = 25, 30  # four epochs end after 25 steps
EMA = partial(grokfast.ema, alpha=0.9)


def fit(folder: Path, *callbacks: Callback, resume: Path | None = None, loss: Any = last_token, **settings: Any) -> State:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "dropout": 0.0,
        "filter": EMA,
        "background": False,
        "every": None,
        "keep_last": 1,
        "keep_best": 1,
        "monitor": "val/loss",
    } | settings
    model = Transformer(
        DATA.shape, options.pop("dim", 16), 1, 2, options.pop("linear", BitLinear), dropout=options.pop("dropout")
    )
    if finetune := options.pop("finetune", None):  # its base is the model as it is built
        options["config"] = {"finetune": {"_target_": "research.finetune.inside.inside", "digest": "of the base"}}
        finetune(model)
    base = partial(torch.optim.AdamW, fused=True)
    optimizer = options.pop("filter")(model, base, lr=5e-3, lamb=1.0, weight_decay=0.1)
    saving = Checkpoint(*(options.pop(key) for key in ("every", "keep_last", "keep_best", "background")))
    folder.mkdir(exist_ok=True)
    monitor, config = options.pop("monitor"), options.pop("config", {})
    jsonl, health = Jsonl(), [GradientHealth(every=4), Ternary(every=4)] if options.pop("health", False) else []
    resumed = resume is not None and folder in (resume, *resume.parents)
    jsonl.start(RunConfig("name", "study", folder, {}, [], {}, resumed=resumed))
    own: dict[str, Any] = {"steps": STEPS, "batch_size": 8, "eval_every": 7, "log_every": 3, "device": "cpu"} | options
    trainer = Trainer(**own)
    watchers: list[Callback] = [jsonl, saving, *health, *callbacks]
    try:
        facts: dict[str, Any] = {"monitor": monitor, "folder": folder, "resume": resume, "config": config}
        state = trainer.setup(model, optimizer, cosine, loss, DATA, watchers, **facts)
        return trainer.fit(state)
    finally:
        jsonl.finish("", {})


def make_state(model: nn.Module, *, data: Dataset[Any] = DATA, steps: int = 5, batch_size: int = 8, **facts: Any) -> State:
    """A run of any model before its first step, for tests of what looks at one."""
    trainer = Trainer(steps, batch_size, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return trainer.setup(model, optimizer, constant, last_token, data, **{"monitor": "val/acc"} | facts)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_clock = ("seconds", "perf/samples_per_s", "perf/tokens_per_s", "crc32")
    return [{k: v for k, v in line.items() if k not in of_clock} for line in lines]
