"""What a training loop costs over one written by hand: Trainer.fit, accelerate, Lightning, the transformers Trainer.

    python -m benchmarks.loop_overhead [--steps 10] [--rounds 12] [--seatings 12]

Every loop trains its own copy of one transformer with 114 thousand parameters. A step takes 64 samples of modular
arithmetic and about 5 ms on one thread. All loops have the same fused AdamW over the same groups, clip gradients to norm 1
and read the loss every 10 steps. By hand that is 10 lines of PyTorch with index batches.

All loops live in one process and run in turn (lanes.py). The address of a loop's tensors is worth some percent for as long
as the loop lives. So all loops start anew for each seating.

The hand-written loop runs twice, and each loop is compared with the mean of the two. Their distance from 1 is chance.
Each peer gets what its users write, with the fastest data path it allows: a DataLoader that fetches a batch by one index.
"""

import importlib.util
import itertools
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import harness, models
from benchmarks.lanes import FinishStep, start_lanes
from research.data.modular import modular
from research.training.state import Callback, State
from research.training.trainer import Trainer

BATCH, CLIP, LOG_EVERY, ENDLESS = 64, 1.0, 10, 10**9
WARM_UP = 5  # rounds that do not count: first calls, lazy state, caches
BOUNDS = {"ours/by hand": 1.03}
DATA = modular(p=97)


def build_parts() -> tuple[nn.Module, Optimizer]:
    """Return the same model and optimizer for every loop."""
    return models.build_parts(DATA, 64, 2, 4, sub_norm=True, weight_decay=1.0)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss as one writes it by hand."""
    return F.cross_entropy(logits[:, -1], targets)


def run_by_hand(finish_step: FinishStep) -> None:
    """Train with the loop that every other one is compared with."""
    model, optimizer = build_parts()
    params, split = list(model.parameters()), DATA.train
    for step, index in enumerate(iterate_batches(len(split)), start=1):
        x, y = split.inputs[index], split.targets[index]
        loss = mean_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            loss.item()
        if finish_step():
            return


def iterate_batches(n: int) -> Iterator[Tensor]:
    """Yield full batches of sample indices, in a new order each epoch, without end."""
    while True:
        yield from torch.randperm(n)[: n // BATCH * BATCH].split(BATCH)


def run_ours(finish_step: FinishStep) -> None:
    """Train with Trainer.fit. It would evaluate at the end, which never comes."""

    class StopWhenDone(Callback):
        def on_step(self, state: State) -> None:
            if finish_step():
                state.stop = "the measurement is complete"

    trainer = Trainer(ENDLESS, BATCH, clip_norm=CLIP, log_every=LOG_EVERY, eval_every=ENDLESS, device="cpu")
    models.fit(trainer, build_parts(), DATA, StopWhenDone())


class Samples(TensorDataset):
    """A split for a DataLoader that reads a whole batch by one index."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]  # type: ignore[no-any-return]


SAMPLES = Samples(DATA.train.inputs, DATA.train.targets)


def make_loader() -> Any:
    # `__getitems__` has collated the batch.
    return DataLoader(SAMPLES, BATCH, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)


def run_accelerate(finish_step: FinishStep) -> None:
    """Train as accelerate's quick tour does: it prepares all three, and does backward and clipping."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, batches = accelerator.prepare(*build_parts(), make_loader())
    for step, (x, y) in enumerate(itertools.chain.from_iterable(itertools.repeat(batches)), start=1):
        loss = mean_loss(model(x), y)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            loss.item()
        if finish_step():
            return


def run_lightning(finish_step: FinishStep) -> None:
    """Train with Lightning's Trainer, without logger, bar and checkpoints."""
    import lightning

    model, optimizer = build_parts()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return mean_loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Optimizer:
            return optimizer

    class StopWhenDone(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
            if trainer.global_step % LOG_EVERY == 0:
                outputs["loss"].item()
            trainer.should_stop = finish_step()

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=-1, gradient_clip_val=CLIP, callbacks=[StopWhenDone()], **off)
    trainer.fit(Module(), make_loader())


def run_transformers(finish_step: FinishStep) -> None:
    """Train with the Trainer of transformers, without reports, bar and checkpoints."""
    import transformers

    class StopWhenDone(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = finish_step()

    class Loop(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **more: Any) -> Tensor:
            return mean_loss(model(inputs["x"]), inputs["y"])

    model, optimizer = build_parts()
    with tempfile.TemporaryDirectory() as folder:
        size = {"max_steps": ENDLESS, "per_device_train_batch_size": BATCH, "max_grad_norm": CLIP, "logging_steps": LOG_EVERY}
        off = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
        arguments = transformers.TrainingArguments(folder, use_cpu=True, dataloader_drop_last=True, **size, **off)
        loop = Loop(
            model,
            arguments,
            data_collator=lambda batch: dict(zip("xy", batch, strict=True)),
            train_dataset=SAMPLES,
            callbacks=[StopWhenDone()],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )
        loop.remove_callback(transformers.PrinterCallback)
        loop.train()


PEERS = {"accelerate": run_accelerate, "lightning": run_lightning, "transformers": run_transformers}


def report(times: dict[str, list[float]]) -> dict[str, float]:
    """Print the table; return the ratios."""
    labels = {"raw": "by hand", "again": "by hand, again", "ours": "Trainer.fit"}
    by_hand = [(one + other) / 2 for one, other in zip(times["raw"], times["again"], strict=True)]
    ordered = {name: times[name] for name in (*labels, *PEERS) if name in times}
    reasons = {name: f"not installed: pip install {name}" for name in PEERS if name not in times}
    return harness.report("loop", ordered, {"by hand": by_hand}, width=16, labels=labels, reasons=reasons)


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_count("--steps", 10, "steps of a loop in each round")
    parser.add_count("--rounds", 12, "rounds that count, at least 2", 2)
    parser.add_count("--seatings", 12, "times that all loops start anew")
    args = parser.parse_args()
    # Messages of the peers would hide the table.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    peers = {name: loop for name, loop in PEERS.items() if importlib.util.find_spec(name)}
    own = [("raw", run_by_hand), ("again", run_by_hand), ("ours", run_ours)]
    times: dict[str, list[float]] = {}
    order = random.Random(0)
    for seating in range(args.seatings):
        # Ours before the peers: it resets what accelerate keeps globally.
        loops = dict(order.sample(own, len(own))) | peers
        with start_lanes(loops, args.steps) as arms:
            for name, seconds in harness.run_interleaved(arms, args.rounds, WARM_UP, seed=seating).items():
                times.setdefault(name, []).extend(seconds)
    harness.finish(report(times), BOUNDS)


if __name__ == "__main__":
    main()
