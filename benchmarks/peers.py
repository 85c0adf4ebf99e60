"""Training under the loops of Lightning and transformers, without reports and bars: loop_overhead times it, faults kill it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.models import Parts

Loss = Callable[[Tensor, Tensor], Tensor]
Moments = Mapping[str, Callable[..., None]]  # methods of a callback, by name


class Samples(TensorDataset):
    """Inputs and targets for a DataLoader that reads a whole batch by one index."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]  # type: ignore[no-any-return]


def make_loader(samples: Samples, batch_size: int) -> Any:
    # `__getitems__` has collated the batch.
    return DataLoader(samples, batch_size, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)


def make_callback(base: type, **members: Any) -> Any:
    """Return a callback with these methods and attributes; `base` is the class of callbacks of a library."""
    return type("Moments", (base,), members)()


def fit_lightning(
    parts: Parts, loss: Loss, loader: Any, moments: Moments, saving: Any = (), resume: bool = False, **settings: Any
) -> None:
    """Train with Lightning's Trainer; `saving` are callbacks for checkpoints. Resume from the last of them if wished."""
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

    callbacks = [make_callback(lightning.Callback, **moments), *saving]
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", callbacks=callbacks, **off, **settings)
    trainer.fit(Module(), loader, ckpt_path="last" if resume else None)


def fit_transformers(
    parts: Parts, loss: Loss, samples: Samples, moments: Moments, folder: Path, resume: bool = False, **settings: Any
) -> None:
    """Train with the Trainer of transformers, which saves into `folder`. Resume from its last checkpoint if wished."""
    import transformers

    class Loop(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **more: Any) -> Tensor:
            return loss(model(inputs["x"]), inputs["y"])

    model, optimizer = parts
    off = {"report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    loop = Loop(
        model,
        transformers.TrainingArguments(str(folder), use_cpu=True, dataloader_drop_last=True, **off, **settings),
        data_collator=lambda batch: dict(zip("xy", batch, strict=True)),
        train_dataset=samples,
        callbacks=[make_callback(transformers.TrainerCallback, **moments)],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    loop.remove_callback(transformers.PrinterCallback)
    loop.train(resume_from_checkpoint=resume)
