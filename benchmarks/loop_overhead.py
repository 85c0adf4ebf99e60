"""What a training loop costs over one written by hand: Trainer.fit, accelerate, Lightning, the transformers Trainer.

    python -m benchmarks.loop_overhead [--steps 10] [--rounds 12] [--restarts 12]

Every loop trains its own copy of one transformer with 114 thousand parameters. A step takes 64 samples of modular
arithmetic and about 5 ms on one thread. All loops have the same fused AdamW over the same groups, clip gradients to norm 1
and read the loss every 10 steps. Each peer gets what its users write, with the fastest data path that it allows.

In a round each loop, in its own thread, does so many steps. They are measured in CPU time of the thread, where the whole
step happens, so waiting for a busy core does not count. The address of a loop's tensors is worth some percent for as long as
the loop lives, so all loops start anew for each restart. The hand-written loop runs twice, and each loop is compared with
the mean of the two. Their distance from 1 is chance.
"""

import importlib.util
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import harness, models
from research.contracts import contract
from research.data.modular import modular
from research.training.state import Callback, State
from research.training.trainer import Trainer

BATCH, CLIP, LOG_EVERY, ENDLESS = 64, 1.0, 10, 10**9
WARM_UP = 5  # rounds that do not count: first calls, lazy state, caches
BOUNDS = {"ours/by hand": 1.03}
DATA = modular(p=97)
SAMPLES = models.Samples(DATA.train.inputs, DATA.train.targets)
build_parts = partial(models.build_parts, DATA, 64, 2, 4, sub_norm=True, weight_decay=1.0)  # the same for every loop
FinishStep = Callable[[], bool]  # a loop calls it after each step; true tells the loop to end
Loop = Callable[[FinishStep], None]


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss as one writes it by hand."""
    return F.cross_entropy(logits[:, -1], targets)


@contract
def train(parts: models.Parts, batches: Iterable[Any], backward: Callable[[Tensor], None], finish_step: FinishStep) -> None:
    """Train with the loop that people write, by hand or around accelerate; `backward` clips the gradients too."""
    model, optimizer = parts
    for step, (x, y) in enumerate(batches, start=1):
        loss = mean_loss(model(x), y)
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            loss.item()
        if finish_step():
            return


def run_by_hand(finish_step: FinishStep) -> None:
    """Train with the loop that every other one is compared with."""
    parts, x, y, n = build_parts(), DATA.train.inputs, DATA.train.targets, len(DATA.train)
    params = list(parts[0].parameters())
    indices = (index for _ in range(ENDLESS) for index in torch.randperm(n)[: n // BATCH * BATCH].split(BATCH))

    def backward(loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(params, CLIP)

    train(parts, ((x[index], y[index]) for index in indices), backward, finish_step)


def run_ours(finish_step: FinishStep) -> None:
    """Train with Trainer.fit. It would evaluate at the end, which never comes."""

    class StopWhenDone(Callback):
        def on_step(self, state: State) -> None:
            if finish_step():
                state.stop = "the measurement is complete"

    trainer = Trainer(ENDLESS, BATCH, clip_norm=CLIP, log_every=LOG_EVERY, eval_every=ENDLESS, device="cpu")
    models.fit(trainer, build_parts(), DATA, StopWhenDone())


def run_accelerate(finish_step: FinishStep) -> None:
    """Train as accelerate's quick tour does: it prepares all three, and does backward and clipping."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(*build_parts(), models.make_loader(SAMPLES, BATCH))

    def backward(loss: Tensor) -> None:
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)

    train((model, optimizer), (batch for _ in range(ENDLESS) for batch in loader), backward, finish_step)


