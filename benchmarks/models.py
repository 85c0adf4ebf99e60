"""The models, weights, training steps and loops that several benchmarks measure."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from research.contracts import contract
from research.data.spec import Dataset
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.packed import PackedLinear
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.training.state import Callback, State
from research.training.trainer import Trainer

Data = Dataset[Any]
Parts = tuple[nn.Module, Optimizer]
Step = Callable[[], None]
Loss = Callable[[Tensor, Tensor], Tensor]


@contract
def build_parts(data: Data, dim: int, depth: int, heads: int, sub_norm: bool = False, weight_decay: float = 0.0) -> Parts:
    """Return a full-precision transformer, the same at each call, and its fused AdamW."""
    torch.manual_seed(0)
    model = Transformer(data.shape, dim, depth, heads, nn.Linear, sub_norm=sub_norm)
    adamw: partial[Any] = partial(AdamW, betas=(0.9, 0.98), fused=True)
    return model, from_base(model, adamw, lr=1e-3, weight_decay=weight_decay)


@contract
def fit(trainer: Trainer, parts: Parts, data: Data, callback: Callback, folder: Path | None = None) -> State:
    """Train `parts` on `data` at a constant rate; return the last state.

    A signal ends the program: half a run is no measurement.
    """
    state = trainer.fit(trainer.setup(*parts, constant, last_token, data, [callback], folder=folder))
    if state.signum:
        sys.exit(128 + state.signum)
    return state


@contract
def make_step(model: nn.Module, optimizer: Optimizer, tokens: Tensor, autocast: bool, clip_norm: float | None) -> Step:
    """Return a function that does one training step on the same tokens, under bf16 autocast if wished."""
    params, x, y = list(model.parameters()), tokens[:, :-1], tokens[:, 1:].flatten()

    def step() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x).flatten(0, 1).float(), y)
        loss.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(params, clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


@contract
def make_packed(out: int, width: int, scale: float = 1.0) -> PackedLinear:
    """Return a packed layer with random codes."""
    layer = PackedLinear(width, out, bias=False)
    layer.codes.random_(0, 3).mul_(0b01010101)
    layer.scale.fill_(scale)
    return layer


class Samples(TensorDataset):
    """Inputs and targets for a DataLoader that reads a whole batch by one index."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]  # type: ignore[no-any-return]


@contract
def make_loader(samples: Samples, batch_size: int) -> Any:
    # `__getitems__` has collated the batch.
    return DataLoader(samples, batch_size, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)


@contract
def make_callback(base: type, **members: Any) -> Any:
    """Return a callback with these methods and attributes; `base` is the class of callbacks of a library."""
    return type("Moments", (base,), members)()


@contract
def fit_lightning(parts: Parts, loss: Loss, loader: Any, callbacks: list[Any], resume: bool = False, **settings: Any) -> None:
    """Train with Lightning's Trainer, from its last checkpoint if `resume` is true."""
    import lightning

    model, optimizer = parts

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Optimizer:
            return optimizer

    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", callbacks=callbacks, **off, **settings)
    trainer.fit(Module(), loader, ckpt_path="last" if resume else None)


@contract
def fit_transformers(parts: Parts, loss: Loss, samples: Samples, callback: Any, resume: bool = False, **settings: Any) -> None:
    """Train with the Trainer of transformers, from its last checkpoint if `resume` is true."""
    import transformers

    class Loop(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **more: Any) -> Tensor:
            return loss(model(inputs["x"]), inputs["y"])

    model, optimizer = parts
    off = {"report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    loop = Loop(
        model,
        transformers.TrainingArguments(use_cpu=True, dataloader_drop_last=True, **off, **settings),
        data_collator=lambda batch: dict(zip("xy", batch, strict=True)),
        train_dataset=samples,
        callbacks=[callback],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    loop.remove_callback(transformers.PrinterCallback)
    loop.train(resume_from_checkpoint=resume)
