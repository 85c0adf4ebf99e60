"""What a training loop costs over one written by hand: Trainer.fit, accelerate, Lightning, the transformers Trainer.

    python benchmarks/loop_overhead.py [--steps 10] [--rounds 12] [--seatings 12]

Every loop trains its own copy of one transformer (114 thousand parameters, 64 samples of modular arithmetic a step,
about 5 ms on one thread) with the same fused AdamW over the same groups, clips the gradients to norm 1 and reads the
loss every 10 steps. By hand that is 10 lines of PyTorch with index batches.

All loops run in one process, in turn (see turns.py); the ratio is the median of the rounds' ratios. Where a loop's tensors
happen to lie in memory is worth some percent for as long as it lives: so all are begun anew for each seating.

The hand-written loop runs twice, and each loop is compared with the mean of the two: how far these are from 1 is chance.
Each peer gets what its users write, and the fastest data path that it allows: a DataLoader that fetches a batch in one
indexing.
"""

import argparse
import importlib.util
import itertools
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader
from turns import FinishStep, run_interleaved

from research.data.modular import modular
from research.data.spec import Split
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.training.state import Callback, State
from research.training.trainer import Trainer

BATCH, CLIP, LOG_EVERY, ENDLESS = 64, 1.0, 10, 10**9
BOUNDS = {"ours/by hand": 1.03}
DATA = modular(p=97)


def build_parts() -> tuple[nn.Module, Optimizer]:
    """The same model and optimizer for every loop."""
    torch.manual_seed(0)
    model = Transformer(DATA.shape, dim=64, depth=2, heads=4, linear=nn.Linear, sub_norm=True)
    return model, from_base(model, partial(AdamW, betas=(0.9, 0.98), fused=True), lr=1e-3, weight_decay=1.0)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """What one writes by hand."""
    return F.cross_entropy(logits[:, -1], targets)


def run_by_hand(finish_step: FinishStep) -> None:
    """The loop that every other one is compared with."""
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
    """Full batches of sample numbers, in a new order each epoch, for ever."""
    while True:
        yield from torch.randperm(n)[: n // BATCH * BATCH].split(BATCH)


def run_ours(finish_step: FinishStep) -> None:
    """Trainer.fit; it would evaluate only at the end, which never comes."""

    class StopWhenDone(Callback):
        def on_step(self, state: State) -> None:
            if finish_step():
                state.stop = "over"

    trainer = Trainer(ENDLESS, BATCH, clip_norm=CLIP, log_every=LOG_EVERY, eval_every=ENDLESS, device="cpu")
    trainer.fit(*build_parts(), constant, last_token, DATA, [StopWhenDone()])


class Samples:
    """A split for a DataLoader; the samples of a batch come in one indexing instead of one by one."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.split.inputs[index], self.split.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.tensor(indices)
        return self.split.inputs[index], self.split.targets[index]


def return_batch(batch: Any) -> Any:
    """The batch is whole already: nothing to collate."""
    return batch


def make_loader() -> Any:
    return DataLoader(Samples(DATA.train), BATCH, shuffle=True, drop_last=True, collate_fn=return_batch)  # type: ignore[arg-type]


def run_accelerate(finish_step: FinishStep) -> None:
    """As accelerate's quick tour: model, optimizer and loader prepared, backward and clipping through it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, batches = accelerator.prepare(*build_parts(), make_loader())
    steps = itertools.count(1)
    while True:
        for x, y in batches:
            loss = mean_loss(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            if next(steps) % LOG_EVERY == 0:
                loss.item()
            if finish_step():
                return


def run_lightning(finish_step: FinishStep) -> None:
    """Lightning's Trainer without logger, bar and checkpoints."""
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
    """The Trainer of transformers without reports, bar and checkpoints."""
    import transformers

    class StopWhenDone(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = finish_step()

    class Loop(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **more: Any) -> Tensor:
            return mean_loss(model(inputs["x"]), inputs["y"])

    model, optimizer = build_parts()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            max_steps=ENDLESS,
            max_grad_norm=CLIP,
            logging_steps=LOG_EVERY,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_drop_last=True,
        )
        loop = Loop(
            model,
            arguments,
            data_collator=lambda batch: dict(zip("xy", batch, strict=True)),
            train_dataset=Samples(DATA.train),
            callbacks=[StopWhenDone()],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )
        loop.remove_callback(transformers.PrinterCallback)
        loop.train()


PEERS = {"accelerate": run_accelerate, "lightning": run_lightning, "transformers": run_transformers}


def silence_peers() -> None:
    """The peers' notes on their own start would hide the table."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def report(times: dict[str, list[float]]) -> dict[str, float]:
    """Print the table; return the ratios."""
    titles = {"raw": "by hand", "again": "by hand, again", "ours": "Trainer.fit"}
    ratios = {}
    by_hands = [(one + other) / 2 for one, other in zip(times["raw"], times["again"], strict=True)]
    print(f"{'loop':<16}{'ms a step':>10}{'over by hand':>14}{'quartiles':>16}")
    for name in ("raw", "again", "ours", *PEERS):
        if name not in times:
            print(f"{name:<16}    not installed: pip install {name}")
            continue
        low, middle, high = statistics.quantiles([a / b for a, b in zip(times[name], by_hands, strict=True)])
        print(
            f"{titles.get(name, name):<16}{1e3 * statistics.median(times[name]):>10.2f}{middle:>14.3f}{low:>10.3f}-{high:.3f}"
        )
        ratios[f"{name}/by hand"] = round(middle, 4)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of a loop in each round")
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count, at least 2")
    parser.add_argument("--seatings", type=int, default=12, help="times that all is begun anew")
    args = parser.parse_args()
    silence_peers()
    random.seed(0)
    peers = {name: loop for name, loop in PEERS.items() if importlib.util.find_spec(name)}
    own = [
        ("raw", run_by_hand),
        ("again", run_by_hand),
        ("ours", run_ours),
    ]  # before the peers: ours resets what accelerate keeps globally
    times: dict[str, list[float]] = {}
    for _ in range(args.seatings):
        loops = dict(random.sample(own, len(own))) | peers
        for name, seconds in run_interleaved(loops, args.steps, args.rounds).items():
            times.setdefault(name, []).extend(seconds)
    ratios = report(times)
    print(json.dumps(ratios | {"bounds": BOUNDS}))


if __name__ == "__main__":
    main()