def run_lightning(finish_step: FinishStep) -> None:
    """Train with Lightning's Trainer, without logger, bar and checkpoints."""
    import lightning

    def on_train_batch_end(callback: Any, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        if trainer.global_step % LOG_EVERY == 0:
            outputs["loss"].item()
        trainer.should_stop = finish_step()

    callbacks = [models.make_callback(lightning.Callback, on_train_batch_end=on_train_batch_end)]
    settings: dict[str, Any] = {"max_epochs": -1, "gradient_clip_val": CLIP, "enable_checkpointing": False}
    models.fit_lightning(build_parts(), mean_loss, models.make_loader(SAMPLES, BATCH), callbacks, **settings)


def run_transformers(finish_step: FinishStep) -> None:
    """Train with the Trainer of transformers, without reports, bar and checkpoints."""
    import transformers

    def on_step_end(callback: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        control.should_training_stop = finish_step()

    callback = models.make_callback(transformers.TrainerCallback, on_step_end=on_step_end)
    size = {"max_steps": ENDLESS, "per_device_train_batch_size": BATCH, "logging_steps": LOG_EVERY}
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"output_dir": folder, "save_strategy": "no", "max_grad_norm": CLIP, **size}
        models.fit_transformers(build_parts(), mean_loss, SAMPLES, callback, **settings)


PEERS = {"accelerate": run_accelerate, "lightning": run_lightning, "transformers": run_transformers}


class Lane:
    """One loop in its own thread, which moves only while `advance` waits for it."""

    def __init__(self, name: str, loop: Loop, steps: int) -> None:
        self.name, self.loop, self.steps = name, loop, steps
        self.num_steps, self.start_time, self.stopping = 0, 0.0, False
        self.orders, self.results = SimpleQueue[bool](), SimpleQueue[float | Exception]()
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        torch.set_num_threads(1)  # a setting of each thread
        self.orders.get()
        try:
            self.loop(self.finish_step)
        except Exception as error:
            self.results.put(error)

    def finish_step(self) -> bool:
        """Count a step; after `steps` of them wait for the next order. Return true once the loop has to end."""
        self.num_steps += 1
        if self.num_steps % self.steps == 0:
            self.results.put((time.thread_time() - self.start_time) / self.steps)
            self.stopping = self.orders.get()
            self.start_time = time.thread_time()
        return self.stopping

    def advance(self) -> float:
        """Let the loop do `steps` steps; return CPU seconds a step. Raise RuntimeError with the loop's own error."""
        self.orders.put(False)
        if isinstance(result := self.results.get(), Exception):
            raise RuntimeError(f"{self.name}: {type(result).__name__}: {result}")
        return result

    def end(self) -> None:
        self.orders.put(True)
        self.thread.join()


@contract
def main(steps: int, rounds: int, restarts: int) -> harness.Results:
    # Messages of the peers would hide the table.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    installed = {name: loop for name, loop in PEERS.items() if importlib.util.find_spec(name)}
    own: list[tuple[str, Loop]] = [("raw", run_by_hand), ("again", run_by_hand), ("ours", run_ours)]
    times: dict[str, list[float]] = {}
    order = random.Random(0)
    for restart in range(restarts):
        lanes = []
        # Ours before the peers: it resets what accelerate keeps globally.
        for name, loop in [*order.sample(own, len(own)), *installed.items()]:
            lanes.append(Lane(name, loop, steps))
            lanes[-1].advance()
        arms = {lane.name: lane.advance for lane in lanes}
        for name, seconds in harness.run_interleaved(arms, rounds, WARM_UP, seed=restart).items():
            times.setdefault(name, []).extend(seconds)
        for lane in lanes:
            lane.end()
    labels = {"raw": "by hand", "again": "by hand, again", "ours": "Trainer.fit"}
    by_hand = [(one + other) / 2 for one, other in zip(times["raw"], times["again"], strict=True)]
    ordered = {name: times[name] for name in (*labels, *installed)}
    reasons = {name: f"not installed: pip install {name}" for name in PEERS if name not in installed}
    return harness.report("loop", ordered, {"by hand": by_hand}, width=16, labels=labels, reasons=reasons)


if __name__ == "__main__":
    harness.run(main, __doc__, BOUNDS, steps=10, rounds=harness.take_count(12, minimum=2), restarts=12)
